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
# # 04 · The order of the search: who goes first?
#
# **20 minutes · builds on 00 to 02.** Section 5 (4 minutes more) can be left out.
# Short of time? Skip section 2.
#
# RSO changes one weight at a time, so some weight must be first. Does it matter which? After this lesson you can
#
# * say in which orders the weights of a layer, and the layers, may be visited, and write them down as loops,
# * say what rests while a layer is searched, whichever end comes first,
# * tell a difference from chance, when all you have is a few runs.

# %%
# %matplotlib inline
import rso_lab as rso

print("Loading ...")
rso.lessons.begin()
data = rso.load("digits")
# or, much slower: data = rso.load("mnist", train_limit=2000, test_limit=500)

# %% [markdown]
# ## 1 · Play: a layer lights up (3 minutes)
#
# Here are the 108 weights of a small convolution: 4 output neurons (the rows), each with 3 input channels of 3 x 3 places. A
# weight that has been visited is blue, the one whose turn it is dark. Press the triangle, or drag the slider. Then change
# the order.
#
# 1. After 27 visits in the order *neuron*: what is finished?
# 2. After 36 visits in the order *input*: what is finished?

# %%
rso.widgets.Order()

# %% [markdown]
# *Neuron first* completes one output neuron after the other: the first is done before the second begins. *Input first* does
# for all neurons what belongs to one input channel, then goes to the next channel.

# %% [markdown]
# ## 2 · Exercise: two loops (5 minutes)
#
# **Difficulty: easy.** Write `visits`. It returns the list of all pairs `(i, j)`, i being the output and j the input of a
# linear layer, in the order `"neuron"` or `"input"`.
#
# <details><summary>Hint 1</summary>
#
# Two loops, one in the other. What stays the same for longest belongs to the outer loop.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `[(i, j) for i in range(outputs) for j in range(inputs)]`: the first `for` is the outer one.
#
# </details>


# %% nbgrader={"grade": false, "grade_id": "visits", "locked": false, "schema_version": 3, "solution": true}
def visits(outputs, inputs, order):
    ### BEGIN SOLUTION
    if order == "neuron":
        return [(i, j) for i in range(outputs) for j in range(inputs)]
    return [(i, j) for j in range(inputs) for i in range(outputs)]
    ### END SOLUTION


# %%
rso.lessons.check(visits)

# %% [markdown]
# ## 3 · And the layers? (3 minutes)
#
# The paper searches the last layer first, then the one before it, and so on to the input. It says that this is "typically faster
# than optimizing the other way, but both methods lead to good results" (§3), and gives no reason.
#
# One thing is the same in both: while a layer is searched, all others rest. So what enters it is the same for every guess, and
# can be computed once and kept (lesson 06). A guess in the last layer is cheap, then, and one in the first is dear, whichever
# comes first, and a cycle is as much work in either order. *Faster* may mean that a better network comes of as many cycles.

# %% [markdown]
# ## 4 · Can you tell them apart? (6 minutes)
#
# Two orders within a layer, two of the layers: four ways. They were recorded with three seeds each (two convolutions, four
# cycles). By how many percentage points will the best way lead the worst, in the mean? One test image is 0.28 points.

# %%
prediction = ...  # <- your prediction, in percentage points

# %%
rso.widgets.Recorded("order")

# %% [markdown]
# The bands lie on top of each other. To look closer, compare *within* a seed: both ways begin with the same weights then, and
# what they share cancels. The cell below calls it *no difference* where the mean is smaller than the spread (the standard deviation
# of the three), *a difference* from two and a half times the spread on, and *perhaps* in between. (Three seeds without any real
# difference get beyond two and a half about once in twenty times.)

# %%
first = "neuron first, output layer first"
rso.lessons.paired("order", first, "input first, output layer first")
rso.lessons.paired("order", first, "neuron first, input layer first")
print(rso.lessons.yours(prediction))

# %% [markdown]
# The second pair are the best and the worst of the four: your prediction was about them. A difference that is smaller than
# its own spread is no difference to speak of. There may be one all the same: three seeds and 360 images cannot see what is
# smaller than about a point.
#
# On MNIST there are 10,000 test images. Recorded there, with five cycles and three seeds:

# %%
rso.lessons.paired("order", first, "input first, output layer first", size="evening")
rso.lessons.paired("order", first, "neuron first, input layer first", size="evening")

# %% [markdown]
# Both means are less than a point, and yet one difference is to be believed: *neuron first* is ahead of *input first* in all
# three seeds, by about as much each time. With 360 images it could not be seen.

# %% [markdown]
# ## 5 · Your own seeds (4 minutes)
#
# The same live, with the small network. What happens to your verdict when you change `seeds` to `(3, 4, 5)`?

# %%
seeds = (0, 1, 2)
for order in ("neuron", "input"):
    found = []
    for seed in seeds:
        model = rso.models.build("one_conv", data, seed)
        history = rso.fit(model, data, rso.RSO(cycles=3, batch_size=500, order=order), seed=seed)
        found.append(f"{history.cycles[-1].test_accuracy:.1%}")
    print(f"{order:6} first: {', '.join(found)}")

# %%
rso.lessons.ledger("04", history)

# %%
rso.lessons.beside_the_paper(history)

# %% [markdown]
# ## 6 · Three questions (2 minutes)

# %%
rso.widgets.Quiz("04", 1)

# %%
rso.widgets.Quiz("04", 2)

# %%
rso.widgets.Quiz("04", 3)

# %% [markdown]
# ## 7 · What you take home (1 minute)
#
# * **The order hardly matters**: on digits the ways cannot be told apart, on MNIST they differ by less than a point after five
#   cycles.
# * While a layer is searched, what enters it stays as it is, and can be kept, whichever end comes first.
# * Compare seed by seed, and believe a difference that is well above its spread.
#
# **What the paper says.** 99.06 % on MNIST with neuron first, 99.12 % with input first, one run each: six images of 10,000. A
# count of about 90 errors varies by its square root, about nine, by chance alone. The paper concludes, as we do, that
# the order hardly matters.
#
# **The question for the next lesson.** Every guess was judged by a mini-batch. How many images should be in it?
