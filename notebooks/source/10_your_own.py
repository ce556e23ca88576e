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
# # 10 · Your own network, your own loss
#
# **40 minutes · builds on 00 to 03 and 05.** Sections 6 and 8 (9 minutes more) can be left out.
# Short of time? Skip section 3.
#
# Lesson 09 ended with a question: with all its cost, where would one use RSO at all? The answer of this lesson: *where there is
# no gradient*. After it you can
#
# * train a network of your own with RSO, in one call or in a loop of your own,
# * say why the gradient is blind on a staircase, and why three dots are not,
# * train a network for a rule that is no formula, but a few lines of Python,
# * say when even the dots see nothing, and what helps.

# %%
# %matplotlib inline
import torch
import torch.nn.functional as F
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression
from torch import nn
from tqdm.auto import tqdm

import rso_lab as rso

print("Loading ...")
rso.lessons.begin()
data = rso.load("digits")
# or, much slower: data = rso.load("mnist", train_limit=2000, test_limit=500)

# %% [markdown]
# ## 1 · Play: draw a digit (4 minutes)
#
# This is the paper's network. It comes with the package, trained on MNIST by RSO: nobody ever computed a gradient for it. Draw a
# digit on the white square, with the mouse, a pen or a finger. When you lift it, the network answers: a bar for each of the
# ten digits says how probable it thinks that one is. (No mouse? The list *show me a* draws one.)
#
# 1. Draw the digits of this year. Which does it read?
# 2. Draw a 1 with a long hook, and a 7 with a bar, as in some countries. (MNIST's digits were written in the United States.)
# 3. Draw a letter, or just a dot. How sure is it?

# %%
rso.widgets.DrawDigit(rso.experiments.trained())

# %% [markdown]
# The small picture is what the network sees: your drawing, prepared as MNIST's were, 20 pixels high or wide and moved to
# the middle of 28 x 28. It has only ever seen digits of this kind. And it has ten answers and no eleventh: a letter is a digit to
# it, and a dot may be read as a 0 with no doubt at all.

# %% [markdown]
# ## 2 · Exercise: a network of your own (9 minutes)
#
# RSO takes nearly any network of torch. **Difficulty: medium, 7 minutes.** Write `my_net`, which returns a network for the digits:
# images (1, 8, 8), that is one channel of 8 x 8 pixels, in; ten numbers out, one for each digit. You may use any layers,
# with 3000 weights at most, so that it does not take too long.
#
# <details><summary>Help, where do I begin?</summary>
#
# `nn.Sequential(...)` runs one module after the other. `nn.Flatten()` makes one row of 64 numbers of an image,
# `nn.Linear(64, 10)` makes 10 numbers of 64. That is a network already, if a plain one.
#
# </details>
#
# <details><summary>Hint 1</summary>
#
# Put a second linear layer behind the first one, with `nn.ReLU()` between them. The 10 of the first may be another number then: it
# says how many neurons lie between.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Or begin with a convolution: `nn.Conv2d(1, 4, 3, padding=1)` makes 4 channels of 8 x 8, `nn.MaxPool2d(2)` makes 4 x 4 of 8 x 8.
# How many numbers are there then behind `nn.Flatten()`? (4 channels x 4 x 4.)
#
# </details>


# %% nbgrader={"grade": false, "grade_id": "my_net", "locked": false, "schema_version": 3, "solution": true}
def my_net():
    ### BEGIN SOLUTION
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 16),
        nn.ReLU(),
        nn.Linear(16, 10),
    )
    ### END SOLUTION


# %%
rso.lessons.check(my_net)

# %% [markdown]
# What will it reach in three cycles? Write down a share of the test images. (Until your network fits, the cell after it trains one of
# ours.)

# %%
prediction = ...  # <- your prediction, between 0 and 1

# %%
digits = rso.load("digits")  # what my_net is made for, whatever `data` are
model = rso.lessons.mine_or_ours(my_net)  # with weights by He's rule
history = rso.fit(model, digits, rso.RSO(cycles=3, batch_size=500), seed=0)
rso.plots.accuracy(history)

# %%
rso.lessons.compare(prediction, history.cycles[-1].test_accuracy, "Test images right, your network")

# %% [markdown]
# That was all: `rso.fit` looks into the network by itself, finds the layers and searches them. It takes what torch can *trace*,
# that is, write down as a list of operations. (`print(torch.fx.symbolic_trace(model).code)` shows yours.) For anything else there is
# section 3.

# %% [markdown]
# ## 3 · A loop of your own (4 minutes)
#
# Perhaps you have a training loop already, with torch's optimizers: a step, and a function (a **closure**) that gives the loss.
# RSO fits in there, too: each `step` searches *one* weight, and calls the closure three times.

# %%
chance = torch.Generator().manual_seed(0)
for seed in range(2):
    model = rso.models.build("one_conv", data, seed)
    optimizer = rso.RSOptimizer(model.named_parameters(), seed=seed)
    weights = sum(parameter.numel() for parameter in model.parameters())
    for _ in tqdm(range(weights)):  # a step for each: one cycle
        rows = torch.randint(len(data.x_train), (250,), generator=chance)
        x, y = data.x_train[rows], data.y_train[rows]
        optimizer.step(lambda: F.cross_entropy(model(x), y))
    right = (model(data.x_test).argmax(1) == data.y_test).double().mean()

    model = rso.models.build("one_conv", data, seed)
    history = rso.fit(model, data, rso.RSO(cycles=1, batch_size=250), seed=seed)
    print(f"seed {seed}: loop {right:.0%}, rso.fit {history.cycles[-1].test_accuracy:.0%} of the test images right")

# %% [markdown]
# The same idea, with other draws: the two differ by luck. Look where the mini-batch is drawn: *outside* the closure. Were `rows`
# drawn inside, each of the three losses would have images of its own, and luck would choose. You know the symptoms from lesson 02,
# bug B. What `rso.fit` adds: it knows what one changed weight can change (lesson 06), and so is faster for larger networks.

# %% [markdown]
# ## 4 · On a staircase (9 minutes)
#
# Now to what gradients cannot do. A neuron in the brain fires or does not; the first artificial ones did so, too. Here is such an
# **activation** in place of ReLU: -1 for negative numbers, +1 for positive ones. A step.


# %%
class Step(nn.Module):
    def forward(self, x):
        return torch.sign(x)


def step_network():
    layers = nn.Sequential(nn.Flatten(), nn.Linear(data.x_train[0].numel(), 32), Step(), nn.Linear(32, 10))
    return rso.models.he_init_(layers, seed=0)


# %% [markdown]
# This is lesson 00's microscope, on a weight of the first layer, with just 20 images. Follow the curve: until the neuron's sign
# turns for one of the images, *nothing* happens. Then the loss jumps.
#
# 1. Make δ as small as it goes. What are the three losses?
# 2. Make it larger until a dot lands on another stair. Go down: **Keep the best**.

# %%
few = rso.load(data.name, train_limit=20)
place = (26, 10)  # the weight of neuron 26 for pixel 10
rso.widgets.Microscope(step_network(), few, "1.weight", place, gradient=True, points=401)

# %% [markdown]
# On every stair the slope is exactly 0: that is what autograd, torch's calculus, answers, and it is right. But the stairs lead
# somewhere, and two dots that are far enough apart see it. Now the same weight with 1000 images:

# %%
rso.widgets.Microscope(step_network(), data, "1.weight", (26, 10), gradient=True, points=401)

# %% [markdown]
# From afar the staircase is a slope. *You* see it, the dots see it, and the gradient is still 0: it looks at one point, and at this
# point it is flat. **Where the slope is flat, the dots still see.**
#
# Let us train this network, with RSO and with SGD (steps along the gradient: the usual way). For SGD the whole first layer is
# flat. Your prediction: what share of the test images does it get right all the same?

# %%
prediction = ...  # <- your prediction, between 0 and 1

# %%
sgd = rso.SGD(epochs=20, batch_size=50, learning_rate=0.1, weight_decay=0)  # an epoch: each image once
for name, method in {"SGD": sgd, "RSO": rso.RSO(cycles=3, batch_size=500)}.items():
    model = step_network()
    start = {key: value.clone() for key, value in model.state_dict().items()}
    history = rso.fit(model, data, method, seed=0)
    print(f"{name}: {history.cycles[-1].test_accuracy:.0%} right; {rso.lessons.moved(start, model)}")
print(f"SGD: {rso.lessons.yours(prediction)}")

# %% [markdown]
# `1.weight` is the first layer, `3.weight` the last; how far each moved is a share of its length, as in lesson 01. Behind the last
# layer there is no step: it has a gradient, and SGD does with it what can be done. The first layer stays as random as it was,
# for SGD. RSO moves it, and reads better. (Three cycles are not RSO's end: it is what a lesson has time for.)

# %%
rso.lessons.ledger("10", history)

# %%
rso.lessons.beside_the_paper(history)

# %% [markdown]
# **Is that a triumph?** Not quite. Where there is no gradient, one may *pretend* one. Below, the
# network still steps, but for the calculus the step is taken for a straight line. (It is called the *straight-through* trick.)


# %%
class Pretend(nn.Module):
    def forward(self, x):
        return x + (torch.sign(x) - x).detach()  # the sign, with the slope of x


model = step_network()
model[2] = Pretend()
history = rso.fit(model, data, rso.SGD(epochs=20, batch_size=50, learning_rate=0.1, weight_decay=0), seed=0)
last = history.cycles[-1]
print(f"SGD with a slope that is pretended: {last.test_accuracy:.0%} right after {last.seconds:.1f} s")

# %% [markdown]
# A good trick beats the search here, in accuracy and in time (RSO's is in the ledger). But somebody had to find it, for just this
# function. RSO needed nothing: it did not even notice that there was a problem.

# %% [markdown]
# ## 5 · Coarse weights (3 minutes)
#
# The same with the *weights*. A tiny chip may have no room for a number such as 0.2718281828. Let each weight be -0.3, 0 or +0.3:
# then less than two bits store it. The network rounds its weights to these three whenever it is used.


# %%
class Coarse(nn.Linear):
    def forward(self, x):
        return F.linear(x, 0.3 * torch.round(self.weight / 0.3).clamp(-1, 1), self.bias)


sgd = rso.SGD(epochs=20, batch_size=50, learning_rate=0.1, weight_decay=0)
for name, method in {"SGD": sgd, "RSO": rso.RSO(cycles=4, batch_size=500, sigma_end=1.0)}.items():
    layers = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), Coarse(16, 32), nn.ReLU(), Coarse(32, 10))
    model = rso.models.he_init_(layers, seed=0)
    history = rso.fit(model, data, method, seed=0)
    print(f"{name}: {history.cycles[-1].test_accuracy:.0%} right")
print(f"In its last cycle RSO kept {history.cycles[-1].kept['all']:.0%} of the weights.")

# %% [markdown]
# Rounding is a staircase, too: for SGD no weight has a gradient, only the biases are left. RSO trains the coarse network itself,
# as it will be used. `sigma_end=1.0` turns the annealing off: a change that is too small to reach the next stair is a change
# of nothing. (RSO keeps most weights: a change that does not reach another stair makes three equal losses.)

# %% [markdown]
# ## 6 · A rule of your own (5 minutes)
#
# So far the loss was cross-entropy. What you *want* may be something else. Say that the digits are written on cheques. To read
# one too low costs 10, for then the money is gone; too high costs 1, for somebody will complain. That is a rule, and no
# formula of torch's:


# %%
def price(said, label):
    if said < label:
        return 10
    return 1 if said > label else 0


def cost(outputs, targets):
    said = outputs.argmax(1).tolist()
    return sum(map(price, said, targets.tolist())) / len(said)


# %% [markdown]
# `cost` has no gradient: it asks which output is the largest, and goes through a list in Python. RSO takes *any* function that
# gives one number for a mini-batch. Below, a tiny network (one layer, 170 weights) is trained with cross-entropy. Then it goes on
# for five cycles from there, with smaller changes (`sigma_scale=0.3`), once with cross-entropy and once with the rule. Your
# prediction: what will the rule do to the *accuracy*?

# %%
prediction = ...  # <- your prediction: "raise it" or "lower it"


# %%
def report(name, model):
    said, labels = model(data.x_test).argmax(1), data.y_test
    low, high = (said < labels).sum(), (said > labels).sum()
    paid = cost(model(data.x_test), labels)
    print(
        f"{name:27} mean price {paid:.2f}; {low} too low, {high} too high, {(said == labels).double().mean():.0%} right"
    )


model = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16, 10))  # 4 x 4 pixels
rso.fit(rso.models.he_init_(model), data, rso.RSO(cycles=10, batch_size=500), seed=0)
start = {key: value.clone() for key, value in model.state_dict().items()}
report("cross-entropy", model)
for name, loss in {"more cross-entropy": F.cross_entropy, "the rule": cost}.items():
    model.load_state_dict(start)
    rso.fit(model, data, rso.RSO(cycles=5, batch_size=1000, sigma_scale=0.3), seed=10, loss=loss)
    report(f"and then {name}", model)
print(rso.lessons.yours(prediction))

# %% [markdown]
# Compared with five more cycles of cross-entropy it makes *more* mistakes, and all of them together cost half as much: in doubt
# it now says the larger digit. It got what it was asked for. Cross-entropy came first for a reason: the rule alone, on random
# weights, is a coarse staircase. That is the next section.

# %% [markdown]
# ## 7 · When even the dots are blind (6 minutes)
#
# If RSO takes any loss, why not count the mistakes themselves, and have done with cross-entropy? This is the share of wrong
# answers, the **0/1 error**:


# %%
def error(outputs, targets):
    return (outputs.argmax(1) != targets).double().mean()


# %% [markdown]
# Three cycles, 1000 images in a mini-batch. With cross-entropy as the loss, 85 % of the test images are right then. What
# will the 0/1 error get?

# %%
prediction = ...  # <- your prediction, between 0 and 1

# %%
model = rso.models.build("one_conv", data)
history = rso.fit(model, data, rso.RSO(cycles=3, batch_size=1000), seed=0, loss=error)
rso.plots.accuracy(history)
rso.lessons.compare(prediction, history.cycles[-1].test_accuracy, "Test images right, 0/1 error as the loss")

# %% [markdown]
# It stalls. Look at the curve along lesson 00's weight, with 30 images and the 0/1 error. Which δ finds a lower stair?

# %%
few = rso.load(data.name, train_limit=30)
toy = rso.models.build("one_conv", few)
rso.widgets.Microscope(toy, few, "conv1.weight", (3, 0, 1, 0), points=401, loss=error)

# %% [markdown]
# A staircase once more, and now a coarse one: only a δ of about 1.2 finds a lower stair. A change counts only if some *answer*
# turns. Many turn none. All three losses are equal then, a **tie**, and a tie keeps the weight: a change that gains nothing is
# not made. How often is that so?

# %%
cases = {
    "0/1 error, batch 100": (error, rso.RSO(cycles=3, batch_size=100)),
    "0/1 error, batch 1000": (error, rso.RSO(cycles=3, batch_size=1000)),
    "0/1 error, batch 1000, sigma x 3": (error, rso.RSO(cycles=3, batch_size=1000, sigma_scale=3.0)),
    "cross-entropy, batch 1000": (F.cross_entropy, rso.RSO(cycles=3, batch_size=1000)),
}
for name, (loss, method) in cases.items():
    model = rso.models.build("one_conv", data)
    found = rso.lessons.three_losses(model, data, method, loss)
    right = (model(data.x_test).argmax(1) == data.y_test).double().mean()
    print(f"{name:33} {right:.0%} right; " + ", ".join(f"{what} {share:.0%}" for what, share in found.items()))

# %% [markdown]
# More images make finer stairs, larger changes reach farther ones: the ties become fewer. The images help, the larger changes
# hardly, and neither is enough: no more changes are accepted than before. Where the losses do differ, it is because of the few images
# at the border between two answers. Cross-entropy hears all 1000: it knows for each *how sure* the network is, and notices when a
# wrong answer becomes a little less wrong. **So a loss need not have a gradient, but it has to change when a weight changes.**
# Section 4 did both: steps inside, cross-entropy outside. And section 6 used its rule when cross-entropy had done the rough work.

# %% [markdown]
# ## 8 · Numbers in place of classes (4 minutes)
#
# Not every question is about classes. Scikit-learn brings the data of 442 patients with diabetes: ten numbers each (age, blood
# pressure, ...), and one to tell, how far the disease had gone on a year later. A doctor with little time asks: *of two patients,
# who will be worse off?* So let the loss be the share of pairs that the network puts in the wrong order. An order is a staircase,
# too: no gradient.


# %%
x, y = (torch.tensor(part, dtype=torch.float32) for part in load_diabetes(return_X_y=True))
x = x / x[:342].std(0)
patients = rso.Data.from_arrays(x[:342], y[:342, None], x[342:], y[342:, None], name="diabetes")


def wrong_order(outputs, targets):
    said, true = (torch.sign(column - column.T) for column in (outputs, targets))  # a number for each pair
    return (said != true)[true != 0].double().mean()


# %% [markdown]
# The targets are numbers and no labels, so there is no accuracy to look at: `metric` is measured in its place. With random
# weights, about half of the pairs of the 100 test patients are in the wrong order. Your prediction: what share after three cycles?

# %%
prediction = ...  # <- your prediction, between 0 and 1

# %%
model = rso.models.he_init_(nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 1)), seed=0)
history = rso.fit(model, patients, rso.RSO(cycles=3, batch_size=200), seed=0, loss=wrong_order, metric=wrong_order)
rso.plots.accuracy(history)
rso.lessons.compare(prediction, history.cycles[-1].test_metric, "Pairs of test patients in the wrong order")

# %%
line = LinearRegression().fit(x[:342], y[:342])
by_formula = torch.tensor(line.predict(x[342:]))[:, None]
print(f"Least squares, a formula: {wrong_order(by_formula, y[342:, None]):.0%} of the pairs in the wrong order")

# %% [markdown]
# About a quarter of the pairs is left, and nearly as many by the formula, which was asked for the numbers and not for their order: ten
# numbers do not say more about a year. What else RSO takes (words, several outputs, shared weights), and how to ask what a run
# will cost, is on a page of the kit: `docs/your_own.md`.

# %% [markdown]
# ## 9 · Three questions (1 minute)

# %%
rso.widgets.Quiz("10", 1)

# %%
rso.widgets.Quiz("10", 2)

# %%
rso.widgets.Quiz("10", 3)

# %% [markdown]
# ## 10 · What you take home (4 minutes)
#
# * **Where the slope is flat, three losses can still find a way**, if the dots are far enough apart to stand on different stairs.
# * RSO takes any network that torch can trace (and by `RSOptimizer` any other), any targets, and any loss that gives one number.
# * Ties keep the weight: a loss that hardly ever changes teaches hardly anything.
# * Where there is a gradient, or a good pretence of one, it is much cheaper. Use it, and RSO for the rest.
#
# **What the paper says.** It trains with cross-entropy throughout, and its networks have gradients everywhere: 99.12 % on MNIST
# after 50 cycles, 81.8 % on CIFAR-10 after 300, SGD slightly better there (82.94 %). It does not try steps, coarse weights or
# rules: the figures of this lesson are ours, single runs on digits. It hopes that search can be made faster, and holds it
# possible that other architectures will then be found than those that suit gradients.
#
# **Looking back.** In lesson 00 you moved one weight with a slider, and kept the best of three dots. That was all of it.
# Everything since then was a question about these three dots: from where they start (01), that they know the slope's sign (02),
# how far apart they are (03), whose turn it is (04), which images judge them (05), what they cost (06), what happens when many
# are moved at the same time (07), how far one gets with them, compared with the slope itself (08, 09). And now: what they see
# when there is no slope at all. The picture is still the same. You can read it on any staircase.
#
# **The question for the next lesson.** RSO is not the only way to train without the gradient, or with little of it. What do its
# relatives do?
