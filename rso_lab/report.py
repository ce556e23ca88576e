"""What the recorded experiments say beside the papers' claims, as tables in Markdown."""

import itertools
import statistics
from pathlib import Path
from typing import Any

from rso_lab.experiments import EXPERIMENTS, Claim, Measure, Way, Ways, best, is_done, results
from rso_lab.rso import RSO


def report(folder: Path) -> str:
    """All results in a folder, a table in Markdown for each experiment. Raises ValueError where there are none."""
    parts = []
    for name, rows in itertools.groupby(_rows(folder), key=lambda row: row[0]):
        table = "\n".join([*TABLE, *(text for _, _, text in rows)])
        parts.append(f"## {name}: {EXPERIMENTS[name].question}\n\n{table}")
    return "\n\n".join(parts)


def summary(folder: Path) -> str:
    """Of each experiment its first claim, at the largest size that there is, as one table. Raises as `report` does."""
    chosen = {name: text for name, claim, text in _rows(folder) if claim == EXPERIMENTS[name].claims[0]}
    return "\n".join([*TABLE, *chosen.values()])


TABLE = ("| claim | paper | measured | on | command |", "|---|---|---|---|---|")


def _rows(folder: Path) -> list[tuple[str, Claim, str]]:
    """Of each experiment, smaller sizes first, and each of its claims: means over the seeds, lowest and highest."""
    rows = []
    for name, size, result in results(folder):
        experiment = EXPERIMENTS[name]
        ways = experiment.ways(experiment.sizes[size])
        for claim in experiment.claims:
            labels = [label for label in claim.labels or ways if label in ways]
            if claim.best_only:
                labels = [best(result)]
            found = {label: text for label in labels if (text := _summary(result, label, ways[label], claim.measure))}
            if not found:
                continue
            told = "<br>".join(f"{label}: {text}" for label, text in found.items())
            remark = f"<br>{claim.remarks[size]}" if size in claim.remarks else ""
            on = _on(result, {label: ways[label] for label in labels})
            text = f"| {claim.question} | {claim.paper} | {told}{remark} | {on} | `{result['command']}` |"
            rows.append((name, claim, text))
    if not rows:
        raise ValueError(f"{folder} has no results of experiments: python -m rso_lab experiments lists what can be run")
    return rows


def _on(result: dict[str, Any], ways: Ways) -> str:
    """Data and network, how long ways run whose label does not say it, and the machines, if there were several."""
    models = {result["settings"]["ways"][label]["model"] for label in ways}
    lengths = dict.fromkeys(_length(way) for label, way in ways.items() if _length(way) not in label)
    parts = [part for run in result["runs"] if run["method"] in ways for part in (run, *run.get("before", []))]
    machines = {part["machine"] for part in parts if "machine" in part}
    several = [f"{len(machines)} machines"] if len(machines) > 1 else []
    return ", ".join([result["settings"]["data"], *(models if len(models) == 1 else ()), *lengths, *several])


def _length(way: Way) -> str:
    return _count(way.cycles, "cycle" if isinstance(way.method, RSO) else "epoch")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _summary(result: dict[str, Any], label: str, way: Way, measure: Measure) -> str:
    """Mean, lowest and highest; empty where no run has the number."""
    runs = [run for run in result["runs"] if run["method"] == label]
    values = [value for run in runs if not run["failed"] and (value := measure.of(run)) is not None]
    failed = sum(bool(run["failed"]) for run in runs)
    parts = []
    if values:
        parts.append(f"{measure.form(statistics.mean(values))} ({_spread(values, measure)})")
    if failed:
        parts.append(f"{_count(failed, 'run')} failed")
    if not all(is_done(run, way) for run in runs):
        parts.append(f"after {min(len(run['cycles']) for run in runs)} of {_length(way)}")
    return ", ".join(parts)


def _spread(values: list[float], measure: Measure) -> str:
    if len(values) == 1:
        return "1 seed"
    return f"{measure.form(min(values))} to {measure.form(max(values))}, {_count(len(values), 'seed')}"
