"""What checks of a learner's answers share."""

import contextlib
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch


def ask(name: str, answer: Callable, *question: Any, wanted: str) -> Any:
    """What a learner's function returns; None, with a word to the learner, where it stops or returns nothing."""
    try:
        given = answer(*question)
    except Exception as error:
        stopped(name, error)
        return None
    if given is None or given is ...:
        print(f"Not done yet: {name} returns nothing. It should return {wanted}.")
        return None
    return given


_ERRORS = {  # what Python says, and what that means to a learner
    "builtin_function_or_method": "Are brackets missing, as in x.std()?",
    "'int' object is not iterable": "A number is no list: range(outputs) counts up to it.",
    "loss() takes 0": "loss() takes nothing: it sees the weights as they are. Set weights[index] first.",
    "name 'math'": "Python does not know math before `import math`. **0.5 is a root, too.",
    "name 'np'": "Python does not know np before `import numpy as np`. **0.5 is a root, too.",
    "name 'sqrt'": "Python does not know sqrt. **0.5 is a root.",
    "name 'torch'": "Python does not know torch before `import torch`.",
    "is not defined": 'Text stands in quotes, as in "plus"; for everything else look at its spelling.',
}


def stopped(name: str, error: Exception) -> None:
    """Tell a learner what a function stopped with, and what that often means."""
    print(f"Not yet: your {name} stopped with {type(error).__name__}: {error}.")
    for said, meaning in _ERRORS.items():
        if said in str(error):
            print(meaning)
            return


def number_of(given: Any) -> float | None:
    """A learner's answer as a number; None, with a word to the learner, where it is none."""
    if callable(given):
        print("Not yet: that is a function and not its value. Are brackets missing, as in x.std()?")
    elif isinstance(given, torch.Tensor) and given.numel() != 1:
        print(f"Not yet: your answer is {given.numel()} numbers, and one is wanted.")
    elif not isinstance(given, Real | torch.Tensor):
        print(f"Not yet: a number is wanted, your answer was {given!r}.")
    else:
        return float(given)
    return None


def advise(answers: list, questions: list, mistakes: list) -> None:
    """Print what to tell a learner whose answers are those of one of the mistakes."""
    for mistake, advice in mistakes:
        wrong = [torch.as_tensor(mistake(question)).double() for question in questions]
        with contextlib.suppress(TypeError, ValueError, RuntimeError):
            if all(torch.allclose(torch.as_tensor(a).double(), w) for a, w in zip(answers, wrong, strict=True)):
                print(advice)
                return
