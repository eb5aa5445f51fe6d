"""The report of an evaluation of sparse plans."""

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from corelens.experiments.conditions import BASELINE, low_to_high, read_conditions
from corelens.experiments.run_folder import RunFolder, read_summary
from corelens.reports.common import change_cells, close, percent
from corelens.reports.page import Page
from corelens.viz import speed_against_accuracy

REQUIRED = ("model", "other heads", "positions", "plans", "data", "skipped")
LEAD = "Accuracy with full attention in some heads and sparse attention in all others."
FIGURE_WAYS = ("core", "write-matched", "best groups", "whole layers", "random", "random, same layers", "bottom")
"""Ways to spend a budget that the figures show; the table has all."""


def page(run: RunFolder) -> Page:
    """Accuracy by speed, one line for each way to spend a budget, for every data set."""
    if not (run.folder / "acceleration.json").is_file():
        return _accuracy_page(run)
    summary = read_summary(run.folder / "acceleration.json", *REQUIRED)
    report = Page(f"{summary['model']} under sparse plans", _lead(summary))
    for dataset, data in summary["data"].items():
        report.heading(f"{dataset or 'Samples'}: {data['samples']:,} samples")
        report.figures(*_figures(summary["plans"], data["conditions"]), height=460)
        report.table(
            [
                "plan",
                "accuracy, %",
                "change",
                "95 % interval",
                "recall",
                "heads, %",
                "of which write",
                "cache, %",
                "cache, MB",
                "prefill",
                "speed",
            ],
            [_row(name, result, summary["plans"][name]) for name, result in data["conditions"].items()],
        )
    report.text(
        f"Heads: those that attend to everything, and the number of them that write anything, since no others matter; "
        f"the others: {summary['other heads']}. Cache: stored keys and values, "
        f"in percent for a prompt of {summary['positions']:,} positions, in MB with generated tokens. Change: "
        f"of accuracy, in points. Recall: share of the last prompt token's attention on keys that heads keep. "
        f"Prefill and speed: for that prompt, and with 256 generated tokens, relative to the unchanged model. "
        f"Controls that need more heads than there are beside the best are left out.{too_short(summary)}"
    )
    return close(
        report, run, summary["skipped"],
        "Speed was measured on the machine of the run, on the longest prompt; short prompts leave little to save. "
        "Intervals are over samples, paired, and not corrected for the number of plans. The speed of pruning visual "
        "tokens was not measured.",
    )  # fmt: skip


def _accuracy_page(run: RunFolder) -> Page:
    """Accuracy of plans whose speed was not measured."""
    results = read_conditions(run)
    datasets = results.summary_by_dataset()
    report = Page(f"{run.manifest['model']} under sparse plans", LEAD)
    for name, data in datasets.items():
        report.heading(f"{name or 'Samples'}: {data['samples']:,} samples, accuracy in percent")
        report.table(
            ["plan", "accuracy", "change", "95 % interval"],
            [[plan, percent(result["accuracy"]), *change_cells(result)] for plan, result in data["conditions"].items()],
        )
    return close(
        report,
        run,
        results.skipped,
        "Speed was not measured; corelens accelerate does that when the answers are there. Intervals are over samples, "
        "paired, and not corrected for the number of plans.",
    )


def too_short(summary: Mapping[str, Any]) -> str:
    """Note that the plans change nothing at this length, or gain nothing; empty if they do."""
    plans = [plan for name, plan in summary["plans"].items() if "full attention" in plan and name != BASELINE]
    if all(plan["full attention"] for plan in plans):
        return (
            f" Sinks and window cover all {summary['positions']:,} positions: every plan is full attention, and the "
            f"table compares the model with itself."
        )
    if all(plan["generation"] < 1.05 for plan in plans):
        return f" No plan is faster here: prompts of {summary['positions']:,} positions are too short to gain from one."
    return ""


def _lead(summary: Mapping[str, Any]) -> str:
    """Accuracy with the smallest budget of core heads, and with as many random heads."""
    plans = summary["plans"]
    core = next((name for name in plans if name.startswith("core ")), None)
    if core is None:
        return LEAD
    plan, baseline = plans[core], plans[BASELINE]
    by_dataset = {name or "the samples": data["conditions"] for name, data in summary["data"].items()}
    changes = [
        f"{percent(results[BASELINE]['accuracy'])} to {percent(results[core]['accuracy'])} percent on {name}"
        for name, results in by_dataset.items()
    ]
    lead = (
        f"With full attention in {percent(plan['full heads'])} percent of heads and {percent(plan['stored cache'])} "
        f"percent of the cache, chosen by their scores, accuracy goes from "
        f"{', '.join(changes)}"
    )
    control, kind = core.replace("core", "write-matched"), "as many random heads that write as much"
    if control not in plans:
        control, kind = core.replace("core", "random"), "as many random heads"
    if control in plans:
        accuracies = [f"{percent(results[control]['accuracy'])} on {name}" for name, results in by_dataset.items()]
        lead += f" ({kind}: {', '.join(accuracies)})"
    return (
        f"{lead}; keys and values take {baseline['cache'] / plan['cache']:.1f} times fewer bytes, and a prompt of "
        f"{summary['positions']:,} positions and 256 generated tokens are {plan['generation']:.2f} times as fast."
    )


def _figures(plans: Mapping[str, Any], conditions: Mapping[str, Any]) -> list[go.Figure]:
    gains: dict[str, Any] = {
        "times fewer bytes of keys and values": lambda plan: plans[BASELINE]["cache"] / plan["cache"],
        "times as fast": lambda plan: plan["generation"],
    }
    figures = []
    for gain, gain_of in gains.items():
        ways: dict[str, dict[str, tuple[float, float]]] = {}
        for condition, result in conditions.items():
            way, _, budget = condition.rpartition(" ")
            if way in FIGURE_WAYS:
                ways.setdefault(way, {})[budget] = gain_of(plans[condition]), result["accuracy"]
        figures.append(speed_against_accuracy(ways, conditions[BASELINE]["accuracy"], gain))
    return figures


def _row(name: str, result: Mapping[str, Any], plan: Mapping[str, Any]) -> list[str]:
    cells = [name, percent(result["accuracy"]), *change_cells(result)]
    if "cache" not in plan:
        return [*cells, *[""] * 7]
    return [
        *cells,
        f"{plan['kept attention']:.2f}",
        percent(plan["full heads"]),
        low_to_high(result.get("heads that write", [])),
        percent(plan["stored cache"]),
        f"{plan['cache'] / 1e6:.2f}",
        f"{plan['prefill']:.2f}x",
        f"{plan['generation']:.2f}x",
    ]
