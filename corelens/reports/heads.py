"""Lasting pages of heads: a page for each, with its scores, samples and effects, and a map that leads to them."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import plotly.graph_objects as go

from corelens.experiments.conditions import BASELINE, ConditionResults, read_conditions
from corelens.experiments.run_folder import RunFolder
from corelens.files import UNFINISHED, write_file
from corelens.heads import Head, HeadSet
from corelens.reports.common import change_cells, close, interval_cell, percent
from corelens.reports.page import Page, link, plotly_script
from corelens.reports.scan import both_ends, read_scores
from corelens.reports.scanned_samples import Drawn, ScannedSamples
from corelens.scores import HeadScores
from corelens.viz import head_map, sample_distribution

INDEX, LIBRARY = "index.html", "plotly.js"


@dataclass(frozen=True)
class HeadRuns:
    """A finished scan, and the sweeps and ablations that say what its heads do for answers."""

    scan: RunFolder
    scores: Mapping[str, HeadScores]
    """By metric; the first ranks heads and samples."""

    sweeps: Mapping[str, HeadScores]
    """Drop in log-probability when each head is ablated by itself, by folder."""

    ablations: Mapping[str, ConditionResults[HeadSet]]
    """By folder."""

    @property
    def ranking(self) -> HeadScores:
        """The scores that rank heads and samples."""
        return next(iter(self.scores.values()))

    def check_heads(self, heads: HeadSet) -> None:
        """Raise a ValueError if there is no head, or one has no score."""
        if not len(heads):
            raise ValueError("there is no head to write a page about.")
        if missing := [str(head) for head in heads if head not in self.ranking.ranked()]:
            layers, n_heads = self.ranking.values.shape[1:]
            raise ValueError(f"{', '.join(missing)} has no score in {layers} layers of {n_heads} heads.")


def read_runs(folders: Sequence[str | PathLike[str]], metric: str | None = None) -> HeadRuns:
    """Load a finished scan, and sweeps and ablations of the same model, in any order.

    Args:
        folders: Their folders.
        metric: Metric of the scan that ranks heads and samples; the first by default.

    Raises:
        ValueError: If there is not one scan, another is of other weights or work, or there is no such metric.
    """
    runs = [RunFolder.load(folder) for folder in folders]
    scans = [run for run in runs if run.manifest["work"] == "scan"]
    if len(scans) != 1:
        raise ValueError(
            f"of {', '.join(map(str, folders))} {len(scans)} are scans; pages need one, and sweeps and ablations of "
            f"the same model."
        )
    scan, scores = scans[0], read_scores(scans[0])
    if metric is not None and metric not in scores:
        raise ValueError(f"{scan.folder} has no scores by {metric!r}; it has {', '.join(scores)}.")
    first = metric or next(iter(scores))
    sweeps, ablations = {}, {}
    for run in runs:
        work, name = run.manifest["work"], str(run.folder)
        if run.manifest["weights"] != scan.manifest["weights"]:
            raise ValueError(
                f"{name} is of {run.manifest['model']} with the weights {run.manifest['weights']}, and {scan.folder} "
                f"of {scan.manifest['model']} with {scan.manifest['weights']}."
            )
        if work == "ablate":
            ablations[name] = read_conditions(run)
        elif work == "sweep" and (file := run.folder / "sweep.safetensors").exists():
            sweeps[name] = HeadScores.load(file)
        elif work != "scan":
            raise ValueError(f"{name} says nothing of single heads: give sweeps of heads, and ablations.")
    return HeadRuns(scan, {first: scores.pop(first), **scores}, sweeps, ablations)


def write_head_pages(
    out: str | PathLike[str], runs: HeadRuns, heads: HeadSet, samples: ScannedSamples | None = None
) -> Path:
    """Write a page for each head, and a map of all heads that leads to them, into a folder: all pages or none.

    Args:
        out: Folder, which does not exist yet.
        runs: As returned by `read_runs`.
        heads: Heads that get a page.
        samples: Samples of the scan, for their pictures and the heads' attention; pages have scores alone by default.

    Returns:
        The path of the map.

    Raises:
        ValueError: If the folder exists, or a head has no score.
    """
    out = check_new(out)
    runs.check_heads(heads)
    drawn = None if samples is None else samples.draw(runs.ranking, heads)
    pages = {INDEX: _index(runs, heads), **{_file(head): _head_page(runs, head, drawn) for head in heads}}
    unfinished = out.with_name(out.name + UNFINISHED)
    if unfinished.exists():
        shutil.rmtree(unfinished)
    unfinished.mkdir(parents=True)
    write_file(unfinished / LIBRARY, plotly_script())
    for file, page in pages.items():
        write_file(unfinished / file, page.html(LIBRARY))
    unfinished.rename(out)
    return out / INDEX


def check_new(out: str | PathLike[str]) -> Path:
    """Return the path of a folder that does not exist yet.

    Raises:
        ValueError: If it exists.
    """
    out = Path(out)
    if out.exists():
        raise ValueError(f"{out} exists already; choose another folder, or delete it.")
    return out


def _file(head: Head) -> str:
    return f"{head}.html"


def _index(runs: HeadRuns, heads: HeadSet) -> Page:
    """The map of all heads, and the table of those that have a page."""
    scores = runs.ranking
    page = Page(
        f"Heads of {scores.model}",
        f"{len(heads)} of {scores.n_heads:,} heads have a page: {heads.name}. "
        f"Scores are over {len(scores.samples):,} samples{_of_datasets(scores)}.",
    )
    if bool(scores.per_head.isinf().any()):
        page.text(f"{scores.metric} is infinite for some heads, and cannot be drawn.")
    else:
        page.figures(_linked_map(scores, heads), height=440)
        page.text("A click on an outlined head opens its page.")
    sweeps = [f"drop without it, {name}" for name in runs.sweeps]
    page.table(
        ["head", *runs.scores, *sweeps],
        [
            [
                link(str(head), _file(head)),
                *(f"{of.per_head[head]:.3g}" for of in (*runs.scores.values(), *runs.sweeps.values())),
            ]
            for head in sorted(heads, key=runs.ranking.ranked().index)
        ],
    )
    return _close(page, runs)


def _linked_map(scores: HeadScores, heads: HeadSet) -> go.Figure:
    """The map of all heads, in which each of some leads to its page."""
    addresses = np.full(tuple(scores.per_head.shape), "", dtype=object)
    for head in heads:
        addresses[head] = _file(head)
    return head_map(scores, heads).update_traces(customdata=addresses, selector={"type": "heatmap"})


def _of_datasets(scores: HeadScores) -> str:
    names = [name for name in dict.fromkeys(scores.datasets) if name]
    return f" of {', '.join(names)}" if names else ""


def _head_page(runs: HeadRuns, head: Head, drawn: Drawn | None) -> Page:
    """Scores, effects and samples of one head."""
    scores = runs.ranking
    rank = scores.ranked().index(head) + 1
    page = Page(
        f"{head} of {scores.model}",
        f"Rank {rank} of {scores.n_heads:,} by {scores.metric}: {scores.per_head[head]:.3g} over "
        f"{len(scores.samples):,} samples{_of_datasets(scores)}.",
    )
    page.text(link("All heads", INDEX))
    page.table(["metric", "score", "95 % interval", "rank"], [_score_row(of, head) for of in runs.scores.values()])
    page.heading("Effects on answers")
    if rows := _effect_rows(runs, head):
        page.table(["ablated", "run", "measured", "effect", "95 % interval of the change"], rows)
    else:
        page.text("No sweep or ablation of this head was given, so that nothing is known of what it does to answers.")
    page.heading("Over the samples")
    page.figures(sample_distribution(scores, head), height=120 + 90 * len(set(scores.datasets) or {""}))
    ends = both_ends(scores, head)
    for rows, title in zip(ends, ("Samples on which it scores most", "Samples on which it scores least"), strict=True):
        page.heading(title)
        if drawn is None:
            cells = [[scores.samples[row], f"{scores.values[row, *head]:.3g}"] for row in rows]
            page.table(["sample", scores.metric], cells)
            continue
        if figures := [figure for row in rows if not isinstance(figure := drawn.figures[head, row], str)]:
            page.figures(*figures)
        for row in rows:
            if isinstance(reason := drawn.figures[head, row], str):
                page.text(reason)
    page.text(
        "The page was written without the samples, and has their names and scores alone."
        if drawn is None
        else f"The maps show {drawn.attention}, on one scale. Boxes are evidence."
    )
    return _close(page, runs)


def _score_row(scores: HeadScores, head: Head) -> list[str]:
    low, high = (float(bound[head]) for bound in scores.interval)
    ranked = scores.ranked()
    return [
        scores.metric,
        f"{scores.per_head[head]:.3g}",
        interval_cell(None if np.isnan(low) else (low, high)),
        f"{ranked.index(head) + 1} of {len(ranked):,}" if head in ranked else "",
    ]


def _effect_rows(runs: HeadRuns, head: Head) -> list[list[str]]:
    """Effects of ablating the head by itself, and the smallest chosen set that it is in."""
    rows = []
    for name, sweep in runs.sweeps.items():
        metric, drop, interval, rank = _score_row(sweep, head)
        samples = f"{metric}, {len(sweep.samples):,} samples{_of_datasets(sweep)}"
        rows.append([f"alone, rank {rank}", name, samples, drop, interval])
    for name, results in runs.ablations.items():
        # Sets that were drawn by chance have an effect in the mean over draws alone.
        sets = {
            condition: draws[0]
            for condition, draws in results.conditions.items()
            if condition != BASELINE and len(draws) == 1 and head in draws[0]
        }
        if sets:
            smallest = min(sets, key=lambda condition: len(sets[condition]))
            rows += _accuracy_rows(f"{smallest}, with {len(sets[smallest]) - 1} others", name, results, smallest)
    return rows


def _accuracy_rows(ablated: str, run: str, results: ConditionResults[HeadSet], condition: str) -> list[list[str]]:
    """Accuracy with and without some heads, a row for each data set."""
    rows = []
    for dataset, data in results.summary_by_dataset().items():
        before, after = data["conditions"][BASELINE], data["conditions"][condition]
        samples = f"accuracy in percent, {data['samples']:,} samples" + f" of {dataset}" * bool(dataset)
        change = f"{percent(before['accuracy'])} to {percent(after['accuracy'])}"
        rows.append([ablated, run, samples, change, change_cells(after)[1]])
    return rows


def _close(page: Page, runs: HeadRuns) -> Page:
    return close(
        page, runs.scan, runs.ranking.skipped,
        "A score says where a head attends, not what answers depend on. Intervals of scores are over samples, and hold "
        "for all heads at once (95 %, max-t bootstrap). The samples at either end are the most extreme of those that "
        "were scanned, not typical ones: the distribution shows where they lie. An ablation of several heads says "
        "nothing of one of them alone.",
    )  # fmt: skip
