"""The report of the demo."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from PIL import Image

from corelens.data import Sample
from corelens.heads import Head
from corelens.model import HookedMLLM
from corelens.reports.page import Page
from corelens.scores import HeadScores
from corelens.tokens import Box
from corelens.viz import accuracy_strips, attention_over_picture, head_map


def page(
    result: Mapping[str, Any],
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    model: HookedMLLM,
    scores: Mapping[str, HeadScores],
    scanned: Mapping[str, Sequence[Sample]],
) -> Page:
    """Build the report: accuracies, predictions, the top heads and what they attend to.

    Args:
        result: Every number of the demo.
        header: Column names of the table of accuracies.
        rows: The table: one row per condition, after that of the unchanged model.
        model: The model.
        scores: Scores that ranked the heads, by metric; those of each task are a data set.
        scanned: The samples that they are from, by task.
    """
    first, *_ = result["mean score"]
    n = _n_heads(result)
    report = Page(f"Which heads of {result['model']} fetch the visual evidence?", _lead(result, [*scanned]))
    if result["about"]:
        report.text(result["about"])
    report.figures(_strips(result, [*scanned]), height=420)
    report.table(header, rows)
    fewest = min(result["choices"]["tested questions"].values())
    report.text(
        f"Accuracy in percent. The columns {' and '.join(scanned)} are what a picture's question asks for; the others "
        f"are questions without a picture and tell damage from blindness. Of {fewest} questions or more, a 95 % "
        f"interval of an accuracy reaches at most {98 / fewest**0.5:.0f} points to either side. Heads are named by the "
        "task whose questions found them and the metric that ranked them. The column write has the number of heads "
        "that write anything: ablating the others changes nothing. Write-matched: random heads, each of which "
        "writes half to twice as much at the question's tokens as the one that it stands for, in its layer or the "
        f"nearest; lowest and highest of {result['choices']['write-matched draws of each set']} draws, tested on their "
        "own task."
    )
    for name, reason in result["no control"].items():
        report.text(f"No control exists for {name}, so that nothing follows from its top heads: {reason}")
    report.heading("Predictions of the claim")
    outcomes = [
        [prediction, *("holds" if holds[prediction] else "does not hold" for holds in result["expected"].values())]
        for prediction in next(iter(result["expected"].values()))
    ]
    report.table(["prediction", *(f"heads of {ranking}" for ranking in result["expected"])], outcomes)
    report.text(
        "By ram: retrieval attention mass, the attention of the question's tokens to the visual tokens that overlap "
        "the evidence, summed over these and averaged over the question's tokens (arXiv 2606.05843, equation 1). By "
        "ram_last: the same of the last prompt token (Elastic Attention, arXiv 2601.17367, equation 9). A head that "
        "fetches at the last token alone, where the answer is written, has little of the mean over the question."
    )
    report.heading("Where the heads are")
    for metric in result["mean score"]:
        of_tasks = {task: scores[metric].for_dataset(task) for task in scanned}
        report.figures(*(_map(of_task, n, f"{task} questions") for task, of_task in of_tasks.items()))
        shared = set.intersection(*(set(of_task.top(n)) for of_task in of_tasks.values()))
        report.text(f"By {metric}, the tasks share {len(shared)} of their top {n} heads.")
    report.heading("What they attend to")
    for task, samples in scanned.items():
        report.figures(*_overlays(model, scores[first].for_dataset(task), samples, task), height=440)
    report.text(
        "The box is the evidence; the maps show the mean attention of the question's tokens. Of the scanned pictures "
        "each is the one on which its head has its median score: neither the best nor the worst example."
    )
    report.heading("Choices")
    report.facts({name: str(value) for name, value in result["choices"].items()})
    return report


def _lead(result: Mapping[str, Any], tasks: Sequence[str]) -> str:
    """Accuracies without the heads of each task, in both tasks, by the metric that finds the costlier ones."""
    accuracy = result["accuracy"]

    def cost(metric: str) -> float:
        return -sum(accuracy[task][f"top, {task}, by {metric}"][0] for task in tasks)

    metrics = sorted(result["mean score"], key=cost, reverse=True)
    sentences = [f"{_n_heads(result)} heads were ranked for each of two tasks, and ablated in both."]
    for metric in metrics:
        parts = []
        for task, other in zip(tasks, reversed(tasks), strict=True):
            name = f"top, {task}, by {metric}"
            own, others = 100 * accuracy[task][name][0], 100 * accuracy[other][name][0]
            parts.append(f"without those of the {task} task it answers {own:.0f} % of it, {others:.0f} % of the other")
        sentences.append(f"Ranked by {metric}, {'; '.join(parts)}.")
    draws = [value for task in tasks for name, values in accuracy[task].items() if name.startswith("write-matched")
             for value in values]  # fmt: skip
    if draws:
        sentences.append(
            f"Of {len(draws)} draws of random heads that write as much, the costliest leaves {100 * min(draws):.0f} %, "
            f"the median {100 * np.median(draws):.0f} %."
        )
    return " ".join(sentences)


def _n_heads(result: Mapping[str, Any]) -> int:
    return next(iter(result["heads"].values()))[0].count(",") + 1


def _strips(result: Mapping[str, Any], tasks: Sequence[str]) -> go.Figure:
    """Accuracy in each task without its own heads, those of the other, next-ranked and write-matched ones."""
    rows = {}
    for metric in result["mean score"]:
        for task, other in zip(tasks, reversed(tasks), strict=True):
            accuracy = result["accuracy"][task]
            names = {
                "heads of this task": f"top, {task}, by {metric}",
                "heads of the other task": f"top, {other}, by {metric}",
                "next-ranked heads": f"next-ranked, {task}, by {metric}",
                "write-matched heads": f"write-matched, {task}, by {metric}",
                "nothing": "nothing ablated",
            }
            rows[f"{task} questions, by {metric}"] = {
                label: accuracy[name] for label, name in names.items() if name in accuracy
            }
    return accuracy_strips(rows)


def _map(scores: HeadScores, n: int, title: str) -> go.Figure:
    return head_map(scores, scores.top(n)).update_layout(title_text=title)


def _overlays(model: HookedMLLM, scores: HeadScores, samples: Sequence[Sample], task: str) -> list[go.Figure]:
    """Mean attention of the question's tokens in two heads over a picture, on one colour scale."""
    best, ordinary = scores.ranked()[0], scores.ranked()[scores.n_heads // 2]
    of_best = scores.values[:, best.layer, best.head]
    sample = samples[int((of_best == of_best.median()).nonzero()[0])]
    heads: dict[Head, str] = {best: "highest score", ordinary: "median score"}
    inputs = model.prepare(list(sample.images), sample.question)
    with torch.no_grad():
        _, cache = model.run_with_cache(
            inputs, names_filter=lambda name: name.endswith("hook_pattern"), queries=inputs.tokens.question
        )
    maps = {head: inputs.tokens.grid(cache["pattern", head.layer][0, head.head].mean(0)) for head in heads}
    highest = max(float(attention.max()) for attention in maps.values())
    (picture,) = sample.images
    assert isinstance(picture, Image.Image)  # scenes are drawn, not read
    boxes, region = [evidence.box for evidence in sample.evidence if evidence.box], Box(0, 0, *picture.size)
    return [
        attention_over_picture(
            picture, attention, region, f"{head}, {heads[head]} ({task}): {sample.question}", boxes, highest
        )
        for head, attention in maps.items()
    ]
