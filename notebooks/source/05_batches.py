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
# # 05 · Batches: how many images, and for how long?
#
# **32 minutes · builds on 00 to 02.** Short of time? Skip section 5.
#
# Every guess is judged on a mini-batch, not on all images: that is what makes RSO affordable. It also makes mistakes. After
# this lesson you can
#
# * say how the luck of the draw shrinks with the number of images,
# * tell *accepted* from *improved*,
# * say what it costs to use more images, and what it brings,
# * say what happens when one mini-batch judges many weights.

# %%
# %matplotlib inline
import rso_lab as rso

print("Loading ...")
rso.lessons.begin()
data = rso.load("digits")
# or, much slower: data = rso.load("mnist", train_limit=2000, test_limit=500)

# %% [markdown]
# ## 1 · Play: one good change, a thousand judges (4 minutes)
#
# Here is one change of one weight. It is a good one: it lowers the loss over all 1437 training images (the dashed line, left
# of zero). But RSO sees a mini-batch only. The histogram shows what 1000 mini-batches say of the change. Those to the right
# of zero would turn it down, or accept its opposite.
#
# Move the slider: from how many images on is hardly a judge wrong? And how many are wrong with 30?

# %%
rso.widgets.Batches(data)

# %% [markdown]
# With 30 images about one judge in eight is wrong, from 90 on hardly any. Most changes in a search are smaller than this one,
# and then more images are needed. Small changes are what a search consists of at the end.

# %% [markdown]
# ## 2 · Exercise: how fast does the luck shrink? (6 minutes)
#
# The loss of a mini-batch is a mean over its images. A mean over n images varies less than a single image does, by a factor of
# the square root of n: that is the **standard error**. (As long as n is much smaller than the 1437 there are.)
#
# **Difficulty: easy, 4 minutes.** `differences` holds, for each image, by how much a change alters its loss. Return the
# standard error of the mean of n of them.
#
# <details><summary>Hint 1</summary>
#
# `differences.std()` is the standard deviation of a single one.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `n ** 0.5` is the square root of n.
#
# </details>


# %% nbgrader={"grade": false, "grade_id": "standard_error", "locked": false, "schema_version": 3, "solution": true}
def standard_error(differences, n):
    ### BEGIN SOLUTION
    return differences.std() / n**0.5
    ### END SOLUTION


# %%
rso.lessons.check(standard_error)

# %% [markdown]
# So to halve the luck takes *four times* the images, and the arithmetic of each loss is four times as much. Go back to the
# histogram: with 30 images, then with 120, how wide is it?

# %% [markdown]
# ## 3 · Accepted is not improved (7 minutes)
#
# A change is accepted when it lowers the loss *of the mini-batch*. What does it do to the loss of *all* training images?
# We train for three cycles and look at every change that was accepted in the third.
#
# With mini-batches of only 16 images: what share of the accepted changes makes the whole loss *worse*?

# %%
prediction = ...  # <- your prediction, between 0 and 1

# %%
of_batch, of_all = rso.lessons.accepted_changes(data, batch_size=16)
rso.plots.quadrants(of_batch, of_all)
share = sum(change > 0 for change in of_all) / len(of_all)
rso.lessons.compare(prediction, share, "Accepted, and worse for all images")
rso.lessons.promises(of_batch, of_all)

# %% [markdown]
# Every dot is left of zero: the mini-batch approved of them all. More than four in ten lie above the line all the same. And
# with mini-batches of 1000:

# %%
of_batch, of_all = rso.lessons.accepted_changes(data, batch_size=1000)
rso.plots.quadrants(of_batch, of_all)
rso.lessons.promises(of_batch, of_all)

# %% [markdown]
# With 16 images the promise is worth next to nothing: of three losses the lowest is chosen, and the lowest is the luckiest. With
# 1000 it is nearly kept.

# %% [markdown]
# ## 4 · The table of the Julia notebook (7 minutes)
#
# A student, Heesoo Song, reimplemented RSO in Julia, another programming language, and trained this small network on MNIST, ten
# cycles for each batch size. The table says what that took and reached. Below it we do the same on digits, live. Your
# prediction: 32 times the images take how many times the seconds here?
#
# | images in a mini-batch | 32 | 64 | 256 | 512 | 1024 |
# |---|---|---|---|---|---|
# | seconds, Julia, MNIST | 212 | 345 | 1641 | 2834 | 5046 |
# | accuracy, Julia, MNIST | 80.8 % | 83.5 % | 89.3 % | 91.5 % | 91.5 % |

# %%
prediction = ...  # <- your prediction: 1 is as long, 32 is 32 times as long

# %%
for batch_size in (32, 64, 256, 512, 1024):
    model = rso.models.build("one_conv", data)
    history = rso.fit(model, data, rso.RSO(cycles=10, batch_size=batch_size), seed=0)
    last = history.cycles[-1]
    print(f"batch {batch_size:4}: {last.seconds:4.1f} s, {last.test_accuracy:.1%} of the digits right")
print(rso.lessons.yours(prediction))

# %% [markdown]
# More images, more accuracy, as in Julia; but about twice the time, and not 32 times. The pictures are so small here that most
# of the time goes into what every guess costs, however many images it has. (And the package computes only what one changed
# weight can change: lesson 06.) In Julia the images are what costs: the last step, 512 to 1024, took 1.8 times as long and
# brought nothing. These are single runs: a point or two may be luck.
#
# And here is that table on MNIST itself, redone with this package and recorded:

# %%
ways = ("one_conv, batch 32", "one_conv, batch 256", "one_conv, batch 1024")
rso.widgets.Recorded("julia", "evening", against="seconds", ways=ways)

# %% [markdown]
# One convolution is so cheap that ten cycles take about 100 seconds on MNIST, too, with any of these sizes. (Other work ran on
# the machine beside it. Our recorded times are too long for that reason.) With two convolutions, not shown here, 1000 images take
# about six times as long as 32.

# %%
rso.lessons.ledger("05", history)

# %%
rso.lessons.beside_the_paper(history)

# %% [markdown]
# ## 5 · How long may a mini-batch be held? (5 minutes)
#
# The paper draws a new mini-batch for every weight. To fetch images and run the network on them costs time, so one might
# keep the same images for all weights of a neuron (of a filter, in a convolution), or for a whole layer. But then the network
# may learn these images by heart: the judge has favourites.
#
# Does it harm? Three recorded runs for each (two convolutions, four cycles, mini-batches of 500 of the 1437 images). Look at
# them against *cycle*, then against *seconds*:

# %%
ways = ("held for a weight", "held for a neuron", "held for a layer")
rso.widgets.Recorded("batch", ways=ways)

# %% [markdown]
# With 500 images it does not show after four cycles: what differs lies within the spread over the seeds. (A test image is 0.28
# percentage points here.) So large mini-batches can be held for a neuron, which saves time. And small ones? Three seeds each:

# %%
for hold in ("weight", "neuron", "layer"):
    found = []
    for seed in range(3):
        model = rso.models.build("one_conv", data, seed)
        history = rso.fit(model, data, rso.RSO(cycles=5, batch_size=30, batch_every=hold), seed=seed)
        found.append(f"{history.cycles[-1].test_accuracy:.0%}")
    print(f"30 images, held for a {hold:6}: {', '.join(found)} right")

# %% [markdown]
# The seeds differ by far more than the ways do. Had you run each way once, you would have "found" a winner. One run is an
# anecdote.

# %% [markdown]
# ## 6 · Three questions (2 minutes)

# %%
rso.widgets.Quiz("05", 1)

# %%
rso.widgets.Quiz("05", 2)

# %%
rso.widgets.Quiz("05", 3)

# %% [markdown]
# ## 7 · What you take home (1 minute)
#
# * **A change that helps the mini-batch may harm the whole**: accepted is not improved.
# * Four times the images, half the luck, four times the arithmetic.
# * Losses of different mini-batches are never compared.
#
# **What the paper says.** It uses 5000 images for each weight, a new draw each time, and does not try others. In Julia and
# here, more images read better, with less and less gain. Recorded on MNIST (two convolutions, five cycles, one seed): 32, 100,
# 1000 and 5000 images read 78.7 %, 88.8 %, 94.3 % and 97.0 %.
#
# **The question for the next lesson.** What does all this cost, and how can it be made cheaper without changing a single
# decision?
