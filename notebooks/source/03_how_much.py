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
# # 03 · How much to move: one weight, a layer, or everything?
#
# **36 minutes · builds on 00 to 02.** Section 5 (7 minutes more) can be left out.
# Short of time? Skip section 3.
#
# Lesson 02 showed that three losses reveal which way is down. Open is how far to go, and why not to move many weights at
# once: that would save many losses. After this lesson you can
#
# * say why every number of weights has a step size of its own,
# * say what the length of a step and its direction have to do with what it gains,
# * compare the three *levels* of RSO: one weight, one layer, the whole network,
# * say what sigma and its annealing are for.

# %%
# %matplotlib inline
import torch

import rso_lab as rso

print("Loading ...")
rso.lessons.begin()
data = rso.load("digits")
# or, much slower: data = rso.load("mnist", train_limit=2000, test_limit=500)

# %% [markdown]
# ## 1 · Play: how many, and how far? (5 minutes)
#
# A **proposal** is a change that is tried, a *guess* in lesson 00: RSO takes the loss with it, without it and with its
# opposite. Below are 60 proposals for the small network with random weights. The first slider sets how many weights a proposal
# moves, drawn at random, the second how far each of them goes, in units of sigma_d. The histogram shows what the better of +δ
# and -δ does to the loss: left of zero it helps. A proposal that does not help is turned down, and counts as a gain of 0.
#
# 1. Move one weight, with a step of 1. How many of the proposals help, and what is the mean gain?
# 2. Now move all 690, with the same step.
# 3. Still all 690: make the step small. From where on do nearly all proposals help?

# %%
rso.widgets.Steps(data)

# %% [markdown]
# With a small step, +δ or -δ nearly always helps, however many weights it moves: one of the two goes downhill. But a small
# step brings little. A long one crosses the valley and climbs the other side. The best step lies in between, and where that is
# depends on how many weights move.

# %% [markdown]
# ## 2 · The map (8 minutes)
#
# Measured for several numbers of weights and several steps: the mean gain of a proposal. A dot marks the best step for each
# number. Before you run it: from 1 to 690 weights, by what factor does the best step shrink? Write down a number.

# %%
prediction = ...  # <- your prediction: 1 is not at all, 10 is to a tenth, ...

# %%
moved, sizes = (1, 10, 100, 690), (0.01, 0.03, 0.1, 0.3, 1, 3, 10)
table = rso.lessons.gain_table(data, moved, sizes, count=20)
rso.plots.gains(table, moved, sizes)

# %%
best = [sizes[i] for i in table.argmax(axis=0)]
print(f"the first best step is {best[0] / best[-1]:.0f} times the last;", rso.lessons.yours(prediction))

# %% [markdown]
# **Every number of weights has a step size of its own: the more move, the less each may.** In the same spirit RSO takes a tenth
# of sigma_d when it moves a layer or the whole network.
#
# Why so? Take a proposal as an arrow with a number for each of the 690 weights, 0 for those that rest. Its **length** is, by
# Pythagoras, the root of the sum of their squares: if it moves k weights by s each, s times the square root of k. Here are the
# best steps of the map times that root. (The map is rough: each of its steps is about three times the one before.)

# %%
for k, step in zip(moved, best, strict=True):
    print(f"{k:4} weights, best step {step:4}: an arrow of length {step * k**0.5:.1f}")

# %% [markdown]
# The lengths are nearly the same! What counts is not the number of weights but how far the whole arrow goes. Many weights have
# to share that length.
#
# And look at the colours: here, at the beginning, a proposal that moves ten weights gains *more* than one that moves a single
# weight. A random network has so much to gain that a coarse hand finds it, too. (A cell is the mean of 20 proposals: luck has a
# part in it.)

# %% [markdown]
# ## 3 · The direction (10 minutes)
#
# So the length is clear. And the direction? The steepest way down is *some* direction, and the proposal knows nothing of it.
# What a short proposal gains is the part of it that points along the steepest way: the **cosine** of the angle between the two.
# It is 1 for the same direction and 0 for a right angle.
#
# **Exercise. Difficulty: medium, 4 minutes.** Write `cosine`: multiply the matching numbers of a and b, add up, and divide by
# the lengths of both. `a.norm()` is the length of a.
#
# <details><summary>Hint 1</summary>
#
# `(a * b).sum()` is the sum of the products.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Divide by `a.norm() * b.norm()`, with brackets around the product.
#
# </details>


# %% nbgrader={"grade": false, "grade_id": "cosine", "locked": false, "schema_version": 3, "solution": true}
def cosine(a, b):
    ### BEGIN SOLUTION
    return (a * b).sum() / (a.norm() * b.norm())
    ### END SOLUTION


# %%
rso.lessons.check(cosine)

# %% [markdown]
# How large is it for two random arrows? (This cell uses torch's own cosine, so that it runs without yours.)

# %%
torch.manual_seed(0)
for n in (2, 10, 100, 690, 10000):
    pairs = torch.randn(2, 200, n)
    typical = torch.nn.functional.cosine_similarity(*pairs, dim=1).abs().mean()
    print(f"{n:6} weights: |cosine| is typically {typical:.3f}; 1 / sqrt(n) is {n**-0.5:.3f}")

# %% [markdown]
# In a network of n weights, a direction that knows nothing has a cosine of about 1 / sqrt(n) with the way down. That holds whether it
# moves all n of them or a single one: an arrow along one of n axes knows nothing of the slope either. So by direction alone no
# number of weights is far ahead. (A single one is even a little behind: it may be one of the many that hardly matter.) The
# map says that ten gain more than one, when all is still random. Why, then, one at a time? Section 4 and its *Think* answer that.

# %% [markdown]
# ## 4 · The race (9 minutes)
#
# RSO's three **levels**: a proposal moves one weight, all weights of one layer, or the whole network. A cycle is as many
# proposals as there are weights, at every level, so all three have made the same number of evaluations. Which one reads the
# most held-out images (a sixth of the training images, on which none is trained) after two cycles? Write its name down, run the
# cell after it, and press **Start**.

# %%
prediction = ...  # <- your prediction: "weight", "layer" or "network"

# %%
model = rso.models.build("one_conv", data)
levels = ("weight", "layer", "network")
methods = {level: rso.RSO(cycles=2, batch_size=250, level=level) for level in levels}
race = rso.widgets.Race(model, data, methods)
race

# %% [markdown]
# When it is over, or to run it to its end here:

# %%
race.finish()

# %%
print(race.said.value, rso.lessons.yours(prediction), sep="; ")

# %% [markdown]
# The weight level once more, now with all training images, for the ledger:

# %%
model = rso.models.build("one_conv", data)
history = rso.fit(model, data, rso.RSO(cycles=2, batch_size=250), seed=0)
rso.lessons.ledger("03", history)

# %%
rso.lessons.beside_the_paper(history)

# %% [markdown]
# On this small task the weight level is often *not* ahead, as the map promised: so few evaluations are all beginning. Now the
# recorded ones. *levels (class)* is digits with a larger network, three seeds: there the weight level leads after the first
# cycle, and after the second the bands overlap. Then choose *levels (evening)*, MNIST with two convolutions.

# %%
rso.widgets.Recorded("levels")

# %% [markdown]
# On MNIST the order is the paper's: weight, layer, network. After the first cycle they read 81.6 %, 71.6 % and 22.3 %, after the
# second 85.1 %, 84.3 % and 25.9 %, with the same number of evaluations. (One seed: between the first two an anecdote.) The
# paper, with 500,000 proposals and 5000 images for each, finds a wide gap. And there is the price of a proposal, which this
# figure leaves out: choose *seconds* on the right. One weight at a time takes a tenth of the others' time, and less.
#
# **Think.** The map of section 2 says that a proposal of many weights gains a lot at the beginning. Why may that not last?
# Two hints: gains get smaller while the network learns, and a mini-batch is a noisy judge (lesson 05).
#
# <details><summary>One answer</summary>
#
# At the beginning there is much to gain in nearly every direction. Later most weights stand well, and a change of all of them
# spoils more than it mends, unless it is tiny. What a tiny change gains is less than the luck of the mini-batch. A single
# weight can still take a long step where there is something to gain, and leaves the others alone. And the loss after one
# changed weight costs far less to compute (lesson 06).
#
# </details>

# %% [markdown]
# ## 5 · Which changes to propose? (7 minutes)
#
# Three more questions about **sigma**, the spread of the proposals: it is sigma_d at first, and *annealed*, that is, made
# smaller from cycle to cycle. Recorded runs answer them (digits, two convolutions, three seeds; the same 500 images for all
# weights of a neuron: lesson 05). Guess each before you run its cell. **Distribution:** the paper's Gaussian, *uniform* between
# -2 and 2 sigma, or a *template*, just one of -sigma, 0 and sigma?

# %%
rso.widgets.Recorded("proposals", ways=("the usual way", "uniform", "template"))

# %% [markdown]
# **Annealing:** sigma shrinks from cycle to cycle, to a tenth in the last. Is that needed?

# %%
rso.widgets.Recorded("proposals", ways=("the usual way", "not annealed"))

# %% [markdown]
# **Scale:** what if the first sigma is a tenth of sigma_d, or ten times?

# %%
scales = ("the usual way", "10.0 sigma_d", "0.1 sigma_d", "0.1 sigma_d, 20 cycles")
rso.widgets.Recorded("proposals", ways=scales)

# %% [markdown]
# Gaussian or uniform hardly matters, the template ends about a point lower, and in four cycles annealing makes no difference.
# The scale does: ten times sigma_d costs some points, a tenth of it does not get far in four cycles, and catches up in twenty.
# (Over twenty cycles it is annealed more slowly: that is why its first four differ.) The paper, with 50 cycles, says that
# anything from 0.1 to 10 sigma_d ends within 0.15 points.

# %% [markdown]
# ## 6 · Three questions (2 minutes)

# %%
rso.widgets.Quiz("03", 1)

# %%
rso.widgets.Quiz("03", 2)

# %%
rso.widgets.Quiz("03", 3)

# %% [markdown]
# ## 7 · What you take home (2 minutes)
#
# * **The more weights move at once, the less each may move**: every number of weights has a step size of its own.
# * One weight, a layer, or everything? Where nearly every direction helps, at the beginning of a small task, many at once gain
#   as much or more. In longer runs and on larger networks one at a time is ahead, and each proposal is cheaper.
# * In a network of n weights, a direction that knows nothing points along the way down by about 1 / sqrt(n), whether it moves
#   one of them or all: what differs is the length that suits.
# * Sigma does the job of the learning rate, and its annealing that of a schedule.
#
# **What the paper says.** For layers and networks N(0, sigma_d / 10) works best; one weight at a time is "much better and
# faster" on MNIST, and on CIFAR-10 the other two do not even start well.
#
# **The question for the next lesson.** If it is one weight at a time: which one first?
