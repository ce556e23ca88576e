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
# # 11 · The family: other ways to train without (all of) the gradient
#
# **40 minutes · builds on 00 to 03, and 08.** Short of time? Skip section 5.
#
# Lesson 10 ended with a question: RSO is not the only way to train without the gradient, or with little of it. What do
# its relatives do? After this lesson you can
#
# * find the shadow of a gradient on a few random directions, and say why ten of them are enough, if they are drawn anew,
# * estimate a gradient from losses alone, and say why the networks come in pairs,
# * say what a genetic algorithm does and what it leaves out,
# * train a network of which most weights are zero from the first step on,
# * say what two computers that train together have to tell each other.

# %%
# %matplotlib inline
import torch

import rso_lab as rso

print("Loading ...")
rso.lessons.begin()
data = rso.load("digits")

# %% [markdown]
# ## 1 · Play: a family race (5 minutes)
#
# Six ways to train one network, all from the same random weights. It has a hidden layer of 32 neurons, and 2,410 weights. RSO
# and SGD you know. The others are the subject of this lesson; for now a sentence on each is enough.
#
# * ES, an *evolution strategy*: 50 networks around the present one vote where to go.
# * GA, a *genetic algorithm*: 100 networks; the best of them have children, the others go.
# * RBD and FPD are SGD half blind: they see the slopes along 50 random directions only. RBD draws new directions for each
#   step, FPD keeps the first ones.
#
# Whoever has spent least of what is counted makes the next step, as in lesson 08. Press **Start**, and wait for the end. Then go
# through the four things that can be counted. Who is ahead by which of them?

# %%
model = rso.models.build("mlp", data)
methods = {
    "RSO": rso.RSO(cycles=3, batch_size=500, batch_every="neuron"),
    "ES": rso.ES(epochs=15, batch_size=128, learning_rate=0.03),
    "GA": rso.GA(epochs=9, batch_size=128),
    "SGD": rso.SGD(epochs=10, batch_size=32, learning_rate=0.1),
    "RBD": rso.Subspace(epochs=10, batch_size=32, learning_rate=2.0, dimensions=50),
    "FPD": rso.Subspace(epochs=10, batch_size=32, learning_rate=2.0, dimensions=50, redraw=False),
}
race = rso.widgets.Race(model, data, methods, against="evaluations")
race

# %% [markdown]
# To run it to its end here:

# %%
race.finish()

# %% [markdown]
# The axis picks the winner, here too. By evaluations, those that use the gradient are far ahead, for one gradient tells more than
# one loss. By updates of all weights, RSO is. (A generation of ES or GA counts as one update, like a step of SGD.) By multiply-adds RSO
# and RBD are about level, and SGD is ahead of both. ES and GA need many times more: they change all weights of every network
# that they try, and have to compute all of it, where RSO computes only what one changed weight can change.
#
# Two lines deserve a second look. RBD sees 50 numbers of 2,410 and ends a few points behind SGD. FPD sees 50, too, and ends far
# below.

# %% [markdown]
# ## 2 · A shadow of the gradient (10 minutes)
#
# The gradient is an arrow of 2,410 numbers, one for each weight. Take ten random arrows of the same kind, the **directions**. The
# **shadow** of the gradient is what can be seen of it along them: of all arrows that one can make by adding up multiples of the
# ten, it is the nearest to the gradient. (Think of a stick that throws its shadow on the floor: the floor is what one can reach
# with two directions.) All that the ten directions can reach is called a **subspace**.
#
# In the picture on the left the gradient has length 1, and the floor is the subspace. The *cosine* of lesson 03 says how nearly
# the shadow points where the gradient does: 1 is the same direction, 0 a right angle. For d directions of D weights one expects
# sqrt(d / D).
#
# 1. Ten directions: how long is the shadow? Go to 100, to 1,000, and to all 2,410.
# 2. Go back to 10 and press **Draw anew** ten times, slowly. Each shadow is as short as the one before. What does the blue
#    diamond do, which is all of them *added up*?

# %%
rso.widgets.Shadow(data)

# %% [markdown]
# One shadow on ten directions is nearly at a right angle to the gradient. But every shadow has a small part that goes the gradient's
# way, and the rest of it is different each time. Added up, the small parts grow and the rest cancels. Whoever makes many small
# steps adds up many shadows.

# %% [markdown]
# **Exercise. Difficulty: medium, 4 minutes.** Write the shadow. `gradient` is a tensor of D numbers. `directions` is a tensor of
# the shape (d, D): one direction a row, each of length 1, all at right angles to each other. It takes two steps:
#
# * the *coordinates*, one number for each direction: multiply direction and gradient number by number, and add up;
# * the sum of all directions, each times its coordinate.
#
# Return the sum, D numbers.
#
# <details><summary>Help, how do I multiply and add up?</summary>
#
# `a @ b` does both at once. For a tensor of the shape (d, D) and one of D numbers it gives d numbers, one for each row.
#
# </details>
#
# <details><summary>Hint 1</summary>
#
# The coordinates are `directions @ gradient`.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `directions.T` is `directions` with rows and columns exchanged, the *transpose*. It has the shape (D, d): times d coordinates it gives
# D numbers, the sum of the directions.
#
# </details>


# %% nbgrader={"grade": false, "grade_id": "shadow", "locked": false, "schema_version": 3, "solution": true}
def shadow(gradient, directions):
    ### BEGIN SOLUTION
    coordinates = directions @ gradient
    return directions.T @ coordinates
    ### END SOLUTION


# %%
rso.lessons.check(shadow)

# %% [markdown]
# Now we train with it. *Random bases descent* (**RBD**) takes a step of SGD with the shadow in place of the gradient, and draws new
# directions for each step. *Fixed projection descent* (**FPD**) draws them once: it never leaves what these can reach from the start. (Our
# directions are at random angles. Among 2,410 weights these are nearly right angles, as lesson 03 showed, so we leave it at that.)
#
# Ten directions of 2,410, 20 epochs. SGD would read 97 %. Your prediction, for both?

# %%
prediction_kept = ...  # <- your prediction for the same ten directions all the time, between 0 and 1
prediction_anew = ...  # <- for ten new ones at each step

# %%
model = rso.models.build("mlp", data)
kept = rso.fit(
    model, data, rso.Subspace(epochs=20, batch_size=32, learning_rate=2.0, dimensions=10, redraw=False), seed=0
)
model = rso.models.build("mlp", data)
anew = rso.fit(model, data, rso.Subspace(epochs=20, batch_size=32, learning_rate=4.0, dimensions=10), seed=0)
rso.lessons.compare(prediction_kept, kept.cycles[-1].test_accuracy, "Ten directions, kept")
rso.lessons.compare(prediction_anew, anew.cycles[-1].test_accuracy, "Ten directions, drawn anew")

# %% [markdown]
# The same number of directions, and all the difference lies in the draw. Recorded, three seeds each: ten kept read 15.1 % of the test
# images, ten drawn anew 90.1 %. With 250 directions even those that are kept read 93.9 %, drawn anew 96.4 %, and SGD 97.0 %.

# %%
rso.widgets.Recorded("subspace", ways=["SGD", "10 fixed", "10 re-drawn", "250 fixed", "250 re-drawn"])

# %% [markdown]
# **What the paper says** (Gressmann, Eaton-Rosen & Luschi 2020, Table 1): a dense network on MNIST, 250 directions of 101,770. Kept,
# they read 80 %, drawn anew 93.9 %, and SGD 98.27 %. The same order as ours.
#
# Note what this does *not* save. To know the shadow one needs the gradient first, with its pass there and back. What is it good for,
# then? That is section 6.

# %% [markdown]
# ## 3 · A cloud of networks (9 minutes)
#
# Now without any gradient. An **evolution strategy** (ES) keeps one network, the *centre*. Around it it sets up a **generation**:
# **members**, each of which is the centre with random noise on all weights. The noise is drawn from N(0, 1) and multiplied by
# *sigma*: sigma says how far out the members are. Each member's loss is taken on the same mini-batch. Then the members vote: the
# centre moves towards the good ones and away from the bad ones.
#
# The map shows the loss in a plane of the weights. You stand at the random weights, and the star is where SGD got in five epochs. The
# members are the dots; the darker, the lower the loss. The black arrow is their vote, the blue one is the true way down.
#
# 1. Press **Draw anew** a few times. How well does the vote agree with *downhill*? Try it with 2 members, and with 100.
# 2. With 20 members, press **Go there** until you are near the star. (**Back** leads to the start.) The steps all have the same
#    length. What happens near the star?
# 3. Go back, make sigma about 0.1, and change *in opposite pairs* to *each alone*. Draw anew a few times. What has happened to
#    the vote?

# %%
rso.widgets.Cloud(data)

# %% [markdown]
# In **opposite pairs** one member has the noise added and one has it subtracted, like w + δ and w - δ. Where the first is higher, the
# way down is on the side of the second. Alone, a member has nothing to be compared with, and it votes with its whole loss. Near
# the star a step of fixed length jumps over the valley: ES, too, has to make its steps smaller with time, as RSO does with sigma.
#
# (The map has two directions. The real cloud has 2,410, and with a sigma of 0.1 its members lie 0.1 · sqrt(2,410) = 4.9 away
# from the centre, all around.)
#
# **Exercise. Difficulty: medium, 4 minutes.** Write the vote as an estimate of the gradient, uphill. `plus` are the losses of n members at
# centre + sigma · noise, `minus` those of their partners at centre - sigma · noise. `noise` has the shape (n, D), a row for each
# pair. For each pair, the difference of the losses divided by the distance, 2 · sigma, is the slope along its noise. The estimate is the
# mean over all pairs of slope times noise: D numbers.
#
# <details><summary>Hint 1</summary>
#
# The slopes are `(plus - minus) / (2 * sigma)`: n numbers.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `slopes @ noise` adds up the rows of the noise, each times its slope. For the mean divide by their number, `len(plus)`.
#
# </details>


# %% nbgrader={"grade": false, "grade_id": "es_gradient", "locked": false, "schema_version": 3, "solution": true}
def es_gradient(plus, minus, noise, sigma):
    ### BEGIN SOLUTION
    slopes = (plus - minus) / (2 * sigma)
    return slopes @ noise / len(plus)
    ### END SOLUTION


# %%
rso.lessons.check(es_gradient)

# %% [markdown]
# In practice the losses are often replaced by their **ranks**: the best gets -0.5, the worst 0.5, the others lie between, at equal
# distances. Then one member that is terribly bad cannot outvote all others.
#
# Below, the same number of members, 50, and the same mini-batches: in pairs and with ranks; and without both, each alone with its
# loss as it is. The first one reads about 86 % after ten epochs. What about the second?

# %%
prediction = ...  # <- your prediction, between 0 and 1

# %%
model = rso.models.build("mlp", data)
es = rso.fit(model, data, rso.ES(epochs=10, batch_size=128, learning_rate=0.01), seed=0)
model = rso.models.build("mlp", data)
alone = rso.ES(epochs=10, batch_size=128, learning_rate=0.01, samples=50, antithetic=False, shaping="none")
each_alone = rso.fit(model, data, alone, seed=0)
print(f"In pairs, with ranks: {es.cycles[-1].test_accuracy:.0%} of the test images right")
rso.lessons.compare(prediction, each_alone.cycles[-1].test_accuracy, "Each alone, with its loss")

# %% [markdown]
# **Think.** It stays near guessing. Why?
#
# <details><summary>An answer</summary>
#
# At the start each member has a loss of about 3.6, by 0.3 more or less. Only the 0.3 tells the way, but all of the 3.6
# multiplies the noise. So what is added up is mostly 3.6 times the mean noise, and the mean of 50 random arrows is not 0 but
# some other random arrow. Divided by sigma it is about 3.6 / 0.1 · sqrt(2,410 / 50) = 250 long, and the gradient is 3 long.
#
# In pairs, plus - minus takes away what both have in common. Ranks do it, too: they have the mean 0. Either of them is enough.
#
# </details>

# %% [markdown]
# ## 4 · Survival (3 minutes)
#
# A **genetic algorithm** (GA) asks even less. There is no centre and no vote. Of 100 members the best 20 become **parents**, and the
# other 80 are dropped. Each child is a copy of one of the parents, with a little noise on all weights. The very best, the **elite**,
# goes on as it is. That is all: *who* is good counts, and nobody asks which way the good ones lie.

# %%
model = rso.models.build("mlp", data)
ga = rso.fit(model, data, rso.GA(epochs=9, batch_size=128), seed=0)
last = ga.cycles[-1]
print(f"GA: {last.test_accuracy:.0%} of the test images right after {last.evaluations:,} losses")

# %%
family = ["ES", "GA", "RSO", "RSO, network level"]
rso.widgets.Recorded("evolution", against="evaluations", ways=family)

# %% [markdown]
# For as many losses ES gets farther. It uses all members, also the bad ones: they say where *not* to go. Recorded, after about
# 30,000 losses, three seeds: GA 90.1 %, RSO at the network level 92.6 %, ES 94.6 %, RSO 95.6 %. The RSO paper says of its network
# level that it "is close to how genetic algorithms function" (§4.2): all weights move at once, and the better network stays. The
# difference: RSO keeps one network and compares it with two, GA keeps 20 and tries 100.

# %% [markdown]
# ## 5 · Leave weights out (7 minutes)
#
# Does a network need all its weights? A **mask** says for each weight whether it is used (1) or left out (0): then it is 0, and
# costs nothing. The share that is used is the **density**. The first layer of our network has 2,048 weights. At a density of
# 2 % it has 41 left, about one for each neuron.
#
# Which 41? The choice has no gradient: a weight is used or it is not, a staircase as in lesson 10. Lenc et al. (2019) share out the
# work: an *evolution strategy finds the mask, SGD trains the weights*. (We have only the abstract of their paper; how we do it is
# our reading.) Every weight gets a *score*, and the 41 highest are used. A cloud of scores votes, in pairs, how the scores
# should change. Meanwhile SGD moves the weights by the gradients that the same passes give.
#
# A random mask that stays as it is reads 79 % of the test images after 15 epochs. Your prediction for the mask that is learned?

# %%
prediction = ...  # <- your prediction, between 0 and 1

# %%
masks = {
    "random": rso.Masks(epochs=15, batch_size=32, learning_rate=0.05, density=0.02, mask_rate=0),
    "learned": rso.Masks(epochs=15, batch_size=32, learning_rate=0.05, density=0.02),
}
masked = {}
for name, method in masks.items():
    masked[name] = rso.models.build("mlp", data)
    history = rso.fit(masked[name], data, method, seed=0)
    print(f"{name} mask: {history.cycles[-1].test_accuracy:.1%} right after {history.cycles[-1].evaluations:,} passes")
rso.lessons.compare(prediction, history.cycles[-1].test_accuracy, "Test images right, learned mask")

# %% [markdown]
# Where are the weights that are left? Each dot below is a pixel that one of the 41 weights reads; the larger the dot, the more
# weights. The darker the pixel, the more it differs from image to image: at the sides hardly anything is ever drawn.

# %%
rso.lessons.kept_pixels(masked, data)

# %% [markdown]
# The random mask reads pixels as they come. The learned one has moved to those that differ, and nobody told it which these are.
# Recorded, three seeds: random 82.5 %, learned 89.8 %, and 97.1 % with all weights. (The learned mask takes four passes a step where
# the fixed one takes one.) At 10 % there is hardly a difference: 94.5 % and 94.3 %. Where many weights are left, it matters little
# which.
#
# **And the mask alone?** Turn it round: the weights stay random for ever, and only the mask is learned. (The learning rate is 0. In place of
# a score each weight has a *chance* of being used, which ES moves up or down.) Can a network learn to read by leaving weights out?

# %%
model = rso.models.build("mlp", data)
mask_only = rso.Masks(epochs=8, batch_size=32, learning_rate=0, density=0.1, sampling="bernoulli", pairs=4)
history = rso.fit(model, data, mask_only, seed=0)
print(f"The mask alone, 10 % of the first layer's weights: {history.cycles[-1].test_accuracy:.1%} right")

# %% [markdown]
# It can, up to a point. In the record, with twice the pairs and 15 epochs, it is 72.5 %. No weight has ever been changed.

# %% [markdown]
# ## 6 · What travels (3 minutes)
#
# Training on many computers, each with some of the images, means sending: with SGD each tells the others its gradient, *D* numbers at every
# step. The relatives send less. The trick is lesson 07's: *the same seed draws the same numbers*. Two computers that share a seed
# share all random directions, and need not send them. Below, the first computer sends ten coordinates. The second one has never
# seen the gradient, and rebuilds its shadow from them.


# %%
def directions(seed, weights):
    drawn = torch.randn(10, weights, generator=torch.Generator().manual_seed(seed))
    return drawn / drawn.norm(dim=1, keepdim=True)


gradient = rso.lessons.gradient_of(rso.models.build("mlp", data), data)
weights = len(gradient)
sent = directions(7, weights) @ gradient  # on the first computer
rebuilt = directions(7, weights).T @ sent  # on the second one
cosine = torch.cosine_similarity(rebuilt, gradient, dim=0)
print(
    f"{len(sent)} numbers travel in place of {weights:,}; what was rebuilt has the cosine {cosine:.2f} with the gradient"
)

# %% [markdown]
# With RBD the *d* coordinates travel. With ES it is even simpler: all computers know all members by their seeds, each takes the losses of
# some, and sends them: two for each pair, so *2n* numbers for n pairs. GA sends a loss for each member.

# %%
print(f"{'numbers a step':38}{'SGD: D':>12}{'RBD: d':>10}{'ES: 2n':>10}")
networks = {"our network": 2_410, "dense, on MNIST (Gressmann 2020)": 101_770, "a million weights": 1_000_000}
for name, weights in networks.items():
    print(f"{name:38}{weights:>12,}{250:>10}{2 * 25:>10}")

# %% [markdown]
# 250 of 101,770 is one in 407. Nothing else is saved: each computer computes as much as before, and drawing the directions takes time, too. But
# where the line between the computers is slow, that is what one waits for.

# %% [markdown]
# ## 7 · Which when? Three questions (2 minutes)
#
# | what you have | what to take |
# |---|---|
# | a gradient | SGD, or one of its kind: nothing else in this course is as cheap |
# | a gradient, and a slow line between computers | RBD: send d numbers, not D |
# | no gradient, and many computers | ES: all members of a generation can be tried at the same time |
# | no gradient, and one computer | RSO or ES: after 30,000 losses they are a point apart here |
# | no room for all weights | a mask; learn it where few weights are left |

# %%
rso.widgets.Quiz("11", 1)

# %%
rso.widgets.Quiz("11", 2)

# %%
rso.widgets.Quiz("11", 3)

# %% [markdown]
# ## 8 · What you take home (1 minute)
#
# * **A few numbers a step are enough, if they are other ones each time**: ten coordinates of the gradient, or the losses of 50 networks.
# * ES is an estimate of the gradient, made of losses. Pairs, or ranks, take away what all losses have in common.
# * GA asks only who is best; it needs more losses for the same accuracy.
# * What has no gradient, such as a mask, can be left to evolution, and the rest to SGD.
#
# Two lines for the ledger: ES as in section 3, and below it RBD (*Subspace*) with ten directions. (Their cycles are epochs.)

# %%
model = rso.models.build("mlp", data)
es = rso.fit(model, data, rso.ES(epochs=10, batch_size=128, learning_rate=0.01), seed=0)
model = rso.models.build("mlp", data)
rbd = rso.fit(model, data, rso.Subspace(epochs=20, batch_size=32, learning_rate=4.0, dimensions=10), seed=0)
rso.lessons.ledger("11", es, rbd)

# %% [markdown]
# **What the papers say.** Gressmann et al. 2020: figures in section 2. Salimans et al. 2017 (abstract): ES works on over a thousand
# processors at once, for it "only needs to communicate scalars", single numbers. Such et al. 2017 trained networks for Atari games with a GA. Lenc et al. 2019 (abstract) call
# theirs "surprisingly competitive": at 10 % we see 94.3 % against 97.1 %, at 2 % it is 89.8 %. All our figures are of digits and a
# small network.
#
# **Where to go on.**
#
# * In a terminal, `python -m rso_lab experiments` lists the papers' claims as experiments that take minutes. `subspace`, `directions`,
#   `switch`, `evolution` and `masks` are this lesson's. `python -m rso_lab experiment mnist --size full` begins the real thing: it can be
#   interrupted, and goes on.
# * `python -m rso_lab train --help`: every setting is a flag, and `--method es` trains with a relative. The README tells more.
# * Read `rso_lab/rso.py` beside the RSO paper's Algorithm 1, and `rso_lab/relatives` beside it: each method is one short file.
# * Take a problem of your own that has no gradient. You have everything you need.
