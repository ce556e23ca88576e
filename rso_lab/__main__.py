"""The command line: python -m rso_lab. Imports late, so that `doctor` runs where torch is missing."""

import argparse
import collections
import contextlib
import os
import shlex
import signal
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from rso_lab import doctor

if TYPE_CHECKING:
    from torch import nn

    from rso_lab.data import Data
    from rso_lab.history import History
    from rso_lab.ranks import Ranks
    from rso_lab.train import Method

OVERVIEW = """\
RSO trains a network without gradients. For one weight after another it draws a change, takes the loss of a mini-batch
with the change added, left out and subtracted, and keeps the best of the three.

  python -m rso_lab doctor                             is everything in place?
  python -m rso_lab demo                               a network learns to read digits while you watch
  python -m rso_lab train --cycles 5 --out run.json    train one yourself: train --help lists what you can choose
  python -m rso_lab cost --model paper_cnn             what such a run will take on this machine
  python -m rso_lab plot run.json                      draw the accuracy of that run
  python -m rso_lab experiments                        the paper's claims, to be tried: experiment levels, say
  python -m rso_lab report                             what was found when they were tried
  python -m rso_lab data mnist                         fetch a data set"""

TRAIN = """\
Train a network without gradients, one weight at a time. A cycle visits every weight once; each visit costs three
evaluations of the loss, so the time grows with weights x batch size x cycles. Examples, quickest first:

  python -m rso_lab train                                                        one_conv on digits, seconds
  python -m rso_lab train --model paper_cnn --cycles 1                           the paper's network on digits, minutes
  python -m rso_lab train --dataset mnist --batch-size 1024 --out mnist.json     one_conv on MNIST, minutes
  python -m rso_lab train --batch-size 32                                        what a small mini-batch does
  torchrun --nproc-per-node 2 -m rso_lab train --parallel neuron                 two processes share the search
  python -m rso_lab train --method es                                            an evolution strategy in its place
  python -m rso_lab train --method es --help                                     what it can be told

On a busy machine small networks train faster on one thread: set OMP_NUM_THREADS=1. Under torchrun, processes share
what --parallel sets apart, and without it every mini-batch."""


# How to train, and what of it has no default of its own.
METHODS: dict[str, dict[str, Any]] = {
    "rso": {"cycles": 10, "batch_size": 1000},
    "sgd": {"epochs": 20, "batch_size": 50, "learning_rate": 0.1},
    "subspace": {"epochs": 20, "batch_size": 50, "learning_rate": 1.0},
    "es": {"epochs": 40, "batch_size": 100, "learning_rate": 0.01},
    "ga": {"epochs": 20, "batch_size": 100},
    "masks": {"epochs": 20, "batch_size": 50, "learning_rate": 0.05},
}


class Failure(Exception):
    """What went wrong, in one sentence with its remedy."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0 done, 1 failed, 2 wrong use, 130 interrupted, 141 nobody reads."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    _mend_streams()
    try:
        code = _main(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `| head` has read enough
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # ValueError: a stream without a file
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # Python flushes both at its end
        return 141


def _mend_streams() -> None:
    """Where there is no output, write to nowhere; where it does not know a letter, write another."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _main(arguments: list[str]) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends it as Ctrl-C does
    if arguments == ["doctor"]:
        return doctor.report()
    if arguments == ["doctor", "--gpu"]:
        return doctor.compare_on_gpu()
    try:
        options = _parser(arguments).parse_args(arguments)
        options.run(options, shlex.join(["python", "-m", "rso_lab", *arguments]))
    except SystemExit as end:  # argparse's way to say wrong use, or that it printed the help
        return end.code if isinstance(end.code, int) else 2
    except Failure as failure:
        if isinstance(failure.__cause__, BrokenPipeError):
            raise failure.__cause__ from None
        print(f"rso_lab: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("rso_lab: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser(arguments: list[str]) -> argparse.ArgumentParser:
    """For these arguments: which flags `train` has depends on its method."""
    from rso_lab.data import NAMES
    from rso_lab.experiments import EXPERIMENTS, SEEDS

    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m rso_lab", description=OVERVIEW, formatter_class=raw)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    command = commands.add_parser("doctor", help="is everything in place?")
    command.add_argument("--gpu", action="store_true", help="compare the evaluators' choices on the GPU instead")
    command = commands.add_parser("demo", help="a network learns to read digits while you watch")
    command.set_defaults(run=_demo)
    text = "train a network without gradients"
    command = commands.add_parser("train", help=text, description=TRAIN, formatter_class=raw)
    command.set_defaults(run=_train, error=command.error)
    _add_training_options(command, arguments)
    text = "what a run will take: multiply-adds and seconds on this machine"
    command = commands.add_parser("cost", help=text, description=f"Say {text}, from a trial of seconds.")
    command.set_defaults(run=_cost, error=command.error)
    _add_training_options(command, arguments, results=False)
    command = commands.add_parser("experiments", help="the paper's claims: what can be tried, and how long that took")
    command.set_defaults(run=_experiments)
    command.add_argument("--folder", type=Path, default=Path("results"), help="of recorded ones (default: results)")
    command = commands.add_parser(
        "experiment", help="try one of them, over several seeds; goes on where it was interrupted"
    )
    command.set_defaults(run=_experiment, error=command.error)
    command.add_argument("name", choices=EXPERIMENTS)
    text = "class: minutes; evening: hours; full: days, with the paper's network, images and cycles, but a mini-batch "
    text += "is held for a neuron; not all have all (default: the smallest)"
    command.add_argument("--size", help=text)
    command.add_argument("--seeds", type=int, default=SEEDS, help=f"how many (default: {SEEDS})")
    command.add_argument("--folder", type=Path, default=Path("results"), help="for NAME_SIZE.json (default: results)")
    command = commands.add_parser(
        "report", help="claim, paper and measured, from the recorded experiments, with figures"
    )
    command.set_defaults(run=_report)
    command.add_argument("--folder", type=Path, default=Path("results"), help="(default: results)")
    command = commands.add_parser("plot", help="draw the accuracy of saved runs")
    command.set_defaults(run=_plot)
    command.add_argument("runs", nargs="+", type=Path, metavar="RUN.json", help="what train --out wrote")
    command.add_argument("--out", type=Path, help="the picture to write (default: like the first run, with .png)")
    command = commands.add_parser("data", help="fetch a data set, or say where to put it")
    command.set_defaults(run=_data)
    command.add_argument("name", choices=NAMES)
    return parser


def _add_training_options(parser: argparse.ArgumentParser, arguments: list[str], results: bool = True) -> None:
    from rso_lab.data import NAMES
    from rso_lab.models import MODELS
    from rso_lab.train import EVALUATORS

    chosen = argparse.ArgumentParser(add_help=False)
    text = "what trains; each has settings of its own: --method es --help (default: rso)"
    for each in (chosen, group := parser.add_argument_group("what to train")):
        each.add_argument("--method", choices=METHODS, default="rso", help=text)
    method = chosen.parse_known_args(arguments)[0].method
    group.add_argument("--dataset", choices=NAMES, default="digits", help="(default: digits)")
    group.add_argument("--model", choices=MODELS, default="one_conv", help="(default: one_conv)")
    group.add_argument("--seed", type=int, default=0, help="of the initialisation and of all draws (default: 0)")
    if results:
        _add_results(parser)
    search = parser.add_argument_group("how to search", "sections (§) are the paper's")
    computing = parser.add_argument_group("how to compute it")
    text = "all give the same losses, up to rounding (default: auto)"
    computing.add_argument("--evaluator", choices=EVALUATORS, default="auto", help=text)
    computing.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: cpu)")
    for setting in fields(_settings(method)):
        default: Any = METHODS[method].get(setting.name, setting.default)
        assert default is not MISSING
        kind: dict[str, Any] = {"type": setting.type}
        if get_origin(setting.type) is Literal:
            kind = {"choices": [value for value in get_args(setting.type) if value is not None]}
        elif setting.type is bool:
            kind = {"action": argparse.BooleanOptionalAction}
        elif setting.type not in (int, float):  # a pair of numbers, or one or None
            kind = {"type": float, "nargs": 2 if isinstance(default, tuple) else None}
        where = group if setting.name in ("cycles", "epochs", "batch_size") else search
        text = f"{setting.metadata['help']} (default: {default})".replace("%", "%%")
        where.add_argument(f"--{setting.name.replace('_', '-')}", default=default, help=text, **kind)


def _add_results(parser: argparse.ArgumentParser) -> None:
    results = parser.add_argument_group("what to keep", "written after every cycle")
    results.add_argument("--out", type=Path, metavar="RUN.json", help="the history: settings, versions and every cycle")
    results.add_argument("--weights", type=Path, metavar="FILE", help="the network's state dict, for torch.load")
    text = "a folder for the state of the search, written after layer sweeps"
    results.add_argument("--checkpoint", type=Path, metavar="DIR", help=text)
    results.add_argument(
        "--resume", action="store_true", help="go on from there, to the weights of a run never cut off"
    )


def _settings(method: str) -> Any:
    """The class."""
    from rso_lab.train import Method

    return next(kind for kind in get_args(Method) if kind.__name__.lower() == method)


def _method(options: Namespace) -> Any:
    """The settings that the flags make."""
    from rso_lab.data import usable_seed

    kind = _settings(options.method)
    given = {setting.name: getattr(options, setting.name) for setting in fields(kind)}
    try:
        usable_seed(options.seed)
        return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})
    except ValueError as error:
        options.error(str(error))


def _cost(options: Namespace, command: str) -> None:
    from rso_lab import models
    from rso_lab.estimate import cost

    method, data = _method(options), _load(options.dataset, options.device)
    try:
        print(cost(models.build(options.model, data, options.seed), data, method, evaluator=options.evaluator))
    except ValueError as error:
        options.error(str(error))


def _train(options: Namespace, command: str) -> None:
    from rso_lab.ranks import RanksError, joined

    method = _method(options)
    if options.out and options.weights and options.out.resolve() == options.weights.resolve():
        options.error("--out and --weights name the same file")
    for option, path in (("--out", options.out), ("--weights", options.weights)):
        if path is None:
            continue
        if options.checkpoint is not None:
            file, folder = (Path(os.path.realpath(place)) for place in (path, options.checkpoint))
            if folder in (file, *file.parents) or file in folder.parents:
                options.error(f"{option} {path} and --checkpoint {options.checkpoint}: neither can lie in the other")
        _refuse_unwritable(path)
    if options.checkpoint is not None:
        _refuse_unwritable_folder(options.checkpoint)
    try:
        with joined() as ranks:
            _train_as(ranks, method, options, command)
    except (FloatingPointError, RanksError) as error:
        raise Failure(str(error)) from error
    except OSError as error:
        raise Failure(f"the results could not be saved ({error}): make room, or name files elsewhere") from error


def _train_as(ranks: "Ranks", method: "Method", options: Namespace, command: str) -> None:
    """Rank 0 tells and saves."""
    from rso_lab import models
    from rso_lab.history import save_weights
    from rso_lab.train import histories

    for is_first in (True, False):  # one downloads, if need be; then the others read
        if (ranks.rank == 0) == is_first:
            data = _load(options.dataset, options.device)
        ranks.first(None)
    model = models.build(options.model, data, options.seed)
    settings = {
        "seed": options.seed,
        "command": command,
        "evaluator": options.evaluator,
        "checkpoint": options.checkpoint,
        "resume": options.resume,
        "ranks": ranks,
    }
    try:
        run = histories(model, data, method, **settings)
    except ValueError as error:
        options.error(str(error))
    if ranks.rank > 0:
        collections.deque(run, maxlen=0)
        return
    for history in _printing(run):
        if options.out is not None:
            history.save(options.out)
        if options.weights is not None:
            save_weights(model, options.weights)
    if options.out is not None:
        print(f"Saved. Look at it with: python -m rso_lab plot {shlex.quote(str(options.out))}")


def _printing(run: Iterator["History"]) -> Iterator["History"]:
    """Print a line for each cycle, or epoch, as it comes by."""
    from tqdm import tqdm

    for history in run:
        latest, unit = history.cycles[-1], "cycle" if history.settings["method"] == "RSO" else "epoch"
        tqdm.write(
            f"{unit} {latest.cycle}: test accuracy {latest.test_accuracy:.2%}, training accuracy "
            f"{latest.train_accuracy:.2%}, loss {latest.loss:.4f}, {latest.evaluations} evaluations, "
            f"{latest.seconds:.1f} s"
        )
        yield history


def _load(name: str, device: str) -> "Data":
    from rso_lab.data import load

    try:
        return load(name, device=device)
    except (ValueError, OSError, RuntimeError) as error:
        raise Failure(str(error)) from error


def _open_streams() -> Iterator[int]:
    """Standard output and error, where they are open."""
    for number in (1, 2):
        with contextlib.suppress(OSError):
            os.fstat(number)
            yield number


def _refuse_unwritable_folder(folder: Path) -> None:
    try:
        with contextlib.suppress(FileNotFoundError):
            folder.stat()  # the file system may refuse the name
        with tempfile.TemporaryFile(dir=next(place for place in (folder, *folder.parents) if place.exists())):
            pass
    except (OSError, ValueError) as error:
        raise Failure(f"{folder} cannot be made or written to ({error}): name another folder") from error


def _refuse_unwritable(path: Path) -> None:
    from rso_lab.history import refuse_special

    try:
        refuse_special(path)
        if not path.exists():
            path.touch()  # the file system may refuse the name
            path.resolve().unlink()
        elif any(os.path.samestat(path.stat(), os.fstat(number)) for number in _open_streams()):
            raise OSError(0, "it is where the messages go")
        with tempfile.TemporaryFile(dir=path.resolve().parent):
            pass
    except ValueError as error:
        raise Failure(f"{str(path)!r} cannot be written ({error}): name another file") from error
    except OSError as error:
        raise Failure(f"{path} cannot be written ({error.strerror}): name a file in a folder that can") from error


def _demo(options: Namespace, command: str) -> None:
    import torch

    from rso_lab import plots
    from rso_lab.data import load
    from rso_lab.models import build
    from rso_lab.rso import RSO
    from rso_lab.train import histories

    torch.set_num_threads(1)  # see lessons.begin
    picture = Path("demo.png")
    _refuse_unwritable(picture)
    data = load("digits")
    model = build("one_conv", data)
    weights = sum(parameter.numel() for parameter in model.parameters())
    print(f"A convolutional network of {weights} random weights learns to read {len(data.x_train)} handwritten digits.")
    print("No gradient: for each weight, three losses are compared and the best is kept.\n")
    method = RSO(cycles=10, batch_size=1000)
    history = collections.deque(_printing(histories(model, data, method, seed=0, command=command)), maxlen=1).pop()
    print(f"\nIt has never seen these, and gets {history.cycles[-1].test_accuracy:.1%} of such digits right:\n")
    print(_drawn(data, model))
    plots.save(plots.accuracy(history), picture)
    print(f"\nThe accuracy after each cycle: {picture.resolve()}\nNext, play with it: make lab")


def _drawn(data: "Data", model: "nn.Module", count: int = 5) -> str:
    """The first test digits in letters, side by side, and what the model takes them for."""
    shades = " .:*#@"
    answers = model(data.x_test[:count]).argmax(dim=1).tolist()
    x = data.x_test[:count, 0]
    levels = ((x - x.min()) / (x.max() - x.min()) * (len(shades) - 1)).round().int().tolist()
    rows = ["  ".join("".join(2 * shades[level] for level in digit[row]) for digit in levels) for row in range(8)]
    return "\n".join([*rows, "", "  ".join(f"this is a {answer}".center(16) for answer in answers)])


def _experiments(options: Namespace, command: str) -> None:
    from rso_lab.experiments import EXPERIMENTS, read

    for name, experiment in EXPERIMENTS.items():
        times = []
        for size in experiment.sizes:
            path = options.folder / f"{name}_{size}.json"
            try:
                result = read(path) if path.exists() else None
            except ValueError as error:
                raise Failure(str(error)) from error
            minutes = f"{result['seconds'] / 60:.0f} min, seeds: {len(result['seeds'])}" if result else "not recorded"
            times.append(f"{size}: {minutes}")
        print(f"{name:15} {experiment.question} ({'; '.join(times)})")


def _experiment(options: Namespace, command: str) -> None:
    from tqdm import tqdm

    from rso_lab.experiments import EXPERIMENTS, perform

    if options.seeds < 1:
        options.error(f"--seeds is {options.seeds}: expected a whole number, at least 1")
    sizes = EXPERIMENTS[options.name].sizes
    size = options.size or next(iter(sizes))
    if size not in sizes:
        options.error(f"--size is {size}: experiment {options.name} has {', '.join(sizes)}")
    _refuse_unwritable(options.folder / f"{options.name}_{size}.json")
    try:
        for line in perform(options.name, size, options.seeds, options.folder):
            tqdm.write(line)
    except (ValueError, OSError) as error:
        raise Failure(str(error)) from error


def _report(options: Namespace, command: str) -> None:
    from matplotlib.figure import Figure

    from rso_lab import plots
    from rso_lab.experiments import EXPERIMENTS, curves, results
    from rso_lab.report import report

    try:
        print(report(options.folder))
        for name, size, result in results(options.folder):
            if any(claim.best_only for claim in EXPERIMENTS[name].claims):
                continue  # too many ways for one figure
            ax = Figure(figsize=(7, 4), layout="constrained").subplots()
            plots.comparison(curves(result), ax, EXPERIMENTS[name].against, EXPERIMENTS[name].reference)
            plots.save(ax, options.folder / f"{name}_{size}.png")
    except (ValueError, OSError) as error:
        raise Failure(str(error)) from error


def _plot(options: Namespace, command: str) -> None:
    from rso_lab import plots
    from rso_lab.history import History

    out = options.out or options.runs[0].with_suffix(".png")
    try:
        histories = [History.load(path) for path in options.runs]
    except ValueError as error:
        raise Failure(str(error)) from error
    except OSError as error:
        raise Failure(f"{error.filename} cannot be read ({error.strerror}): name what train --out wrote") from error
    _refuse_unwritable(out)
    try:
        plots.save(plots.accuracy(histories), out)
    except (ValueError, OSError) as error:
        raise Failure(str(error)) from error
    print(f"Wrote {out}")


def _data(options: Namespace, command: str) -> None:
    data = _load(options.name, "cpu")
    from rso_lab.data import find

    where = "inside scikit-learn" if options.name == "digits" else f"in {find(options.name)}"
    print(
        f"{options.name} is here, {where}: {len(data.x_train)} training and {len(data.x_test)} test images of shape "
        f"{tuple(data.x_train.shape[1:])}"
    )


if __name__ == "__main__":
    sys.exit(main())
