"""The report of a scan."""

from collections.abc import Mapping
from typing import Any

from corelens import metrics
from corelens.experiments.comparison import mean_depth
from corelens.experiments.run_folder import RunFolder
from corelens.experiments.scan import summary
from corelens.reports.common import close
from corelens.reports.page import Page
from corelens.scores import HeadScores
from corelens.viz import depth_profiles, head_map, lorenz_curves, overlap_matrix, score_curve

SHOWN = 20
"""Heads in a table; figures show all."""


def page(run: RunFolder) -> Page:
    """Which heads score high, how sharply, where they lie, and how far measures and data sets agree.

    Raises:
        ValueError: If the scores are not written yet.
    """
    every = {path.stem: HeadScores.load(path) for path in sorted(run.folder.glob("*.safetensors"))}
    asked = [name for name in run.manifest["measures"] if name in every]
    every = {name: every[name] for name in dict.fromkeys([*asked, *every])}
    if not every:
        raise ValueError(f"{run.folder} has no scores yet; the command that began the scan writes them when it ends.")
    found = {name: summary(scores) for name, scores in every.items()}
    (name, first), *_ = every.items()
    top = first.top()
    made = Page(f"Heads of {first.model} by {first.metric}", _lead(first, found[name]))
    made.table(
        ["measure", "top 5 % of heads", "heads that hold half", "shared by halves", "mean depth"],
        [
            [
                short if short == one.metric else f"{short}: {one.metric}",
                _listed([each["head"] for each in said["top"]]),
                f"{said['rho_0.5']:.1%}" if "rho_0.5" in said else "",
                f"{said['split-half overlap']:.0%}" if "split-half overlap" in said else "",
                f"{mean_depth(one.top(), len(one.per_head)):.2f}",
            ]
            for (short, one), said in zip(every.items(), found.values(), strict=True)
        ],
    )
    made.text(
        "Heads that hold half: the smallest share of all heads with half of the score (rho 0.5). Shared by halves: how "
        "much of the top sets two disjoint random halves of the samples share. Depth: 0 is the first layer, 1 the last."
    )
    made.heading(f"The top {min(len(top), SHOWN)} by {first.metric}")
    made.table(
        ["head", "score", "95 % interval"],
        [
            [one["head"], f"{one['score']:.3g}", f"{one['interval'][0]:.3g} to {one['interval'][1]:.3g}"]
            for one in found[name]["top"][:SHOWN]
        ],
    )
    made.heading("All heads")
    for one in every.values():
        if bool(one.per_head.isinf().any()):
            made.text(f"{one.metric} is infinite for some heads, and cannot be drawn.")
        else:
            made.figures(head_map(one, one.top()), score_curve(one, one.top()))
    positive = {short: one for short, one in every.items() if 0 < float(one.per_head.nan_to_num().max()) < float("inf")}
    if positive:
        made.heading("How few heads hold it, and where")
        made.figures(lorenz_curves(positive), depth_profiles(positive))
    _agreements(made, every, first)
    return close(
        made, run, first.skipped,
        "A score says where a head looks, not what answers depend on: corelens ablate and corelens sweep ask that. "
        "Intervals are 95 % bootstrap intervals over samples, of each head by itself. The top 5 % is a choice, not a "
        "boundary that was found.",
    )  # fmt: skip


def _lead(scores: HeadScores, found: Mapping[str, Any]) -> str:
    """The one sentence to take away."""
    top = scores.top()
    even = len(top) / scores.n_heads
    said = (
        f"The top {len(top)} of {scores.n_heads:,} heads by {scores.metric} are {_listed([str(head) for head in top])}"
    )
    if "rho_0.5" in found and bool(scores.per_head[scores.mask].isfinite().all()):
        held = float(metrics.lorenz_curve(scores.per_head)[len(top)])
        said += f"; they hold {held:.0%} of it, where {even:.0%} is an even share"
    if "split-half overlap" in found:
        said += f", and halves of the samples agree on {found['split-half overlap']:.0%} of them ({even:.0%} by chance)"
    return f"{said}."


def _agreements(made: Page, measures: Mapping[str, HeadScores], first: HeadScores) -> None:
    names = [name for name in dict.fromkeys(first.datasets) if len(set(first.datasets)) > 1]
    scored = {name: one for name, one in measures.items() if bool((one.mask == first.mask).all())}
    figures = [overlap_matrix(scored)] if len(scored) > 1 else []
    if names:
        figures.append(overlap_matrix({name: first.for_dataset(name) for name in names}))
    if figures:
        made.heading("How far measures and data sets agree" if names else "How far measures agree")
        made.figures(*figures)


def _listed(heads: list[str]) -> str:
    more = f" and {len(heads) - 8} more" if len(heads) > 8 else ""
    return ", ".join(heads[:8]) + more
