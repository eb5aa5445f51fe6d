"""The report of an acceleration."""

from typing import Any

import plotly.graph_objects as go

from corelens.experiments.conditions import BASELINE
from corelens.experiments.run_folder import RunFolder, read_summary
from corelens.reports.common import close, percent
from corelens.reports.page import Page
from corelens.viz import speed_against_accuracy

NEEDED = ("model", "sink", "window", "positions", "plans", "data", "skipped")
DRAWN = ("core", "best groups", "whole layers", "random", "random, same layers", "bottom")
"""Ways to spend a budget that the figures show; the table has all."""


def page(run: RunFolder) -> Page:
    """Accuracy by speed, one line for each way to spend a budget, for every data set."""
    found = read_summary(run.folder / "acceleration.json", *NEEDED)
    made = Page(f"{found['model']} under plans", _lead(found))
    for dataset, of in found["data"].items():
        made.heading(f"{dataset or 'Samples'}: {of['samples']:,} samples")
        made.figures(*_figures(found["plans"], of["conditions"]), height=460)
        made.table(
            ["plan", "accuracy, %", "change", "95 % interval", "kept", "heads, %", "cache, MB", "speed"],
            [_row(name, said, found["plans"][name]) for name, said in of["conditions"].items()],
        )
    made.text(
        f"Heads that do not see everything see the first {found['sink']:,} and the last {found['window']:,} tokens. "
        f"Change: of accuracy, in points. Kept: share of the attention of the prompt's last token that heads keep. "
        f"Heads: those that see everything. Cache and speed: of reading {found['positions']:,} positions and "
        f"generating 256 tokens; speed is beside the model as it is. "
        "Controls that need more heads than there are beside the best are left out."
    )
    return close(
        made, run, found["skipped"],
        "Speed was measured on the machine of the run, on one prompt, the longest; short prompts leave little to save. "
        "Intervals are over samples, paired, and not corrected for the number of plans. Pruning of visual tokens has "
        "no speed here.",
    )  # fmt: skip


def _lead(found: dict[str, Any]) -> str:
    """The smallest budget of core heads, beside the same of random ones."""
    core = next((name for name in found["plans"] if name.startswith("core ")), None)
    if core is None:
        return "Accuracy when some heads see everything and all others little."
    plan, plain = found["plans"][core], found["plans"][BASELINE]
    conditions = {name or "the samples": of["conditions"] for name, of in found["data"].items()}
    said = [
        f"{percent(of[BASELINE]['accuracy'])} to {percent(of[core]['accuracy'])} percent on {name}"
        for name, of in conditions.items()
    ]
    lead = (
        f"With {plan['full heads']:.0%} of heads seeing everything, chosen by their scores, accuracy goes from "
        f"{', '.join(said)}"
    )
    if (other := core.replace("core", "random")) in found["plans"]:
        drawn = [f"{percent(of[other]['accuracy'])} on {name}" for name, of in conditions.items()]
        lead += f" (as many random heads: {', '.join(drawn)})"
    return (
        f"{lead}; keys and values take {plain['cache'] / plan['cache']:.1f} times fewer bytes, and reading "
        f"{found['positions']:,} positions and generating 256 tokens is {plan['generation']:.2f} times as fast."
    )


def _figures(plans: dict[str, Any], conditions: dict[str, Any]) -> list[go.Figure]:
    gains = {
        "times fewer bytes of keys and values": lambda plan: plans[BASELINE]["cache"] / plan["cache"],
        "times as fast": lambda plan: plan["generation"],
    }
    figures = []
    for gain, of_plan in gains.items():
        ways: dict[str, dict[str, tuple[float, float]]] = {}
        for condition, said in conditions.items():
            way, _, budget = condition.rpartition(" ")
            if way in DRAWN:
                ways.setdefault(way, {})[budget] = of_plan(plans[condition]), said["accuracy"]
        figures.append(speed_against_accuracy(ways, conditions[BASELINE]["accuracy"], gain))
    return figures


def _row(name: str, said: dict[str, Any], plan: dict[str, Any]) -> list[str]:
    low_high = "{:+.1f} to {:+.1f}".format(*(100 * one for one in said["interval"])) if "interval" in said else ""
    cells = [name, percent(said["accuracy"]), f"{100 * said['change']:+.1f}" if "change" in said else "", low_high]
    if "cache" not in plan:
        return [*cells, "", "", "", ""]
    return [
        *cells,
        f"{plan['kept attention']:.2f}",
        percent(plan["full heads"]),
        f"{plan['cache'] / 1e6:.2f}",
        f"{plan['generation']:.2f}x",
    ]
