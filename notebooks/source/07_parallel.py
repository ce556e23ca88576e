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
# # 07 · In parallel: can several weights be searched at the same time?
#
# **35 minutes · builds on 00 to 03, and 06.** Section 6 (3 minutes more) can be left out.
# Short of time? Skip section 5.
#
# A cycle takes long, one weight after the other, and the other cores of the computer lie idle. Can several weights be
# searched at the same time? They can; but then none of them knows what the others are about to do. After this lesson you can
#
# * show two moves, each good by itself, that do harm together,
# * say which weights see which state in the paper's two parallel searches, and merge what was found,
# * say when merging keeps what it promised, and when not,
# * say how many times as fast some workers are, and what limits them.

# %%
# %matplotlib inline
import rso_lab as rso

print("Loading ...")
rso.lessons.begin()
data = rso.load("digits")
# or, much slower: data = rso.load("mnist", train_limit=2000, test_limit=500)

# %% [markdown]
# ## 1 · Play: two good moves (5 minutes)
#
# A map of the loss over two weights of lesson 00's network, still random; all others stay as they are. The lines are heights,
# as on a hiking map. The white dot is where we stand. Each of the two weights has looked at the three losses by itself, while
# the other one rested, and taken the best: the blue arrow and the orange one. Now both moves are made (*merged*): the black
# arrow. It is their sum, and nobody has looked at the loss there.
#
# Is the gain of both as large as the two gains added up? Below the menu it is said in words.
#
# 1. *one filter, neighbours*: make the size of the moves 1 (it is in units of sigma_d), then 1.5, then 2.
# 2. Make it small, 0.3. Is there still a clash?
# 3. Back to 2, and try the other pairs. Which of them clashes? (*one output neuron*: two weights of the last layer.)

# %%
rso.widgets.Clash(data)

# %% [markdown]
# Two neighbours of one filter read nearly the same pixels. What the one mends, the other mends as well; together they go too
# far, across the valley and up the other side. With small steps they hardly notice each other. With a size of 2 only the neighbours
# *clash*; three of the others lose a part, and of the corners one rests: no move of that size helps it. Some pairs even help each
# other: the corners, at size 1.

# %% [markdown]
# ## 2 · Three ways to search a layer (8 minutes)
#
# The paper searches the weights of a *convolution* in three ways (§4.6). What differs is which state of the network a weight sees
# when its three losses are taken.
#
# * **One by one**: it sees all that was found before it. This is the algorithm of the lessons so far. Nobody can begin before
#   the one before is done.
# * **Neurons apart**: each output neuron (filter) has a worker. It searches the neuron's weights one by one and sees what it found
#   itself. The other neurons are to it as they were before the *sweep*, the search of the layer. (`parallel="neuron"`)
# * **Weights apart**: every weight has its three losses against the state before the sweep. (`parallel="layer"`)
#
# At the end of the layer, all that was found is merged. In the picture: neuron 2's weight 4 (counted from 0) is searched.

# %%
rso.plots.states()

# %% [markdown]
# In the two pictures on the right no worker needs what another one finds. So they can all work at the same time, on as many
# cores as there are. The linear layer at the end is searched one by one, as in the paper.
#
# **Exercise. Difficulty: easy, 5 minutes.** Write the merge for neurons apart. `before` is the convolution's weight tensor
# before the sweep, of shape (neurons, inputs, 3, 3). `found` is a list, with a tensor of the same shape for each neuron:
# `found[i]` is the *whole* tensor as worker i has left it. Worker i has changed neuron i only; the rest in it is old. Return
# one new tensor in which every neuron is as its own worker left it. Leave `before` and `found` as they are.
#
# <details><summary>Hint 1</summary>
#
# Begin with a copy: `merged = before.clone()`.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `found[i][i]` is neuron i as worker i left it. Put it into `merged[i]`, for each i.
#
# </details>
#
# <details><summary>Help, it stopped with a RuntimeError about sizes</summary>
#
# `merged[i]` is one neuron, `found[i]` is a whole tensor: it takes a second `[i]`.
#
# </details>


# %% nbgrader={"grade": false, "grade_id": "merge", "locked": false, "schema_version": 3, "solution": true}
def merge(before, found):
    ### BEGIN SOLUTION
    merged = before.clone()
    for i, weights in enumerate(found):
        merged[i] = weights[i]
    return merged
    ### END SOLUTION


# %%
rso.lessons.check(merge)

# %% [markdown]
# ## 3 · How often do moves clash? (7 minutes)
#
# We take a network with two convolutions after one cycle of training, and let each of the 2,320 weights of the second one (16
# filters of 144 weights and a bias) choose its move by itself, on the same 500 images, with the step of a first cycle. Each move
# **promises** a gain: the loss without it minus the loss with it. Now we merge two of them, drawn at random, 200 times. What share
# of the pairs *clash*: both together gain less than the better one alone?

# %%
prediction = ...  # <- your prediction, between 0 and 1

# %%
searched = rso.lessons.SearchedApart(data)
share = rso.lessons.clashing_pairs(searched, count=200)
rso.lessons.compare(prediction, share, "Pairs that clash")

# %% [markdown]
# Two weights of 2,320 have little to do with each other, most of the time. So is all well? A sweep does not merge two moves but
# all of them. Your prediction: of what the 2,320 moves promise together, what share is left? (1 is all of it, 0 nothing. Below 0
# the loss is higher than before.)

# %%
prediction = ...  # <- your prediction, 1 or less; it may be negative

# %%
merged, sizes = (2, 10, 100, 1000, 2320), (1, 0.1, 0.01)
table = rso.lessons.kept_promises(searched, merged, sizes, count=10)
rso.plots.promises(table, merged, sizes)

# %%
print(f"all merged, step 1: {table[0, -1]:.0%} is left;", rso.lessons.yours(prediction))

# %% [markdown]
# Read it row by row. With the step of the first cycle, ten moves keep most of what they promise, and a hundred do harm. There are
# *many pairs* among many moves: 45 among 10, 2.7 million among 2,320. Each clashes a little, and the little adds up.
#
# Read it column by column. The smaller the step, the more is kept. (In the limit of tiny steps all of it is: then the loss is
# nearly a plane, and on a plane gains add up. That is why training with gradients may change all weights at once: its steps are
# small.) In a training, sigma is annealed from 1 to 0.1: late in training moves clash less. (All 2,320 at once still do
# harm here at 0.1.)
#
# And neurons apart? Within a neuron the moves are searched one by one and cannot clash. Only 16 things are merged:

# %%
merged, sizes = (1, 2, 4, 8, 16), (1, 0.1)
table = rso.lessons.kept_promises(searched, merged, sizes, apart="neuron", count=10)
rso.plots.promises(table, merged, sizes, what="neurons")

# %% [markdown]
# Neurons clash, too, but with the largest step and all 16 of them more than a third of the promise is left, where the weights apart
# lost four times what was promised.

# %% [markdown]
# ## 4 · Does it still train? (5 minutes)
#
# The same network, two cycles, the same proposals and mini-batches; only the state that the weights see differs. So all three
# take the same number of evaluations. One by one it reads about 86 % of the test images after these two short cycles. What do
# *neurons apart* reach?

# %%
prediction = ...  # <- your prediction, between 0 and 1

# %%
runs = {}
for name, apart in (("one by one", None), ("weights apart", "layer"), ("neurons apart", "neuron")):
    history = rso.lessons.train_apart(data, apart, cycles=2)
    runs[name] = [history]
rso.plots.comparison(runs)

# %%
rso.lessons.compare(prediction, history.cycles[-1].test_accuracy, "Neurons apart")

# %% [markdown]
# As the tables promised. After the first cycle, with its large steps, weights apart reads no more than guessing does: the merged
# moves have spoiled the network. But two cycles with one seed are an anecdote. Recorded: the same network, three seeds, 20 cycles,
# in which sigma has time to shrink.

# %%
twenty = [f"{way}, 20 cycles" for way in ("one by one", "neurons apart", "weights apart")]
rso.widgets.Recorded("parallel", ways=twenty)

# %% [markdown]
# At the end: one by one 97.7 %, neurons apart 95.6 %, weights apart 92.8 %, the means of three seeds. So the gap shrinks with the
# steps, and it does not close here. Choose *parallel (evening)* for five cycles on MNIST.
#
# The paper's Figure 4 has MNIST with 50 cycles and 5000 images for each weight: there both parallel searches end *almost as good* as
# the sequential one, and on CIFAR-10 clearly behind it. We see the order of the three, but not that they end almost level. Ours are
# fewer cycles, with fewer images: we have not tried the paper's size.

# %%
rso.lessons.ledger("07", history)  # neurons apart, the last of the three

# %%
rso.lessons.beside_the_paper(history)

# %% [markdown]
# ## 5 · What do workers gain? (7 minutes)
#
# Now the other side: the time. One cycle of the paper's network on digits, neurons apart, took 20.1 s with one worker, and 12.1 s
# with two. Not half! Some of the work cannot be shared: the linear layer, batch norms, statistics, measuring. Every worker does it
# for itself. **Amdahl's law**: what cannot be shared takes as long as before, however many help; so if a fifth cannot be
# shared, a hundred workers are at most five times as fast.
#
# The picture shows who does what when, in one convolution after the other, the last one first. (A model: its two constants come
# from those measurements; how the work is divided among the layers is counted in multiply-adds, as in lesson 06.)
#
# 1. Go from 1 to 16 workers. Why does nothing change from 8 to 15? Look for those who wait.
# 2. Set *share*, the part of the work that can be shared, to 100 %, then to 50 %. (**As measured** brings it back.)
# 3. Choose *every mini-batch*. This way is **exact**, up to the last digits: each worker has a slice of the images of each
#    mini-batch, and they put their losses together. Nothing clashes. But they have to talk to each other for *every weight*.
#    Take two workers: how short must an exchange be for this to pay? (1000 µs, microseconds, are a millisecond.)

# %%
rso.widgets.Workers()

# %% [markdown]
# A layer has 16 neurons, and a neuron is not cut in two. Eight workers have two each. With 15 workers one of them still has two,
# and the others wait for it.
#
# The exact way searches neuron after neuron, which took 22.9 s with one worker; with two it took 72.5 s: it was 3.2 times as
# slow. The paper's network has six batch norms, each of which needs the mean over *all* images of the mini-batch: that makes
# 47,930 exchanges a cycle. Here each took 1.3 milliseconds, waiting included. (Without any waiting, two processes exchange a
# few numbers in 0.6 milliseconds.) By the model, two workers gain from it where an exchange takes less than 0.24 milliseconds
# (239 µs), or where the images are so many or so large that the arithmetic in between takes longer. We have not measured such a
# case.

# %% [markdown]
# ## 6 · Really: two processes (3 minutes)
#
# `torchrun`, which comes with torch, starts the same program several times side by side, and lets the processes find each other.
# In a terminal, for the paper's network:
#
#     torchrun --nproc-per-node 2 -m rso_lab train --model paper_cnn --parallel neuron
#
# The next cell does it with the small network, first with one process, then with two. Every process has to import torch first: on
# a small machine that takes longer than this little search. So do not expect a gain; look at the weights. A **checksum** is a short
# number made of all weights: if it is the same, so are they.
#
# Will one process and two end in the same weights?

# %%
prediction = ...  # <- your prediction: "same" or "different"

# %%
rso.lessons.on_processes((1, 2), cycles=2)
print(rso.lessons.yours(prediction))

# %% [markdown]
# The same, bit for bit. Both processes draw the same proposals from the same seed, and what a neuron finds does not depend on who
# searches it. So the number of workers changes the time and nothing else.

# %% [markdown]
# ## 7 · Three questions (2 minutes)

# %%
rso.widgets.Quiz("07", 1)

# %%
rso.widgets.Quiz("07", 2)

# %%
rso.widgets.Quiz("07", 3)

# %% [markdown]
# ## 8 · What you take home (1 minute)
#
# * **Two moves, each good by itself, can be bad together**: each was chosen while the other one rested. Two seldom clash;
#   thousands do.
# * The smaller the steps, the better gains add up.
# * Workers shorten only what can be shared, and what they gain in time they may lose in accuracy. The exact way to share has
#   to talk for every weight.
#
# **What the paper says.** Sequential is best; on MNIST both parallel searches are almost as good after 50 cycles, on CIFAR-10 they
# are clearly behind after 500. Here, on digits after 20 cycles: 97.7 % one by one, 95.6 % with neurons apart, 92.8 % with
# weights apart.
#
# **The question for the next lesson.** Backpropagation moves *all* weights at once, in a direction that it computes. How does all
# this compare with gradients?
