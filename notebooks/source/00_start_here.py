# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 00 · Start here: a network that learns by guess and compare
#
# **5 minutes · builds on nothing.** You know what a neural network is and can read a little Python.
#
# Nearly every network is trained with *gradients*: calculus says in which direction to move each number in it. Here is
# another way, without any calculus. After this lesson you can
#
# * say in one sentence how a network learns without gradients,
# * move one number of a network by hand, and choose the best of three,
# * train a network that reads handwritten digits, and watch it get better.
#
# Click into the first grey cell below and press **Shift + Enter**: it runs, and you are in the next one. Go on like this.

# %%
# %matplotlib inline
import rso_lab as rso

rso.lessons.begin()

# %% [markdown]
# The line above should begin with *Ready*. If it names something to mend, do that first.

# %% [markdown]
# ## 1 · A network that knows nothing (1 minute)
#
# `data` holds 1797 handwritten digits, small pictures of 8 x 8 points. 1437 of them are for training, and 360, the *test
# images*, are kept aside to see whether the network can read what it has never met.
#
# `model` is a small network. It looks at a picture and answers with a digit. Its answers depend on 690 numbers, its
# **weights**, and these are random so far. So are its answers:

# %%
data = rso.load("digits")
model = rso.models.build("one_conv", data)
rso.plots.answers(model, data)
# %% [markdown]
# ## 2 · One weight under the microscope (2 minutes)
#
# How wrong are the answers? The **loss** says it in one number: the lower, the better. If we change one weight, the loss
# changes. That is all we need.
#
# The grey curve shows the loss for every value of *one* weight, while the other 689 stay as they are. There are three
# dots on it: the weight as it is, **w**, and the weight moved by a change **δ** to either side, **w + δ** and
# **w - δ**. A ring marks the lowest of the three.
#
# 1. Move the slider. It sets how large the change δ is.
# 2. Press **Keep the best**. The weight moves to the ring, if the ring is not around w already.
# 3. Go on until neither a large nor a small δ helps. How low does the loss get?

# %%
data = rso.load("digits")
model = rso.models.build("one_conv", data)
rso.widgets.Microscope(model, data, parameter="conv1.weight", index=(3, 0, 1, 0))

# %% [markdown]
# You never asked which way is down. You guessed a change, compared three losses and kept the best: **guess and compare,
# that is training.** The method is called **RSO**, *random search optimization* (Tripathi & Singh, 2020). It does for
# every weight what you did for one, with one difference: it does not choose δ as you did. It draws it at random.
#
# One weight changes little, as you saw. The network has 690.

# %% [markdown]
# ## 3 · All weights, and your prediction (2 minutes)
#
# RSO visits the 690 weights one after the other and makes *one* guess for each: δ at random, three losses, the best is
# kept. When every weight had its turn, that is one **cycle**.
#
# The random network reads about 1 in 10 test images right, as anyone would who guesses among ten digits. What do you
# think: how many will it read right after *one* cycle? Write it down before you go on: 0.1 is one in ten, 1.0 is all.

# %%
prediction = 0.5  # <- your prediction

# %% [markdown]
# Now let it run for ten cycles: 20,700 losses, some ten to twenty seconds. The picture is drawn anew after each cycle.
# (The square ■ in the toolbar stops it. The network stays usable.)

# %%
data = rso.load("digits")
model = rso.models.build("one_conv", data)
method = rso.RSO(cycles=10, batch_size=1000)
history = rso.widgets.watch(rso.histories(model, data, method, seed=0))

# %%
rso.lessons.compare(prediction, history.cycles[0].test_accuracy, "test images right after one cycle")

# %% [markdown]
# To save time, each loss is taken over 1000 training images drawn at random, not over all of them: a **mini-batch**, and
# `batch_size` is its size. All three losses of a guess use the *same* mini-batch. Otherwise luck with the images would
# decide, and not the weight.
#
# Here are the same test images as at the beginning, and what the network takes them for now:

# %%
rso.plots.answers(model, data)

# %% [markdown]
# ## 4 · Exercise: the heart of it in three lines
#
# **Difficulty: easy · 2 minutes.** Write `choose`. It gets the three losses and returns the name of the candidate to take:
# `"minus"`, `"keep"` or `"plus"`. A change must *lower* the loss; where it gains nothing, the weight is kept.
#
# <details><summary>Hint 1</summary>
#
# Which of the three is the lowest? Python's `min(minus, keep, plus)` finds the value; you need its name.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Ask about `keep` first: if no other loss is lower than it, you are done. Then two are left.
#
# </details>


# %% nbgrader={"grade": false, "grade_id": "choose", "locked": false, "schema_version": 3, "solution": true}
def choose(minus, keep, plus):
    ### BEGIN SOLUTION
    if keep <= min(minus, plus):
        return "keep"
    return "plus" if plus <= minus else "minus"
    ### END SOLUTION


# %%
rso.lessons.check_choose(choose)

# %% [markdown]
# ## 5 · What you take home
#
# * **Guess and compare, that is training:** for one weight after another, take the loss at w - δ, w and w + δ, and keep
#   the best.
# * No gradient, and no *learning rate* (the setting that says how far to follow a gradient). But three losses for every
#   single weight, and that is what it costs.
#
# **The ledger.** Each lesson ends with it, so that you can compare:

# %%
rso.lessons.ledger(history)

# %% [markdown]
# **What the paper says.** With a network of six such layers and 12,026 weights, RSO reads 98.0 % of the test images of
# MNIST (larger handwritten digits, 28 x 28 points) after 5 cycles, and 99.12 % after 50. Your network is much smaller, its
# pictures are others, and one test image more or less is 0.3 points here: so the numbers cannot be compared directly. That
# the first cycles gain most shows in both.
#
# **Go on playing.** Change `cycles=10` or `batch_size=1000` in section 3, or the `index` in section 2, and run the cell
# again.
#
# **The question for the next lesson.** All this began with random weights. *How* random should they be?
