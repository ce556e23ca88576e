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
# **15 minutes · builds on nothing.** You know roughly what a neural network is and can read a
# little Python.
#
# Nearly every network is trained with *gradients*: calculus says in which direction to move each number in it. Here is
# another way, without any calculus. After this lesson you can
#
# * say in one sentence how a network learns without gradients,
# * move one number of a network by hand, and choose the best of three,
# * train a network that reads handwritten digits, and watch it get better.
#
# Click into the first grey cell below and press **Shift + Enter**: it runs, and you are in the next one. Go on like this.
# The first cell takes up to ten seconds, the very first time up to a minute: wait. It should print a line that begins with
# *Ready*; if it names something to fix, do that first.

# %%
# %matplotlib inline
import rso_lab as rso

print("Loading ...")
rso.lessons.begin()
data = rso.load("digits")
# or, much slower: data = rso.load("mnist", train_limit=2000, test_limit=500)

# %% [markdown]
# ## 1 · Play: one weight under the microscope (3 minutes)
#
# Below is a network that is to read handwritten digits. What it says depends on 690 numbers, its **weights**, and they are
# random so far. How wrong is it? The **loss** says that in one number: the lower, the better. (It is the *cross-entropy*: minus
# the logarithm of the probability that the network gives to the right digit, averaged over the images.)
#
# The grey curve shows the loss for a range of values of *one* weight, while the other 689 stay as they are. There are three
# dots on it: the weight as it is, **w**, and the weight moved by a change **δ** (delta) to either side, **w - δ** and **w + δ**.
# A ring marks the lowest of the three. Run the cell, then
#
# 1. move the slider: it sets how large the change δ is;
# 2. press **Keep the best**: if a change lowers the loss, the weight moves to the ring;
# 3. go on until neither a large nor a small δ helps.

# %%
toy = rso.models.build("one_conv", data)
weight = (3, 0, 1, 0)
rso.widgets.Microscope(toy, data, "conv1.weight", weight)

# %% [markdown]
# You could see the whole curve. You did not need it: three dots were enough to go down. Compare three losses and keep the
# best: **guess and compare, that is training.** The method is called **RSO**, *random search optimization* (Tripathi &
# Singh, 2020). It does for every weight what you did for one, with two differences: δ is drawn at random, and each weight
# gets just one guess before it is the next one's turn.

# %% [markdown]
# ## 2 · A network that knows nothing (1 minute)
#
# One weight alone cannot make the network read. This is what it says as long as all 690 are random. `data` holds 1797
# handwritten digits, small pictures of 8 x 8 pixels. 1437 of them are for training. The other 360, the *test images*, are kept
# aside, to see whether the network can read pictures it has never seen. Here are eight of them:

# %%
model = rso.models.build("one_conv", data)
rso.plots.answers(model, data)

# %% [markdown]
# About one in ten is right: no better than guessing.

# %% [markdown]
# ## 3 · All weights, and your prediction (4 minutes)
#
# RSO visits the 690 weights one after the other and makes one guess for each: δ at random, three losses, the best is kept.
# When every weight has had its turn, that is one **cycle**.
#
# The random network got about 1 in 10 test images right. What do you think: how many will it get right after *one* cycle?
# Put a number in place of the three dots before you go on: 0.1 is one in ten, 1.0 is all.

# %%
prediction = ...  # <- your prediction, between 0 and 1

# %% [markdown]
# Now let it run for ten cycles, 20,700 losses. The bar shows how far it is, and the picture is updated after each cycle.
# (The square ■ in the toolbar stops it. The network stays usable.)
#
# `batch_size=1000`: for each guess RSO draws 1000 of the 1437 training images anew, a **mini-batch**. With larger data sets
# that saves much time. All three losses of one guess use the *same* mini-batch: otherwise luck with the images would
# decide, and not the weight.

# %%
model = rso.models.build("one_conv", data)
method = rso.RSO(cycles=10, batch_size=1000)
history = rso.widgets.watch(rso.histories(model, data, method, seed=0))

# %%
rso.lessons.compare(prediction, history.cycles[0].test_accuracy, "Test images right after one cycle")

# %% [markdown]
# The same test images as at the beginning, and what the network says now:

# %%
rso.plots.answers(model, data)

# %% [markdown]
# **The ledger.** This is what it reached, and at what price: how many losses, how many *multiply-adds* (the products that a
# computer has to add up for them), how much time. Every lesson adds a line.

# %%
rso.lessons.ledger("00", history)

# %% [markdown]
# And this is how far it goes with a larger network (six convolution layers, 12,026 weights) on larger pictures (MNIST, 28 x 28
# pixels): a run of ours, recorded, over 50 cycles, and what the paper reports.

# %%
rso.lessons.beside_the_paper(history)

# %% [markdown]
# ## 4 · Exercise: the heart of it in three lines (4 minutes)
#
# **Difficulty: easy.** Write `choose`. It gets the three losses and returns the name of the candidate to take: `"minus"`,
# `"keep"` or `"plus"`. A change must *lower* the loss; where it gains nothing, the weight is kept. (If both changes gain the
# same, either will do.)
#
# <details><summary>Help, I get an error</summary>
#
# `IndentationError`: the lines of the function begin with four spaces. `NameError`: the losses are called `minus`, `keep`
# and `plus`, without quotes; the names to return are in quotes.
#
# </details>
#
# <details><summary>Hint 1</summary>
#
# `min(minus, plus)` is the better of the two changes. When is it not good enough?
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


# %% [markdown]
# The next cell checks it. If it is right, your `choose` trains the network for one cycle: every decision is yours.

# %%
rso.lessons.train_with(choose, data)

# %% [markdown]
# ## 5 · Three questions (1 minute)

# %%
rso.widgets.Quiz("00", 1)

# %%
rso.widgets.Quiz("00", 2)

# %%
rso.widgets.Quiz("00", 3)

# %% [markdown]
# ## 6 · What you take home (2 minutes)
#
# * **Guess and compare, that is training:** for one weight after another, take the loss at w - δ, w and w + δ, and keep
#   the best.
# * No gradient is computed. The price is three losses for every single weight.
# * How far a guess typically goes matters, as the *learning rate* does in training with gradients. Lesson 03 is about it.
#
# **What the paper says.** With the larger network RSO gets 98.0 % of MNIST's test images right after 5 cycles, and 99.12 %
# after 50. (Our own run, with mini-batches of 1000 where the paper has 5000, ended at 98.4 %.) Your network is much smaller,
# the pictures are different, and one test image more or less is 0.3 percentage points here: the numbers cannot be compared
# directly. In all these runs, most of the gain comes in the first cycles.
#
# **Go on playing.**
#
# * In section 1, look at another weight: put other numbers into `weight = ...` and run the cell again. `(2, 0, 1, 2)` is
#   steep, `(0, 0, 1, 2)` is nearly at its lowest. The first number is 0 to 3, the second 0, the last two 0 to 2.
# * In section 3, try `batch_size=16`. What do you lose, what do you gain? (You gain a little time and lose much accuracy:
#   16 images are a poor judge. Lesson 05 is about that.)
# * In section 3, try `cycles=2`. It is not the first part of the run of ten: RSO makes its guesses smaller from cycle to
#   cycle, down to a tenth in the last.
# * The last line of the very first cell, a comment, is for MNIST, pictures of 28 x 28 pixels. Put what it says in place of the line
#   above it, and run everything again. It takes minutes where digits take seconds, and the first time it fetches the pictures. Every
#   lesson has that line.
#
# **The question for the next lesson.** All this began with random weights. *How* random should they be?
