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
# # 01 · Initialisation: how random should the weights be?
#
# **30 minutes · builds on 00.** Short of time? Skip section 5.
#
# Lesson 00 began with random weights and ended with the question: *how* random should they be? After this lesson you can
#
# * say why images are normalised, and do it,
# * choose the spread of a layer's initial weights with **He's rule**, and see what happens without it,
# * say what sigma_d is, the number that RSO takes its steps by,
# * say how far the trained weights are from where they began.

# %%
# %matplotlib inline

import rso_lab as rso

print("Loading ...")
rso.lessons.begin()
data = rso.load("digits")
# or, much slower: data = rso.load("mnist", train_limit=2000, test_limit=500)

# %% [markdown]
# ## 1 · Play: a signal on its way through eight layers (4 minutes)
#
# Below is a network of eight layers, with random weights. An image enters on the left (layer 0), each layer makes new
# numbers of it, the **activations**, and passes them on. The left picture shows how large they are after each layer
# (the root of the mean of their squares), the right one how probable the network thinks its answer is, for 500 images.
#
# Move the slider: it multiplies all weights. Find out
#
# 1. what happens to the signal at 0.5, and at 2,
# 2. at which place the last layer's activations are about as large as the images.

# %%
rso.widgets.Initialisation(data)

# %% [markdown]
# Eight times in a row, a little too small is nearly nothing, and a little too large is a flood. With nearly nothing all
# answers are equally likely, whatever the image is. In the flood the network is quite sure of answers that are mere chance.
# In neither case would a small change of a weight tell us much.
#
# In between the signal keeps its size, within about a third, around the slider's 1: **He's rule** (He et al., 2015). (The small jump
# at the end: the last layer has no ReLU behind it, which would take half away.) You will write it down in section 3.

# %% [markdown]
# ## 2 · The images first (5 minutes)
#
# What enters should have a size that does not depend on the scanner. So all images are **normalised**: from each pixel the
# mean of *all* training pixels is subtracted, and the result is divided by their **standard deviation**, which says how far
# pixels typically are from their mean. Then the mean is 0 and the deviation 1.
#
# **Exercise. Difficulty: easy, 3 minutes.** Write `normalise`: `x` is a tensor of images, `x.mean()` and `x.std()` are its
# mean and its deviation.
#
# <details><summary>Hint 1</summary>
#
# Two steps: first take away the mean, then divide by the deviation. Both are one number, for all images together.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Mind the brackets: `a - b / c` divides before it subtracts.
#
# </details>


# %% nbgrader={"grade": false, "grade_id": "normalise", "locked": false, "schema_version": 3, "solution": true}
def normalise(x):
    ### BEGIN SOLUTION
    return (x - x.mean()) / x.std()
    ### END SOLUTION


# %%
rso.lessons.check(normalise)

# %% [markdown]
# `rso.load` has done this already. The test images are shifted and divided by the same two numbers: those of the
# *training* images, for the test images are not to be looked at before the end. (We do look at test accuracy, to keep
# the first lessons simple; from lesson 02 on, where it matters, images are held out for that.)

# %%
print(f"training images: mean {data.x_train.mean():.3f}, deviation {data.x_train.std():.3f}")
print(f"test images:     mean {data.x_test.mean():.3f}, deviation {data.x_test.std():.3f}")

# %% [markdown]
# ## 3 · He's rule (8 minutes)
#
# One output neuron multiplies each of its inputs by a weight and adds all up. How many there are is its **fan-in**. The sum
# of many small random numbers grows with their number: with a fan-in of 144 it is typically 12 times as large as one of
# them, for 12 is the square root of 144. To keep the size, the weights have to be smaller by that square root.
#
# Then comes **ReLU**: it sets what is negative to zero, about half of it. Half of the sum of squares is gone. So the rule has
# a 2 in it. The weights are drawn from a normal distribution with mean 0 and the standard deviation
#
# $$\sigma = \sqrt{\frac{2}{\text{fan-in}}}$$
#
# **Exercise. Difficulty: medium, 5 minutes.** Write `he_sigma`. It gets a layer's weight tensor, with a shape such as
# `(16, 8, 3, 3)`. That is a **convolution**: it slides a small window, its *kernel* of 3 x 3 places, over pictures. Here 8 pictures
# come in, the *input channels*, and each of the 16 output neurons, or *filters*, has a kernel for each of them and makes one picture.
#
# <details><summary>Hint 1</summary>
#
# `weight[0]` is all that belongs to the first output neuron.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `weight[0].numel()` counts it: 8 x 3 x 3 = 72 in the example. `number ** 0.5` is a square root.
#
# </details>


# %% nbgrader={"grade": false, "grade_id": "he_sigma", "locked": false, "schema_version": 3, "solution": true}
def he_sigma(weight):
    ### BEGIN SOLUTION
    return (2 / weight[0].numel()) ** 0.5
    ### END SOLUTION


# %%
rso.lessons.check(he_sigma)

# %% [markdown]
# **sigma_d.** The weights that were drawn have a standard deviation of their own, close to He's. RSO measures it once, layer
# by layer, before the search begins, and calls it sigma_d (d is the number of the layer). It is RSO's only measure of
# length: its first changes are drawn from N(0, sigma_d), a normal distribution of that spread. The paper's network for MNIST,
# layer by layer (the *batch norms* between them, which rescale each channel, are left out here; lesson 06):

# %%
model = rso.models.paper_cnn()
for name, weight in model.named_parameters():
    if weight.dim() > 1:
        fan_in, sigma_d = weight[0].numel(), weight.std(correction=0)
        print(f"{name:13} fan-in {fan_in:3}   He {(2 / fan_in) ** 0.5:.3f}   sigma_d {sigma_d:.3f}")

# %% [markdown]
# ## 4 · How good is a random network? (4 minutes)
#
# Here are 300 networks as in lesson 00, untrained, each with weights of its own. Most will be near 10 %. What do you think:
# how many of the test images does the *best* of the 300 get right? Write down a number between 0 and 1.

# %%
prediction = ...  # <- your prediction

# %%
accuracies = rso.lessons.random_networks(data, 300)
rso.plots.shares(accuracies, (max(accuracies), "the best"))
rso.lessons.compare(prediction, max(accuracies), "Test images right, best of 300")

# %% [markdown]
# To draw networks until one reads well is a search, too, but a poor one: every draw throws away all that the one before had
# found. RSO keeps what it has and changes one weight. (And picking the best of 300 *by the test images* would be cheating: it
# is the luckiest on these images. On others it would do worse.)

# %% [markdown]
# ## 5 · How far is the answer from the start? (5 minutes)
#
# Take all weights of a network as one long arrow. Training moves its tip. How far, as a share of the arrow's length at the
# start? 0 means that nothing moved, 1 that it moved as far as the start is from zero.
#
# The paper says that the random start "is already close to the final solution". What do you expect after ten cycles?

# %%
prediction = ...  # <- your prediction: a share, such as 0.05, 0.5 or 2

# %%
model = rso.models.build("one_conv", data)
start = [weight.detach().clone() for weight in model.parameters() if weight.dim() > 1]
history = rso.widgets.watch(rso.histories(model, data, rso.RSO(cycles=10, batch_size=1000), seed=0))

# %%
weights = [weight for weight in model.parameters() if weight.dim() > 1]
share = rso.experiments.moved(start, weights)
print(f"The weights moved by {share:.2f} of their first length;", rso.lessons.yours(prediction))

# %% [markdown]
# That is not close. What the paper shows is that *few visits* are enough: each weight has had ten guesses, and the network
# reads. Few steps need not be small ones.
#
# And from the wrong start? These runs were recorded, with a network of two convolutions, four cycles and three seeds (a
# **seed** is the number that fixes all that a run draws by chance): with He's weights, with a tenth of them, and with ten
# times. Sigma_d is measured on the weights as they come, so with ten times the weights the steps are ten times as long, too. A
# line is the mean over the seeds, its band reaches from the lowest to the highest, and the axis does not always begin at 0. The
# line above the picture is the command that made it: you need not run it. *(class)* means runs of minutes, on digits; later
# there is *(evening)*, longer ones on MNIST or CIFAR-10.

# %%
rso.widgets.Recorded("initialisation")

# %% [markdown]
# Too large a start costs some points, too small a start ruins the search: the signal hardly arrives, and steps that are a
# tenth as long cannot make up for it in four cycles. SGD, the method with gradients, is in the picture to compare with: it
# goes through all images in each of its twenty "cycles", and ends a little higher.

# %% [markdown]
# **The ledger.** The ten cycles above are those of lesson 00 once more, so the line is the same but for the time (if you
# changed nothing there):

# %%
rso.lessons.ledger("01", history)

# %%
rso.lessons.beside_the_paper(history)

# %% [markdown]
# ## 6 · Three questions (2 minutes)

# %%
rso.widgets.Quiz("01", 1)

# %%
rso.widgets.Quiz("01", 2)

# %%
rso.widgets.Quiz("01", 3)

# %% [markdown]
# ## 7 · What you take home (2 minutes)
#
# * **The scale of the initial weights decides whether signals survive the layers.** He's rule keeps them as large as they came.
# * sigma_d is the spread of a layer's weights at the start, and RSO's unit of length.
# * The search begins with what chance has drawn, and moves far from it in few steps.
#
# **What the paper says.** It uses He's rule throughout (Algorithm 1, lines 2 to 5), and takes the 98 % on MNIST after five
# visits to each weight as a sign that the start is close to the answer. We measured the distance and would not call it close.
#
# **The question for the next lesson.** RSO makes a guess for one weight and compares three losses. What do these three
# numbers say about the slope, and what happens when they come from different images?
