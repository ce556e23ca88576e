"""Checks of answers: solutions pass, stubs and each named mistake do not."""

import pytest

import rso_lab as rso
from rso_lab import lessons


def solution(minus, keep, plus):
    if keep <= min(minus, plus):
        return "keep"
    return "plus" if plus <= minus else "minus"


MISTAKES = {
    "highest": (lambda m, k, p: ["minus", "keep", "plus"][[m, k, p].index(max(m, k, p))], "highest loss"),
    "ties": (lambda m, k, p: "plus" if p <= min(m, k) else "minus" if m <= k else "keep", "gains nothing"),
    "never minus": (lambda m, k, p: "plus" if p < k else "keep", "w - δ lowers it most"),
    "a number": (lambda m, k, p: min(m, k, p), "right one is"),
}


def test_the_solution_passes(capsys):
    lessons.check_choose(solution)
    assert capsys.readouterr().out.startswith("Right")


@pytest.mark.parametrize("stub", [lambda m, k, p: None, lambda m, k, p: ...])
def test_a_stub_is_not_done_yet(stub, capsys):
    lessons.check_choose(stub)
    assert capsys.readouterr().out.startswith("Not done yet")


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_named(mistake, capsys):
    answer, named = MISTAKES[mistake]
    lessons.check_choose(answer)
    out = capsys.readouterr().out
    assert out.startswith("Not yet")
    assert named in out


def test_predictions_are_shown_beside_what_was_measured(capsys):
    lessons.compare(0.5, 0.669, "right")
    assert capsys.readouterr().out == "right:  your prediction 50%,  measured 67%\n"


@pytest.mark.parametrize("prediction", [67, -0.1, "half", ..., None, float("nan")])
def test_a_prediction_that_is_no_share_is_asked_for_again(prediction, capsys):
    lessons.compare(prediction, 0.669, "right")
    assert "between 0 and 1" in capsys.readouterr().out


def test_the_ledger_has_the_figures_of_the_run(digits, capsys):
    history = rso.fit(rso.models.build("one_conv", digits), digits, rso.RSO(1, 20), seed=0)
    lessons.ledger(history)
    out = capsys.readouterr().out
    assert f"{history.cycles[-1].test_accuracy:.1%} of 60 test images" in out
    assert "2,070 losses, each over 20 images" in out
