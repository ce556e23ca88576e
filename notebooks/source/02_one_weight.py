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
# # 02 · One weight at a time: three losses, and what they tell
#
# **37 minutes · builds on 00 and 01.** Sections 5 and 6 (16 minutes more) can be left out.
#
# Lesson 01 ended with a question: what do three losses say about the slope, and what happens when they come from different
# images? After this lesson you can
#
# * write the three verbs of RSO that do the work, *evaluate*, *choose* and *apply*, and train a network with them,
# * say why all three losses need the same images,
# * say what the three losses know about the gradient,
# * read the share of kept weights, and recognise three classic bugs by their symptoms.

# %%
# %matplotlib inline
import torch

import rso_lab as rso

print("Loading ...")
rso.lessons.begin()
data = rso.load("digits")
# or, much slower: data = rso.load("mnist", train_limit=2000, test_limit=500)

# %% [markdown]
# ## 1 · Play: the three dots and the slope (6 minutes)
#
# You know the picture: the loss along one weight, and three dots. New is the arrow. It is what calculus says: the
# **gradient** is the slope of the curve at w, and the arrow points downhill, the longer the steeper. RSO never computes it.
#
# 1. Make δ small. On which side is the lower dot, and where does the arrow point?
# 2. Set δ to about 0.2, and press the button until the weight is kept. What has become of the arrow?
# 3. Now make δ so large that *neither* dot is lower than w. Does the arrow still point somewhere?

# %%
toy = rso.models.build("one_conv", data)
rso.widgets.Microscope(toy, data, "conv1.weight", (3, 0, 1, 0), gradient=True)

# %% [markdown]
# With a small δ one of the two dots is nearly always lower: the one that the arrow points to. So two extra losses reveal the
# *sign* of the slope. (Their difference even says roughly how steep it is. RSO makes no use of that: it only asks which is
# lowest.) Near the bottom of the valley the arrow is short, and beyond it points back. With a large δ both dots may lie higher
# than w, one of them across the valley, and the weight is kept, though the arrow still points downhill. How far to go, RSO
# leaves to chance and to sigma (lesson 03).

# %% [markdown]
# ## 2 · Exercise: evaluate, choose, apply (20 minutes)
#
# For one weight after another RSO does four things:
#
# | verb | what it does |
# |---|---|
# | **propose** | draw a change: `delta` from N(0, sigma_d), the normal distribution with the spread sigma_d of lesson 01 |
# | **evaluate** | take the loss at w - delta, w and w + delta |
# | **choose** | say which is best: `"minus"`, `"keep"` or `"plus"` |
# | **apply** | give the weight the value that was chosen |
#
# You write all but the first. `weights` is a tensor with all weights of a layer, `index` says which one it is, and
# `loss()` is a function that runs the network *with the weights as they are at that moment*.
#
# **Evaluate. Difficulty: medium, 9 minutes.** Return three losses: at w - delta, w and w + delta, in this order. Afterwards
# the weight must be exactly what it was.
#
# <details><summary>Help, I get an error</summary>
#
# `weights[index]` is one number of the tensor: read it with `weights[index].item()`, set it with `weights[index] = ...`.
# `loss()` needs its brackets, and nothing between them.
#
# </details>
#
# <details><summary>Hint 1</summary>
#
# First keep the old value: `w = weights[index].item()`. At the end, set the weight to it.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `weights[index] = w - delta`, then `minus = loss()`. Two more such pairs.
#
# </details>


# %% nbgrader={"grade": false, "grade_id": "evaluate", "locked": false, "schema_version": 3, "solution": true}
def evaluate(loss, weights, index, delta):
    ### BEGIN SOLUTION
    w = weights[index].item()
    keep = loss()
    weights[index] = w - delta
    minus = loss()
    weights[index] = w + delta
    plus = loss()
    weights[index] = w
    return minus, keep, plus
    ### END SOLUTION


# %%
rso.lessons.check(evaluate)

# %% [markdown]
# **Choose. Difficulty: easy, 2 minutes.** You wrote it in lesson 00, copy it from there if you like: return the name of the
# candidate with the lowest loss; where no change *lowers* the loss, `"keep"`.


# %% nbgrader={"grade": false, "grade_id": "choose", "locked": false, "schema_version": 3, "solution": true}
def choose(minus, keep, plus):
    ### BEGIN SOLUTION
    if keep <= min(minus, plus):
        return "keep"
    return "plus" if plus <= minus else "minus"
    ### END SOLUTION


# %%
rso.lessons.check(choose)

# %% [markdown]
# **Apply. Difficulty: easy, 2 minutes.** Change `weights[index]` according to `choice`.


# %% nbgrader={"grade": false, "grade_id": "apply", "locked": false, "schema_version": 3, "solution": true}
def apply(weights, index, delta, choice):
    ### BEGIN SOLUTION
    if choice == "plus":
        weights[index] += delta
    if choice == "minus":
        weights[index] -= delta
    ### END SOLUTION


# %%
rso.lessons.check(apply)

# %% [markdown]
# Now your three verbs train a network, from the last layer to the first, as in Algorithm 1 of
# [the paper](https://arxiv.org/abs/2005.05955). The package has
# searched the same weights with the same changes and images: how often do you decide as it does?

# %%
rso.lessons.train_by_hand(evaluate, choose, apply, data)

# %% [markdown]
# That is the whole method. `rso_lab/rso.py` in the package is the same, with more settings; it stands beside the paper's
# Algorithm 1, line by line.

# %% [markdown]
# ## 3 · The same images for all three (6 minutes)
#
# A loss over 100 images depends on *which* 100. A single weight changes it very little. So it matters that the three losses
# share their images: a **common mini-batch**.
#
# Here is one change of one weight, tried on 200 mini-batches of 100 images. It is a good change: it lowers the loss over all
# training images. First the losses with and without the change come from the same images, then each from images of its own.
# How often will the change *look* good, with other images? Write down a share: 1.0 is always, 0.5 is a coin.

# %%
prediction = ...  # <- your prediction, between 0 and 1

# %%
found = rso.lessons.loss_differences(data, batch_size=100)
rso.plots.differences(found)
for images, values in found.items():
    print(f"with {images} it looks good {sum(value < 0 for value in values)} times of {len(values)}")
share = sum(value < 0 for value in found["other images"]) / 200
rso.lessons.compare(prediction, share, "Looks good, with other images")

# %% [markdown]
# With common images the luck of the draw cancels: whatever makes these 100 images hard makes them hard for all three
# losses. With images of their own the luck drowns the change.

# %% [markdown]
# ## 4 · What the three losses know about the gradient (3 minutes)
#
# Whenever RSO accepts a change, it has taken a side: up or down. Calculus has an opinion, too: the sign of the gradient, for
# the same images. In a whole cycle, how often do the two agree? Write down a share.

# %%
prediction = ...  # <- your prediction, between 0 and 1

# %%
accepted, downhill = rso.lessons.signs(data, batch_size=250)
print(f"{accepted} changes were accepted, {downhill} of them downhill by the gradient.")
rso.lessons.compare(prediction, downhill / accepted, "Accepted changes that go downhill")

# %% [markdown]
# Along one weight the curve is nearly always a bowl. So however large the step, a lower point can only lie on the downhill side.
# RSO is free of *gradients*, but not of *slopes*: three losses find out which way is down. What the gradient has beyond that: it
# tells the slopes of all weights at once, from a single pass. RSO pays three losses for each weight; in return the
# loss need not have a gradient at all (lesson 10).

# %% [markdown]
# ## 5 · What share is kept, and what that tells (7 minutes)
#
# Below is a network to be watched while it trains, with mini-batches of 1000 images. On the left is its accuracy, on **held-out
# images**: a sixth of the training images, on which it is not trained. (The test images wait. Who plays with settings and looks
# at them would soon choose what suits just these.) In the middle stands, for each of its two layers (`conv1` is the first, `fc`
# the last), the share of its weights that RSO *kept* when it last went through them, because neither w - delta nor w + delta
# was better: the paper says about 10 %. On the right are the weights of its four filters, violet where they are positive,
# orange where they are negative.
#
# While the network becomes better, will it keep more of its weights, or fewer? Write your word down, run the cell after it and
# press **Start**. (**Pause** lets it rest, and Start goes on.)

# %%
prediction = ...  # <- your prediction: "more" or "fewer"

# %%
model = rso.models.build("one_conv", data)
monitor = rso.widgets.Monitor(model, data, rso.RSO(cycles=10, batch_size=1000))
monitor

# %% [markdown]
# Run the next cell when it is over, or to bring it to its end.

# %%
monitor.finish()

# %% [markdown]
# Each cycle's record has that share, too, over all layers. Here are ten cycles with mini-batches of 30 images, and the same with
# 1000 as above:

# %%
for batch_size in (30, 1000):
    model = rso.models.build("one_conv", data)
    history = rso.fit(model, data, rso.RSO(cycles=10, batch_size=batch_size), seed=0)
    shares = [f"{record.kept['all']:.0%}" for record in history.cycles]
    print(f"batch {batch_size:4}: kept {', '.join(shares)}")
    print(f"            at the end {history.cycles[-1].test_accuracy:.0%} right")
print(rso.lessons.yours(prediction))

# %%
rso.lessons.ledger("02", history)

# %%
rso.lessons.beside_the_paper(history)

# %% [markdown]
# With 1000 images first more, then fewer: there is no rule. It rises, because a good weight is harder to better. It falls in the
# end for a reason that has nothing to do with progress: RSO makes its changes smaller from cycle to cycle, and you saw in
# section 1 that a small change nearly always helps, a little. And of the two runs the one that *accepts more* reads worse. On 30
# images nearly every weight has some change that suits just these 30; on the next 30 it does harm. (The paper's 10 %, with 5000
# images of MNIST, lies between the two.)
# The share of kept weights is a reading on an instrument, not a score. Lesson 05 looks at what an accepted change does for
# *all* images.

# %% [markdown]
# ## 6 · Three classic bugs (9 minutes)
#
# For comparison, first a right `evaluate`, the package's solution of section 2, over one cycle with mini-batches of 100
# images:

# %%
rso.lessons.symptoms(data, rso.lessons.evaluate)

# %% [markdown]
# **Bug A.** It looks harmless, and you may have met it in section 2. What is wrong?


# %%
def evaluate_a(loss, weights, index, delta):
    w = weights[index]
    keep = loss()
    weights[index] = w - delta
    minus = loss()
    weights[index] = w + delta
    plus = loss()
    weights[index] = w
    return minus, keep, plus


rso.lessons.symptoms(data, evaluate_a)

# %%
rso.widgets.Quiz("02", 1)

# %% [markdown]
# **Bug B.** The verbs are the right ones, the fault is in how they are fed.

# %%
rso.lessons.bug_b(data)

# %%
rso.widgets.Quiz("02", 2)

# %% [markdown]
# **Bug C.** Nearly every weight is kept, and the network says the same digit to everything. It begins with weights that are
# all zero, and this function is to give them He's spread. (The loss before is 2.30, *lower* than that of the random network above:
# where all ten digits are equally likely the loss is -ln(1/10) = 2.30, and a random network is wrong with conviction.)


# %%
def initialise(layers):
    for weight in layers:
        weight = torch.randn(weight.shape) * (2 / weight[0].numel()) ** 0.5


rso.lessons.symptoms(data, rso.lessons.evaluate, initialise)

# %%
rso.widgets.Quiz("02", 3)

# %% [markdown]
# ## 7 · What you take home (2 minutes)
#
# * **Three losses reveal the sign of the slope**, and RSO needs no more than that.
# * All three come from the same images: a common mini-batch. Otherwise luck decides.
# * A weight is put back by *setting* it to its old number. The share of kept weights is a reading, not a score.
#
# **What the paper says.** On MNIST, with 5000 images for each weight, RSO gets 98.0 % after 5 cycles. It says of the opposite
# direction, w - δ, that trying it often leads to a better choice. Here are recorded runs on *digits* (two convolutions, four
# cycles each, the same 500 images for all weights of a neuron: lesson 05) with both directions, as in the paper, and with w + δ
# only, which takes two losses in place of three: how much is the third worth? (What is called a difference, and when: lesson
# 04.)

# %%
rso.widgets.Recorded("proposals", ways=("the usual way", "w + δ only"))

# %%
rso.lessons.paired("proposals", "the usual way", "w + δ only")

# %% [markdown]
# **The question for the next lesson.** The slope's sign is known. How far should one go, and why not change many weights at
# once?
