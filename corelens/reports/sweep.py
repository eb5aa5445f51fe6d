"""The report of a sweep."""

from corelens.experiments.run_folder import RunFolder, read_summary
from corelens.reports.common import close
from corelens.reports.page import Page
from corelens.scores import HeadScores
from corelens.viz import head_map, score_curve

SHOWN = 20
"""Units in the table."""


def page(run: RunFolder) -> Page:
    """What removing every head, layer or group by itself costs."""
    found = read_summary(run.folder / "sweep.json", "model", "per", "units", "skipped")
    units, per = found["units"], found["per"]
    first, above = units[0], [one for one in units if one["interval"][0] > 0]
    made = Page(
        f"What each {per} of {found['model']} is worth to its answers",
        f"Removing {first['name']} alone costs most: {first['drop']:.3g} nats of the answer's log-probability "
        f"[{first['interval'][0]:.3g}, {first['interval'][1]:.3g}]; of {len(units):,} {per}s, {len(above)} have an "
        f"interval that lies above zero.",
    )
    made.table(
        ["removed", "drop in log-probability", "95 % interval"],
        [
            [one["name"], f"{one['drop']:.3g}", f"{one['interval'][0]:.3g} to {one['interval'][1]:.3g}"]
            for one in units[:SHOWN]
        ],
    )
    if len(units) > SHOWN:
        made.text(f"The costliest {SHOWN} of {len(units):,}; sweep.json has all.")
    if (file := run.folder / "sweep.safetensors").exists():
        scores = HeadScores.load(file)
        made.figures(head_map(scores, scores.top()), score_curve(scores, scores.top()))
    return close(
        made, run, found["skipped"],
        f"Each {per} is removed by itself: where several do the same work, the loss of one costs little, and small "
        f"drops do not show that none of them is needed. Intervals are over samples and not corrected for being "
        f"{len(units):,}.",
    )  # fmt: skip
