"""The report of a scan."""

from collections.abc import Mapping
from typing import Any

from corelens.experiments.run_folder import RunFolder
from corelens.experiments.scan_summary import describe_groups, scan_summary
from corelens.heads import Head
from corelens.reports.common import close, interval_cell
from corelens.reports.page import Page
from corelens.scores import HeadScores
from corelens.viz import depth_profiles, head_map, lorenz_curves, overlap_matrix, score_curve

N_ROWS = 20
"""Heads in a table; figures show all."""

N_SAMPLES = 4
"""Samples at either end of a head's scores."""


def page(run: RunFolder) -> Page:
    """The top heads, the concentration and depth of scores, and the agreement of metrics and data sets.

    Raises:
        ValueError: If the scores are not written yet.
    """
    by_metric = read_scores(run)
    summaries = {name: scan_summary(scores) for name, scores in by_metric.items()}
    (name, first), *_ = by_metric.items()
    report = Page(f"Heads of {first.model} by {first.metric}", _lead(first, summaries[name]))
    report.table(
        ["metric", "top 5 % of heads", "heads with half", "shared by halves", "mean depth"],
        [_row(name, scores.metric, summaries[name]) for name, scores in by_metric.items()],
    )
    report.text(
        "Heads with half: the smallest share of all heads that has half of the score (rho 0.5). Shared by halves: "
        "share of the top heads that two disjoint random halves of the samples have in common. Depth: 0 is the first "
        "layer, 1 the last."
    )
    for name_of, summary in summaries.items():
        if note := describe_groups(summary):
            report.text(f"{name_of}: {note}")
    top = summaries[name]["top"]
    report.heading(f"The top {min(len(top), N_ROWS)} by {first.metric}")
    report.table(
        ["head", "score", "95 % interval"],
        [[head["head"], f"{head['score']:.3g}", interval_cell(head["interval"])] for head in top[:N_ROWS]],
    )
    report.heading("Samples on which they score most and least")
    report.table(["head", "most", "least"], [_samples_of(first, head) for head in first.top().heads[:N_ROWS]])
    report.heading("All heads")
    for scores in by_metric.values():
        if bool(scores.per_head.isinf().any()):
            report.text(f"{scores.metric} is infinite for some heads, and cannot be drawn.")
        else:
            report.figures(head_map(scores, scores.top()), score_curve(scores, scores.top()))
    finite = {name: by_metric[name] for name, summary in summaries.items() if "share of the top" in summary}
    if finite:
        report.heading("Concentration and depth")
        report.figures(lorenz_curves(finite), depth_profiles(finite))
    _add_agreement(report, by_metric, first)
    return close(
        report, run, first.skipped,
        "A score says where a head attends, not what answers depend on; corelens ablate and corelens sweep test that. "
        "Intervals are over samples, and hold for all heads at once (95 %, max-t bootstrap), since the table shows "
        "those that are highest on these samples. The top 5 % is a choice, not a boundary in the data.",
    )  # fmt: skip


def read_scores(run: RunFolder) -> dict[str, HeadScores]:
    """Load the scores of a scan by metric name, in the order in which they were requested.

    Raises:
        ValueError: If the scores are not written yet.
    """
    files = {path.stem: path for path in sorted(run.folder.glob("*.safetensors"))}
    if not files:
        raise ValueError(f"{run.folder} has no scores yet; the command that began the scan writes them when it ends.")
    requested = [name for name in run.manifest["measures"] if name in files]
    return {name: HeadScores.load(files[name]) for name in dict.fromkeys([*requested, *files])}


def _row(name: str, label: str, summary: Mapping[str, Any]) -> list[str]:
    return [
        name if name == label else f"{name}: {label}",
        _listed([head["head"] for head in summary["top"]]),
        f"{summary['rho_0.5']:.1%}" if "rho_0.5" in summary else "",
        f"{summary['split-half overlap']:.0%}" if "split-half overlap" in summary else "",
        f"{summary['mean depth']:.2f}",
    ]


def _samples_of(scores: HeadScores, head: Head) -> list[str]:
    """A head, and the samples at both ends of its scores."""
    named = [
        [f"{scores.samples[row]} ({scores.values[row, *head]:.2g})" for row in rows] for rows in both_ends(scores, head)
    ]
    return [str(head), *map(", ".join, named)]


def both_ends(scores: HeadScores, head: Head) -> tuple[list[int], list[int]]:
    """Numbers of the samples on which a head scores most, and of those on which it scores least, in that order."""
    order = scores.values[:, head.layer, head.head].argsort(stable=True).tolist()
    order = [row for row in order if not scores.values[row, head.layer, head.head].isnan()]
    return order[::-1][:N_SAMPLES], order[:N_SAMPLES]


def _lead(scores: HeadScores, summary: Mapping[str, Any]) -> str:
    """Result of the scan in one sentence."""
    top = [head["head"] for head in summary["top"]]
    even_share = len(top) / summary["heads"]
    lead = f"The top {len(top)} of {summary['heads']:,} heads by {scores.metric} are {_listed(top)}"
    if "share of the top" in summary:
        lead += f"; they hold {summary['share of the top']:.0%} of it, where {even_share:.0%} is an even share"
    if "split-half overlap" in summary:
        overlap = summary["split-half overlap"]
        lead += f", and halves of the samples agree on {overlap:.0%} of them ({even_share:.0%} by chance)"
    return f"{lead}."


def _add_agreement(report: Page, by_metric: Mapping[str, HeadScores], first: HeadScores) -> None:
    """Add overlap matrices of metrics, and of data sets if there are several."""
    datasets = list(dict.fromkeys(first.datasets))
    same_heads = {name: scores for name, scores in by_metric.items() if bool((scores.mask == first.mask).all())}
    figures = [overlap_matrix(same_heads)] if len(same_heads) > 1 else []
    if len(datasets) > 1:
        figures.append(overlap_matrix({name: first.for_dataset(name) for name in datasets}))
    if figures:
        report.heading("Agreement of metrics and data sets" if len(datasets) > 1 else "Agreement of metrics")
        report.figures(*figures)


def _listed(heads: list[str]) -> str:
    more = f" and {len(heads) - 8} more" if len(heads) > 8 else ""
    return ", ".join(heads[:8]) + more
