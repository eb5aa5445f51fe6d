"""The report of an ablation."""

from typing import Any

from corelens.experiments.conditions import BASELINE, ConditionResults, read_conditions
from corelens.experiments.run_folder import RunFolder
from corelens.heads import HeadSet
from corelens.reports.common import close, percent
from corelens.reports.page import Page
from corelens.viz import accuracy_bars


def page(run: RunFolder) -> Page:
    """Accuracy without some heads and without others."""
    found = read_conditions(run)
    datasets = list(dict.fromkeys(found.datasets))
    of = {name: found.summary(name) for name in datasets}
    made = Page(f"{run.manifest['model']} without some of its heads", _lead(found, of))
    bars = {
        name or "samples": {_label(one): found.accuracies(one, name) for one in found.conditions} for name in datasets
    }
    made.figures(accuracy_bars(bars), height=420)
    for name in datasets:
        made.heading(f"{name or 'Samples'}: {found.datasets.count(name):,} samples, accuracy in percent")
        made.table(
            ["removed", "accuracy", "unreadable", "change", "95 % interval", "p"],
            [_row(condition, said) for condition, said in of[name].items()],
        )
    made.heading("Which heads")
    made.facts(
        {
            condition: str(sets[0]) if len(sets) == 1 else f"{len(sets)} draws of {len(sets[0])} heads"
            for condition, sets in found.conditions.items()
            if condition != BASELINE
        }
    )
    return close(
        made, run, found.skipped,
        "Changes are paired, sample by sample, and of several draws the mean; intervals and p-values are over samples, "
        "not corrected for their number. Heads that were chosen on the samples that they are tested on here look more "
        "needed than they are. A removed head also takes from others what they read from it.",
    )  # fmt: skip


def _lead(found: ConditionResults[HeadSet], of: dict[str, dict[str, dict[str, Any]]]) -> str:
    """The first condition beside the plain one, and beside random heads if there are some."""
    _, first, *others = found.conditions
    heads = found.conditions[first][0]
    said = [
        f"{percent(own[BASELINE]['accuracy'])} to {percent(own[first]['accuracy'])} percent on {name or 'the samples'}"
        for name, own in of.items()
    ]
    lead = f"With {len(heads)} heads removed ({first}), accuracy goes from {', '.join(said)}"
    if "random" in others:
        drawn = [f"{percent(own['random']['accuracy'])} on {name or 'the samples'}" for name, own in of.items()]
        lead += f"; with as many random heads removed, to {', '.join(drawn)}"
    return f"{lead}."


def _label(condition: str) -> str:
    return "nothing" if condition == BASELINE else condition


def _row(condition: str, said: dict[str, Any]) -> list[str]:
    low_high = "{:+.1f} to {:+.1f}".format(*(100 * one for one in said["interval"])) if "interval" in said else ""
    return [
        _label(condition),
        percent(said["accuracy"]),
        percent(said["unreadable"]),
        f"{100 * said['change']:+.1f}" if "change" in said else "",
        low_high,
        f"{said['p']:.4f}" if "p" in said else "",
    ]
