"""A question with answers to choose from."""

import html
import random
from typing import Any

import ipywidgets as ipw

from rso_lab.notebook import Controls, poster
from rso_lab.quizzes import QUIZZES


class Quiz(Controls):
    """A question of a lesson's quiz, by number from 1 on, with answers to choose from; each is explained.

    Where widgets cannot run, all explanations are there to read.
    """

    def __init__(self, lesson: str, number: int):
        question, answers = QUIZZES[lesson][number - 1]
        self.right = next(iter(answers))
        self.explanations = answers
        in_order = random.Random(question).sample(list(answers), len(answers))  # the right one comes first there
        self.choice = ipw.RadioButtons(options=in_order, index=None, layout=ipw.Layout(width="auto"))
        self.said = ipw.HTML()
        self.post = poster()
        self.choice.observe(lambda change: self.post(self.tell), names="value")
        super().__init__([ipw.HTML(f"<b>{html.escape(question)}</b>"), self.choice, self.said])

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, str]:
        told = "".join(
            f"<li>{html.escape(answer)}<br><i>{self.verdict(answer)}</i></li>" for answer in self.choice.options
        )
        return {**super()._repr_mimebundle_(**kwargs), "text/html": f"{self.children[0].value}<ul>{told}</ul>"}

    def tell(self) -> None:
        """Explain the answer that was chosen."""
        self.said.value = self.verdict(self.choice.value)

    def verdict(self, answer: str) -> str:
        """What to say to an answer."""
        return f"{'Right.' if answer == self.right else 'Not quite.'} {html.escape(self.explanations[answer])}"
