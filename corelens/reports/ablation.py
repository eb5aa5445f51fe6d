"""The report of an ablation."""

from collections.abc import Mapping
from typing import Any

from corelens.data.scoring.answers import ScoredAnswer
from corelens.experiments.ablation_summary import ablation_summary, dose_curve
from corelens.experiments.conditions import BASELINE, MATCHED, low_to_high, read_conditions
from corelens.experiments.run_folder import RunFolder, read_summary
from corelens.reports.common import ANSWER_COLUMNS, answer_row, change_cells, close, percent
from corelens.reports.page import Page
from corelens.viz import ablation_curves, accuracy_bars


def page(run: RunFolder) -> Page:
    """Accuracy without some heads and without control heads."""
    results = read_conditions(run)
    summary = ablation_summary(results)
    heads, datasets = summary["heads"], summary["data"]
    report = Page(f"{run.manifest['model']} without some of its heads", _lead(heads, datasets))
    curves = {name: curve for name in datasets if (curve := dose_curve(results, name)) and len(curve.doses) > 1}
    if not curves:
        report.figures(accuracy_bars({name or "samples": _bars(data) for name, data in datasets.items()}), height=420)
    for name, data in datasets.items():
        report.heading(f"{name or 'Samples'}: {data['samples']:,} samples, accuracy in percent")
        if name in curves:
            report.figures(ablation_curves(curves[name], results.n_groups(name)))
        report.table(
            ["ablated", "heads that write", "accuracy", "unreadable", "change", "95 % interval", "p"],
            [_row(condition, result) for condition, result in data["conditions"].items()],
        )
        for dose, (n_as_costly, n_draws) in data["write-matched draws as costly as top"].items():
            report.text(
                f"{n_as_costly} of {n_draws} draws of write-matched {dose} cost as much as top {dose}, or more."
            )
    if answers := _answers(run):
        report.heading("What counts as right")
        report.table(ANSWER_COLUMNS, [answer_row(answer) for answer in answers])
        report.text("The first answers to each data set with nothing ablated, beside what its rule accepts.")
    report.heading("Heads")
    report.facts(
        {
            condition: draws[0] if len(draws) == 1 else f"{len(draws)} draws of {_size(draws[0])} heads"
            for condition, draws in heads.items()
            if condition != BASELINE
        }
    )
    return close(
        report, run, summary["skipped"],
        "Changes are paired, sample by sample, and the mean over draws if there are several; intervals and p-values "
        "are over samples, and not corrected for their number. Heads that were chosen on the samples that they are "
        "tested on look more important than they are. Ablating a head also changes the inputs of later heads.",
    )  # fmt: skip


def _answers(run: RunFolder) -> list[ScoredAnswer]:
    """Answers that the command wrote down; none of a run from Python."""
    file = run.folder / "ablation.json"
    by_dataset = read_summary(file).get("answers", {}) if file.is_file() else {}
    return [ScoredAnswer(**answer) for answers in by_dataset.values() for answer in answers]


def _lead(heads: Mapping[str, list[str]], datasets: Mapping[str, Any]) -> str:
    """Accuracy without the heads of the first condition, and without control heads that could do as much harm.

    Random heads take their place if there are none, with the number of those that write anything.
    """
    _, first, *others = heads
    accuracies = {name or "the samples": _accuracies(data) for name, data in datasets.items()}
    changes = [f"{percent(of[BASELINE])} to {percent(of[first])} percent on {name}" for name, of in accuracies.items()]
    lead = f"With {_size(heads[first][0])} heads ablated ({first}), accuracy goes from {', '.join(changes)}"
    for kind in (MATCHED, "random"):
        if (control := first.replace("top", kind, 1)) in others:
            without = [f"{percent(of[control])} on {name}" for name, of in accuracies.items()]
            n_writing = next(iter(datasets.values()))["conditions"][control].get("heads that write", [])
            writing = f", of which {low_to_high(n_writing)} write anything" * bool(n_writing and kind != MATCHED)
            lead += f"; with as many {kind} heads ablated{writing}, to {', '.join(without)}"
            break
    return f"{lead}."


def _accuracies(data: Mapping[str, Any]) -> dict[str, float]:
    return {condition: result["accuracy"] for condition, result in data["conditions"].items()}


def _bars(data: Mapping[str, Any]) -> dict[str, list[float]]:
    """Accuracies of all draws, by condition."""
    return {
        _label(condition): result.get("of each draw", [result["accuracy"]])
        for condition, result in data["conditions"].items()
    }


def _size(heads: str) -> int:
    """Number of heads in a written head set."""
    return len(heads.split(", ")) if heads else 0


def _label(condition: str) -> str:
    return "nothing" if condition == BASELINE else condition


def _row(condition: str, result: Mapping[str, Any]) -> list[str]:
    return [
        _label(condition),
        low_to_high(result.get("heads that write", [])),
        percent(result["accuracy"]),
        percent(result["unreadable"]),
        *change_cells(result),
        f"{result['p']:.4f}" if "p" in result else "",
    ]
