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
# # 06 · What it costs: one weight touches one channel
#
# **38 minutes · builds on 00 to 02, and on the order of the layers in 04.** Sections 6 and 7 (7 minutes more) can be left out.
# Short of time? Skip section 4.
#
# Lesson 05 ended with a question: what does all this cost, and how can it be made cheaper without changing a single decision?
# After this lesson you can
#
# * count the multiply-adds of a layer, of a network and of a cycle,
# * say what one changed weight changes in a network, and what it cannot change,
# * write the update that saves most of the work, and show that it is exact,
# * say how large a network RSO can train, and why not a larger one.

# %%
# %matplotlib inline
import torch

import rso_lab as rso

print("Loading ...")
rso.lessons.begin()
data = rso.load("digits")
# or, much slower: data = rso.load("mnist", train_limit=2000, test_limit=500)

# %% [markdown]
# ## 1 · Play: a network lights up (5 minutes)
#
# This is the paper's network: six convolutions, each of 16 output channels, and a linear layer, `fc`, with one output for each
# digit. A **channel** is what one filter makes of a picture: a small picture itself. Each framed square is a channel, all are
# of the same digit. One weight of one layer has been changed. What is grey is *exactly* as it was, what is coloured is not: the
# darker, the more.
#
# The bars below are the **multiply-adds** that each layer takes until the new loss is known: products, each added to a sum. There
# are three ways. *Plain* computes everything anew. *Cached* begins at the changed layer. *Incremental* computes only what
# the weight can change.
#
# 1. Move the layer slider. What stays grey?
# 2. In the layer of the weight: how many channels have changed? And in the next one?
# 3. At which layer does a change cost least, and at which one most?

# %%
rso.widgets.Ripple(data)

# %% [markdown]
# **One weight touches one channel.** What lies before it cannot know of it. In its own layer a weight belongs to one filter,
# and so to one output channel. The next layer mixes all channels, and from there on everything is new.
#
# Look at the scale of the bars: from one line to the next it is *a hundred times* as much. The blue bars are next to nothing in
# the layer of the weight, small in the next one, and as high as the others behind that. So *incremental* goes from one product
# for a weight of `fc` to about 100,000 for one of `conv1`.
#
# (Sometimes a change dies on the way: look at `conv6`, channel 7. The picture shows what comes before the **ReLU**, which sets to
# zero what is negative. For this digit it does so with all of that channel, changed or not, and the answer stays.)

# %% [markdown]
# ## 2 · Exercise: count them (6 minutes)
#
# A convolution puts out one number for each output channel and each place of the image. Each of these numbers is a sum over all
# input channels, and in each of them over the places of the kernel: a *3 x 3* kernel has nine. (The zeros around the image, the
# *padding*, count, too: it is simpler, and the paper does so.)
#
# **Difficulty: easy, 4 minutes.** Return the multiply-adds of a convolution, for one image. `kernel` is 3 for a 3 x 3 kernel,
# `height` and `width` are those of the image that comes out.
#
# <details><summary>Hint 1</summary>
#
# How many numbers come out? And how many products does one of them take?
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `outputs * height * width` numbers come out. One takes `inputs * kernel**2` products.
#
# </details>


# %% nbgrader={"grade": false, "grade_id": "multiply_adds", "locked": false, "schema_version": 3, "solution": true}
def multiply_adds(outputs, inputs, kernel, height, width):
    ### BEGIN SOLUTION
    return outputs * height * width * inputs * kernel**2
    ### END SOLUTION


# %%
rso.lessons.check(multiply_adds)

# %% [markdown]
# With your function, the paper's network on MNIST's 28 x 28 pixels, layer by layer, and the package's own count beside it. (A
# linear layer is a convolution on an image of one pixel.)

# %%
rso.lessons.count_network(multiply_adds)

# %% [markdown]
# All convolutions but the first have the same number of weights. Yet `conv2` takes sixteen times the multiply-adds of `conv6`:
# its images are four times as high and four times as wide. The **pooling** in between, which puts the mean of four neighbouring
# pixels in the place of the four, makes them smaller.

# %% [markdown]
# ## 3 · Remember what rests (6 minutes)
#
# Three million multiply-adds for one image: but a loss takes 5000 images, a weight three losses, and there are 11,834 weights
# (the ten biases of `fc` among them; the batch norms, which lesson 00 counted in, are left out here). Can some of it be spared?
#
# RSO searches the last layer first. While it searches `conv4`, the layers `conv1` to `conv3` rest: their turn comes later. So what
# they put out for a training image is the same, whatever happens to `conv4`. Compute it *once* for all training images, store
# it, and begin each candidate at `conv4`. The paper does so: an **activation cache** (§4.7).
#
# Take one candidate for each weight of the network, and add up what they cost. By what factor does the cache make the sum
# smaller? Write down a number.

# %%
prediction = ...  # <- your prediction: 1 is no fewer, 2 is half, ...

# %%
model = rso.models.paper_cnn()
totals = rso.lessons.candidate_table(model, torch.randn(2, 1, 28, 28))
print(f"cached: {totals['plain'] / totals['cached']:.1f} times fewer;", rso.lessons.yours(prediction))
print(f"incremental: {totals['plain'] / totals['incremental']:.1f} times fewer")

# %% [markdown]
# Each row is a change in another layer, the numbers are for one candidate and one image. The last row adds it up over all
# weights. The paper says 3.0 for the cache: our count agrees. (It leaves out the batch norms, as we do here. `fc` has ten
# biases beside its 160 weights.)
#
# And the last column? For a change in `conv4`, the cache still computes all sixteen channels of `conv4`. But only one has changed.

# %% [markdown]
# ## 4 · Exercise: a change travels as a change (10 minutes)
#
# A convolution is a sum, and `weight[i, j, a, b]` stands in it in one place: it multiplies input channel `j`, shifted by `a`
# rows and `b` columns, and goes into output channel `i`. If it grows by `delta`, that channel grows by `delta` times the
# shifted input. All the rest stays. If the old output has been kept, the convolution need not be computed again.
#
# **Difficulty: medium, 8 minutes.** `z` is what the convolution put out, of shape (images, outputs, height, width). `padded`
# is its input with the margin of zeros, (images, inputs, height + 2, width + 2). Return what it puts out when `weight[index]`
# has grown by `delta`. Leave `z` as it is: the other candidate, w - delta, needs it, too.
#
# <details><summary>Help, I get an error</summary>
#
# *The size of tensor a must match the size of tensor b*: the input with its margin is larger than the output. Take
# `height` rows and `width` columns of it. (A slice `start:end` has `end - start` rows.) *IndexError*: the first index of `z`
# and of `padded` counts the images, the second one the channels.
#
# </details>
#
# <details><summary>Hint 1</summary>
#
# `new[:, i]` is output channel i of all images, `padded[:, j]` input channel j.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Kernel place (0, 0) looks at the input from row 0 and column 0 on: `padded[:, j, 0:height, 0:width]`. And place (a, b)?
#
# </details>


# %% nbgrader={"grade": false, "grade_id": "update", "locked": false, "schema_version": 3, "solution": true}
def update(z, padded, index, delta):
    i, j, a, b = index
    height, width = z.shape[2:]
    new = z.clone()
    ### BEGIN SOLUTION
    new[:, i] += delta * padded[:, j, a : a + height, b : b + width]
    ### END SOLUTION
    return new


# %%
rso.lessons.check(update)

# %% [markdown]
# That is one product for each pixel, instead of 16 x 16 x 9 = 2304. The next layer takes a change in one of its sixteen input
# channels: it adds what *the change* makes of its output, a sixteenth of its work. Behind it all channels have changed, and the
# rest is computed as ever.
#
# That is all the package does, for every kind of layer (`rso_lab/incremental.py`). It is no approximation: the losses are the
# same. Well, up to the last digits, which depend on the order in which a computer adds up.

# %% [markdown]
# ## 5 · A cycle: counted, and by the clock (9 minutes)
#
# Now a whole cycle: all three losses of all weights. The bars say how much the search of each layer takes (5.4e+14 is
# 5.4 x 10 to the power of 14). One price we have left out so far: the old outputs, which *incremental* adds to, belong to one
# mini-batch. Each new mini-batch has to be run once, from the searched layer on. That gives the old outputs and the loss at w;
# then w - delta and w + delta come cheap.
#
# 1. Make the network deeper. Does the cache save more, or less?
# 2. Set *images*, the size of a mini-batch, to 50. What happens to the sum, and what to the ratios?
# 3. Hold each mini-batch for a *neuron*: all weights of one filter get the same images (lesson 05). Which of the three ways
#    gains by it?

# %%
rso.widgets.Cost((1, 28, 28))

# %% [markdown]
# *Cached* saves what lies before the searched layer: the deeper the network, the more that is. *Incremental* saves most of that
# layer and of the next one, too: two layers, however deep the network is. More images cost more, in proportion, with any of the
# three. And held images help *incremental* alone: only there the next weight can use what has been computed for the one before.
#
# That was counted. Now the clock: the same network on digits, with 250 images. A few weights of each layer are timed, and the
# time of one is multiplied by the number of weights. With the images held for a neuron, *incremental* takes about 20 times fewer
# multiply-adds than *plain*. How many times faster will it be?

# %%
prediction = ...  # <- your prediction: 1 is as fast as plain, 20 is as the count says

# %%
found = rso.lessons.measure_cycle(data, batch_size=250, count=6)
rso.lessons.cost_table(found)
print(rso.lessons.yours(prediction))

# %% [markdown]
# **No decision has changed.** (Should one be missing in yours: it was a tie, which the last digits decide. In a long run such a
# tie comes, and from there on it is another run, as with another seed.) The time falls, and by less than the count. Digits are
# small pictures, 8 x 8 and at the end 2 x 2. There, what is no multiply-add weighs much:
#
# * drawing and fetching the images of each mini-batch,
# * writing activations to memory and reading them again,
# * the statistics of the batch norms, the ReLUs, the pooling,
# * Python, which says for each weight what is to be done.
#
# Recorded runs with only 50 images, and new ones for each weight, show it even more:

# %%
rso.lessons.recorded_costs()

# %% [markdown]
# There *incremental* takes half the multiply-adds of *cached*, and only a sixth less time. With few images, most of the time
# goes into what each weight costs anyway.
#
# **The ledger.** The run of lesson 00 once more, with the images held for a neuron: as many evaluations as there.

# %%
model = rso.models.build("one_conv", data)
history = rso.fit(model, data, rso.RSO(cycles=10, batch_size=1000, batch_every="neuron"), seed=0)
rso.lessons.ledger("06", history)

# %% [markdown]
# If you have done lesson 00, compare the multiply-adds: 5.5 billion there. That run was *incremental*, too: it is what the
# package takes by itself. All the difference comes from the images that are held.

# %%
rso.lessons.beside_the_paper(history)

# %% [markdown]
# ## 6 · What a batch norm does to this (4 minutes)
#
# The paper's network has a **batch norm** behind each convolution: in each channel it subtracts the mean and divides by the spread,
# *over all images of the mini-batch*. So what it makes of an image depends on the company that the image is in. That
# would be the end of the activation cache: with each new mini-batch the stored numbers would be wrong.
#
# Here is one digit in two mini-batches of 101, the other images being different. By how much does the input of `conv3` differ,
# at the place where it differs most?

# %%
for statistics, share in rso.lessons.company(data).items():
    print(f"with {statistics} statistics: by {share:.1%} of the largest number")

# %% [markdown]
# The way out: the layers that rest use the mean and the spread of the *whole training set*, taken once a cycle. Then company plays no
# part, and the cache is right. The searched layer, and all behind it, use those of the mini-batch. (The paper does not say
# how it does it. This is our reading.)
#
# And the counting? A batch norm treats each channel by itself. One changed channel has a new mean and a new spread, the other
# fifteen keep theirs: it does not make the change any wider. But it cannot put out its first number before it has seen the last
# image. So all activations are written and read once more: time that no count of products shows.

# %% [markdown]
# ## 7 · How far does it go? (3 minutes)
#
# Twice as many channels in every layer, 32 in place of 16. How many times the multiply-adds will a cycle take? Write down a number.

# %%
prediction = ...  # <- your prediction

# %%
widths = (4, 8, 16, 32, 64, 128, 256)
counted = rso.lessons.growth(widths, (1, 28, 28), batch_size=5000)
narrow, wide = (cost for weights, cost in counted["plain"][2:4])
print(f"from 16 to 32 channels: {wide / narrow:.1f} times;", rso.lessons.yours(prediction))

# %% [markdown]
# Twice the channels on either side of a convolution are four times the weights. So there are four times as many weights to
# search, and each candidate costs four times as much. **The cost of a cycle grows with the square of the number of weights.**
#
# How long is that? First the speed of this machine, measured in forward passes of the paper's network, on one thread. The
# level black lines say how far it gets in an hour, a day, a year.

# %%
images = torch.randn(200, 1, 28, 28)
model = rso.models.paper_cnn()
per_second = rso.lessons.speed(model, images)
rso.plots.growth(counted, per_second)

# %%
for way, points in counted.items():
    weights, cost = points[-1]
    years = cost / per_second / (365 * 24 * 3600)
    print(f"{way:12} {weights:,} weights: {years:,.0f} years for one cycle")

# %% [markdown]
# This is counted and extrapolated, not measured: nobody waits so long. (With mini-batches as the paper has them: 5000 images, new
# ones for each weight.) Both axes go up in powers of ten, and each line is straight: ten times the weights, a hundred times the
# cost. To compute less moves a line down, but does not tilt it: 6 times fewer multiply-adds allow a network of about 2.5 times
# the weights, the square root of 6.
#
# A gradient costs about as much as to run the images through the network three times (lesson 08), and tells the slopes of *all*
# weights. That is why networks of millions of weights are trained with gradients. RSO is at home where they are few, or where
# there is no gradient.

# %% [markdown]
# ## 8 · Three questions (1 minute)

# %%
rso.widgets.Quiz("06", 1)

# %%
rso.widgets.Quiz("06", 2)

# %%
rso.widgets.Quiz("06", 3)

# %% [markdown]
# ## 9 · What you take home (1 minute)
#
# * **One changed weight changes one channel, so little has to be computed again.** What lies before it rests, and behind it a
#   change travels as a change.
# * That is exact, up to the rounding of the last digits: the same losses and decisions for a fraction of the work. The clock
#   gains less than the count says.
# * A cycle's cost grows with the square of the number of weights.
#
# **What the paper says.** Its activation cache saves a factor of 3.0 on MNIST and of 3.5 on its network for CIFAR-10 with ten
# layers. Our count finds 3.0, too. The change of one channel is ours. With it a candidate takes 13 times fewer multiply-adds than
# plain; over a cycle that is 6 times fewer with new images for each weight, and nearly 20 where they are held for a neuron.
#
# **The question for the next lesson.** Your computer has two cores or more, and all this used one. Can several weights be
# searched at the same time?
