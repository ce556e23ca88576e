"""The lessons' quizzes: questions, each with its answers and what to say to them; the first is right."""

QUIZZES: dict[str, list[tuple[str, dict[str, str]]]] = {
    "00": [
        (
            "The losses are 0.7 at w - δ, 0.5 at w and 0.4 at w + δ. What does RSO do?",
            {
                "It sets the weight to w + δ": "That is the lowest of the three.",
                "It keeps w": "It would, if neither change lowered the loss. w + δ does.",
                "It goes on guessing for this weight": "One guess a cycle, then it is the next weight's turn.",
            },
        ),
        (
            "A network has 12,026 weights. How many losses does one cycle take?",
            {
                "36,078": "Three for each weight.",
                "3": "Those are for one weight. Each of them has its turn.",
                "12,026": "There are three for each weight: at w - δ, w and w + δ.",
            },
        ),
        (
            "What does RSO need to know of the loss?",
            {
                "Its value, for any weights that are tried": "It compares numbers, and never asks for a slope.",
                "Its gradient": "That is what training with gradients needs.",
                "How it curves along each weight": "You saw the curve in the picture. RSO sees three dots of it.",
            },
        ),
    ],
    "01": [
        (
            "A layer has 256 input channels and 3 x 3 kernels. What is its fan-in?",
            {
                "2304": "256 x 9: each output sums over all of them.",
                "256": "Each channel brings nine places of the kernel, too.",
                "9": "That is one channel's share. The output sums over all 256 channels.",
            },
        ),
        (
            "Why does He's rule have a 2 in it?",
            {
                "ReLU sets about half of the values to zero": "So half of the sum of squares is lost, and made up "
                "for in advance.",
                "There are two layers": "The rule is for any number of layers.",
                "Weights can be positive or negative": "That is why their mean is 0, but not where the 2 comes from.",
            },
        ),
        (
            "RSO's sigma_d is measured ...",
            {
                "once, before the search": "The steps are in units of the start, not of what the weights have become.",
                "after each cycle": "Then steps would grow with the weights. RSO's shrink by a fixed plan instead.",
                "for each mini-batch": "It has nothing to do with images: it is the spread of a layer's weights.",
            },
        ),
    ],
    "02": [
        (
            "What is wrong with A?",
            {
                "w changes together with the weight": "weights[index] is a window onto the tensor, not a copy. "
                "After w - delta is set, w is that; 'w + delta' is the old "
                "value again. So plus is never tried. Use .item().",
                "minus and plus are exchanged": "They stand where they belong. Look at what w is after the third line.",
                "keep is measured first": "The order does not matter, as long as the weight has the right value "
                "each time.",
            },
        ),
        (
            "What is wrong with B?",
            {
                "Each loss has images of its own": "Then luck decides. About a third is kept, as if three lots were "
                "drawn.",
                "The mini-batches are too small": "They have 100 images, as in the run that works.",
                "The changes are too large": "They are the same as in the run that works.",
            },
        ),
        (
            "What is wrong with C?",
            {
                "The new numbers never reach the network": "weight = ... gives the name to another tensor. The "
                "network's own stays zero: use weight.copy_(...). With "
                "zeros in every layer a single weight changes nothing: "
                "only the biases of the last layer do.",
                "He's rule is wrong": "weight[0].numel() is the fan-in: the rule is right.",
                "randn draws too large numbers": "N(0, 1) times He's sigma is what is wanted.",
            },
        ),
    ],
    "03": [
        (
            "All weights are moved at once, each by as much as is best for one alone. What happens?",
            {
                "Nearly every such proposal raises the loss": "The whole step is far too long. The more weights "
                "move, the less each may.",
                "It gains as much as all the single moves": "Those were chosen one by one; a random direction is not.",
                "Nothing, the changes cancel": "They do not know of each other.",
            },
        ),
        (
            "What does sigma do in RSO?",
            {
                "The job of the learning rate": "It says how far guesses go. That it shrinks is a schedule.",
                "It measures the noise of a mini-batch": "It is the spread of the initial weights, times a plan.",
                "It normalises the images": "That has been done before.",
            },
        ),
        (
            "Two random directions among 10,000 weights: what is the angle between them?",
            {
                "Nearly a right angle": "The cosine is about one over the square root of 10,000: 0.01.",
                "Any angle is equally likely": "In two dimensions, yes. In many, nearly all are at right angles.",
                "They are nearly parallel": "Quite the contrary.",
            },
        ),
    ],
    "04": [
        (
            "Four runs end at 96.9, 95.8, 95.6 and 96.1 %. 360 test images. What do they tell apart?",
            {
                "Nothing": "One image is 0.28 points, and the choice of test images alone makes about 1. All four "
                "lie within a point of their mean.",
                "The first is the best": "By a few images. With others, or another seed, it may be the last.",
                "All but the second and third": "Differences of a few images, all of them.",
            },
        ),
        (
            "A layer in the middle is searched. What can be computed once, and kept for all its weights?",
            {
                "What enters it": "The layers before it rest meanwhile, whichever end of the network comes first. This "
                "is the activation cache of lesson 06.",
                "What leaves it": "Each guess changes that: it is a guess about one of its weights.",
                "Nothing: a guess changes the whole network": "A guess changes one weight. What lies before "
                "that weight does not know of it.",
            },
        ),
        (
            "Two ways, three seeds each. What makes a difference believable?",
            {
                "Seed by seed it is there, and well above its spread": "Compare within a seed: what both ways share "
                "then cancels, as with a common mini-batch.",
                "The best run of one beats the best of the other": "The best of three is mostly luck.",
                "A large difference with one seed": "One run is an anecdote.",
            },
        ),
    ],
    "05": [
        (
            "From 100 images to 400: what happens to the luck?",
            {
                "It is halved": "The square root of four is two. The price is four times as high.",
                "It is a quarter": "It shrinks with the square root of the number only.",
                "It stays": "A mean over more images varies less.",
            },
        ),
        (
            "A run accepts 98 % of its changes. That ...",
            {
                "says little by itself": "Tiny mini-batches accept nearly everything, and so do tiny changes.",
                "is a good run": "With 16 images more than four in ten of the accepted changes made things worse.",
                "means that the network is perfect": "Then no change would lower the loss, and all weights would "
                "be kept.",
            },
        ),
        (
            "Why not judge every change by all images?",
            {
                "On a large data set each loss would cost far more than it brings": "From some size on the judges are "
                "right anyway, and the cost grows on. On digits it is affordable.",
                "It is forbidden": "It is allowed.",
                "The network would learn them by heart": "Fewer images are learned by heart more easily, not less.",
            },
        ),
    ],
    "06": [
        (
            "A weight of conv3 is changed, of six convolutions. What need not be computed again?",
            {
                "conv1, conv2, and all channels of conv3 but one": "What comes before the change cannot know "
                "of it, and the weight belongs to one output channel.",
                "Only the linear layer": "It takes what comes from conv6, and that has changed.",
                "Everything behind conv3": "That is what has changed. What lies before it stays.",
            },
        ),
        (
            "A network has twice as many channels everywhere. What happens to the cost of a cycle?",
            {
                "About sixteen times": "Four times the weights to search, and each candidate costs four times as much.",
                "Twice": "The channels double on both sides of each layer: there are four times as many weights.",
                "About four times": "So many weights there are. Each candidate costs four times as much, too.",
            },
        ),
        (
            "With held images the count says 20 times fewer multiply-adds. The clock says less. Why?",
            {
                "The clock also counts what is no multiply-add": "Fetching images and activations from memory, "
                "statistics of the batch norms, and Python itself. With small pictures and few images it weighs much.",
                "The count is wrong": "It is exact: a test compares it with a count by hand.",
                "The fast way decides worse": "It decides alike: it takes the same losses, by a shorter way.",
            },
        ),
    ],
    "07": [
        (
            "Two weights have each found a move that lowers the loss by 0.1. Both moves are made. The loss ...",
            {
                "may fall by any amount, or rise": "Each was measured while the other one rested. Nobody has looked "
                "at both.",
                "falls by 0.2": "Gains add up where the steps are tiny. Otherwise the two may go too far together.",
                "falls at least by 0.1": "Not even that is sure: in section 1 two neighbours did harm together.",
            },
        ),
        (
            "With neurons apart, what does a weight see of its layer?",
            {
                "What was found for its own neuron; the others are as before the sweep": "So the neurons can be "
                "searched at the same time, and only neurons can clash.",
                "All that was found before it": "That is one by one: it has to wait for the others.",
                "The whole layer as it was before the sweep": "That is weights apart.",
            },
        ),
        (
            "A quarter of the work cannot be shared. How many times as fast are very many workers at most?",
            {
                "4 times": "That quarter takes as long as before, whoever helps.",
                "As many times as there are workers": "It would be so if all of the work could be shared.",
                "3 times": "Three quarters shrink to nothing. What is left is a quarter of the time: 4 times as fast.",
            },
        ),
    ],
    "08": [
        (
            "'RSO needs 50 updates of all weights where SGD needs 600.' What does that say of the arithmetic?",
            {
                "Nothing: an update is not the same work for both": "One of RSO's takes three losses for every single "
                "weight, one of SGD's takes one loss and the way back.",
                "RSO takes a twelfth of it": "It would, if an update cost the same.",
                "RSO takes half of it, as it has no way back": "It has no way back, but three losses for each weight.",
            },
        ),
        (
            "What does one step of SGD cost, in multiply-adds?",
            {
                "About three forward passes, however many weights there are": "One there, and about two for the way "
                "back, which gives the slopes of all weights.",
                "Three forward passes for each weight": "That is RSO without shortcuts.",
                "One forward pass": "That is the loss. The slopes take the way back.",
            },
        ),
        (
            "SGD's settings come from a grid search of 60 runs. What belongs into a fair comparison?",
            {
                "The 60 runs, and what the rival's settings took to find": "Whoever does not know the settings has to "
                "pay for them. RSO's first sigma is measured, but its cycles and mini-batches were chosen, too.",
                "The best run alone": "It is known to be the best only after the others have been made.",
                "The settings that are best on the test images": "Then the test images have trained along: settings "
                "are chosen on held-out training images.",
            },
        ),
    ],
    "09": [
        (
            "A network gets twice the weights, and one picture costs it twice as much. A cycle of RSO costs ...",
            {
                "four times as much": "Three losses for every weight, each through a network that costs twice as much: "
                "the bill is a product.",
                "twice as much": "That would be SGD's bill: it pays for the pictures, whatever the number of weights.",
                "as much as before": "Every weight has its turn, and every turn runs pictures through the network.",
            },
        ),
        (
            "The paper's Depth-10 reaches 81.8 % with RSO after 300 cycles. What does it need for that?",
            {
                "Nearly eleven days": "300 cycles of 52 minutes each, on the paper's machine.",
                "Less than an hour": "That is what SGD needs there for the same accuracy.",
                "300 updates of all weights, so less than SGD's 1700": "In updates it needs fewer. But each of "
                "them visits 27,378 weights in turn: the axis picks the winner.",
            },
        ),
        (
            "Deeper networks reached more after two cycles on digits. Is depth better, then?",
            {
                "At equal cycles these were; at equal guesses that does not follow": "A cycle of the deepest has 19 "
                "times the guesses of the shallowest's. With equally many the three were close in the live run.",
                "Yes, always": "It also costs more, and at equal guesses the live run shows no lead.",
                "No, the signal of a weight is lost on its way": "Batch norm and shortcuts hold it up: we measured it.",
            },
        ),
    ],
    "10": [
        (
            "On a stair the gradient is 0. What do the dots w - δ and w + δ see?",
            {
                "Another stair, if δ is large enough": "They stand elsewhere, and compare heights. On the same stair "
                "they see a tie, and the weight is kept.",
                "Nothing, for RSO follows the slope, too": "It never asks for a slope: it compares three losses.",
                "The gradient, in another form": "With a small δ on a smooth curve, yes. On a stair there is none.",
            },
        ),
        (
            "In a loop of your own with RSOptimizer: where is the mini-batch drawn?",
            {
                "Before step, outside the closure": "So the three calls of the closure share it.",
                "Inside the closure": "Then each of the three losses has images of its own, and luck chooses.",
                "Nowhere, RSOptimizer draws it": "It does not know your data: the closure is all that it sees.",
            },
        ),
        (
            "A network with ReLU and cross-entropy, a million weights. What would you train it with?",
            {
                "SGD, or another method with gradients": "There is a gradient: one pass tells all slopes. "
                "RSO would take three million losses for a cycle.",
                "RSO, for it needs no gradient": "It needs none, but here there is one, nearly for free.",
                "RSO, for it makes fewer updates": "Fewer updates of each weight, and far more losses (lesson 08).",
            },
        ),
    ],
    "11": [
        (
            "Ten random directions of 2,410, new ones at each step, train well. Ten that are kept do not. Why?",
            {
                "The shadows of many steps add up to nearly the gradient": "Each has a small part that goes the "
                "gradient's way. The rest is different each time, and cancels.",
                "Ten directions show most of the gradient": "The cosine is about 0.06: nearly a right angle. It is as "
                "small for those that are kept.",
                "The new directions are chosen better": "Nobody chooses them: they are drawn at random.",
            },
        ),
        (
            "An evolution strategy without pairs and ranks. All losses are about 3.6. What moves the centre?",
            {
                "Mostly chance: 3.6 times the mean noise": "What all losses have in common multiplies the noise, too. "
                "It drowns the small differences that tell the way.",
                "The differences between the losses": "They take part, but they are small beside the 3.6. Pairs, or "
                "ranks, leave only them.",
                "Nothing, for the losses are nearly equal": "Each loss multiplies its own noise, and the mean of the "
                "noise is not 0.",
            },
        ),
        (
            "Two computers train a network of a million weights with RBD, 250 directions. What does each send?",
            {
                "250 numbers a step": "The coordinates. The directions come from a seed that both know.",
                "A million numbers a step": "That is the whole gradient, as SGD sends it.",
                "250 directions of a million numbers each": "Both can draw them: the same seed draws the same numbers.",
            },
        ),
    ],
}
