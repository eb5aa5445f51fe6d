"""Finished head scores in a few numbers and words, as the command, its report and the comparison of runs show them."""

from collections.abc import Mapping
from typing import Any

from corelens.experiments.comparison import mean_depth
from corelens.metrics import lorenz_curve, rho, sample_groups, stability_curve
from corelens.scores import HeadScores


def scan_summary(scores: HeadScores) -> dict[str, Any]:
    """Summary of the scores by one metric, ready for JSON; only means over several samples have intervals.

    The samples chose the top heads, so that intervals are those that hold for all heads at once.
    """
    top = scores.top()
    origin: Any = {"groups": scores.groups, "datasets": scores.datasets}
    summary: dict[str, Any] = {
        "samples": len(scores.samples),
        "heads": scores.n_heads,
        "top": [
            {
                "head": str(head),
                "score": round(float(scores.per_head[head]), 5),
                "interval": None
                if scores.interval[0][head].isnan()
                else [round(float(bound[head]), 5) for bound in scores.interval],
            }
            for head in top
        ],
        "mean depth": round(mean_depth(top, len(scores.per_head)), 4),
    }
    if scores.n_groups > 1:
        stability = stability_curve(scores.values, **origin)
        summary["split-half overlap"] = round(float(stability.mean[-1]), 3)
    if float(scores.per_head.nan_to_num().max()) > 0:
        summary["rho_0.5"] = round(rho(scores.per_head), 4)
        if bool(scores.per_head[scores.mask].isfinite().all()):
            summary["share of the top"] = round(float(lorenz_curve(scores.per_head)[len(top)]), 4)
    if (groups := _groups(scores)) is not None:
        summary["groups"] = groups
    return summary


def _groups(scores: HeadScores) -> dict[str, Any] | None:
    """Two groups of samples that score different heads high, if there are such: the mean is then of neither."""
    if len(scores.samples) < 8:
        return None
    try:
        p_value, first = sample_groups(scores.values)
    except ValueError:  # no head has a score in all samples
        return None
    parts = [scores.select(rows.nonzero().flatten().tolist()) for rows in (first, ~first)]
    if p_value >= 0.05 or min(len(part.samples) for part in parts) < 2:
        return None
    tops = [[str(head) for head in part.top()] for part in parts]
    return {
        "p": p_value,
        "samples": [len(part.samples) for part in parts],
        "top": tops,
        "shared": len({*tops[0]} & {*tops[1]}),
    }


def describe_groups(summary: Mapping[str, Any]) -> str:
    """Warning that the mean of a scan hides two groups of samples, in words; empty if it does not."""
    if "groups" not in summary:
        return ""
    groups = summary["groups"]
    (n, other_n), (top, other_top) = groups["samples"], groups["top"]
    return (
        f"The mean hides two groups of samples that use different heads (dip test, p = {groups['p']:.2g}): the top of "
        f"{n} samples is {', '.join(top[:5])}, of the other {other_n} {', '.join(other_top[:5])}; they share "
        f"{groups['shared']} of {len(top)}. Scan the kinds of questions apart."
    )
