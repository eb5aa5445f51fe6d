"""The report of a sweep."""

from corelens.experiments.run_folder import RunFolder, read_summary
from corelens.reports.common import close, interval_cell
from corelens.reports.page import Page
from corelens.scores import HeadScores
from corelens.viz import head_map, score_curve

N_ROWS = 20
"""Units in the table."""


def page(run: RunFolder) -> Page:
    """Drop in log-probability by ablating each head, layer or group by itself."""
    summary = read_summary(run.folder / "sweep.json", "model", "per", "units", "with an effect", "skipped")
    units, per = summary["units"], summary["per"]
    first, n_with_effect = units[0], summary["with an effect"]
    report = Page(
        f"Effect of each {per} of {summary['model']} on its answers",
        f"Ablating {first['name']} alone costs most: {first['drop']:.3g} nats of the answer's log-probability"
        + (
            f" (95 % interval {interval_cell(first['interval'])}); {n_with_effect} of {len(units):,} {per}s have an "
            f"effect, at a false discovery rate of {summary['false discovery rate']:g}."
            if n_with_effect is not None
            else ", on one sample, which gives no interval."
        ),
    )
    report.table(
        ["ablated", "drop in log-probability", "95 % interval"],
        [[unit["name"], f"{unit['drop']:.3g}", interval_cell(unit["interval"])] for unit in units[:N_ROWS]],
    )
    if len(units) > N_ROWS:
        report.text(f"The {N_ROWS} largest drops of {len(units):,}; sweep.json has all.")
    if (file := run.folder / "sweep.safetensors").exists():
        scores = HeadScores.load(file)
        report.figures(head_map(scores, scores.top()), score_curve(scores, scores.top()))
    return close(
        report,
        run,
        summary["skipped"],
        f"A sweep measures what ablating costs, a scan where heads attend, and the two need not agree: a head that "
        f"attends to the evidence may have others beside it that do the same, and one that attends elsewhere may be "
        f"what these depend on. Each {per} is ablated by itself: where several do the same work, the loss of one costs "
        f"little, and small drops do not show that none of them is needed. Intervals are over samples, and hold for "
        f"all {len(units):,} {per}s at once, since the table shows those that cost most on these samples. The number "
        f"of {per}s with an effect is by paired t-tests over samples and the procedure of Benjamini and Hochberg: of "
        f"so many, that share is expected to have none.",
    )
