"""The report of the demo."""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
import torch
from PIL import Image

from corelens.data import Sample
from corelens.heads import Head
from corelens.model import HookedMLLM
from corelens.reports.page import Page
from corelens.scores import HeadScores
from corelens.tokens import Box
from corelens.viz import accuracy_bars, attention_over_picture, head_map, score_curve


def page(
    result: Mapping[str, Any],
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    model: HookedMLLM,
    scores: HeadScores,
    scanned: Sequence[Sample],
) -> Page:
    """Build the report: accuracies, predictions, the top heads and what they attend to.

    Args:
        result: Every number of the demo.
        header: Column names of the table of accuracies.
        rows: The table: one row per condition, after that of the unchanged model the one of the top heads.
        model: The model.
        scores: Scores that ranked the heads.
        scanned: The scenes that they are from.
    """
    top = scores.top(result["choices"]["fraction"])
    accuracy = {row[0]: row[1].partition(" ")[0] for row in rows}
    report = Page(
        f"Which heads of {result['model']} fetch the visual evidence?",
        f"{len(top)} of {scores.n_heads} heads were chosen by their attention. With them ablated, the model answers "
        f"{accuracy['top']}% of questions about pictures instead of {accuracy['nothing removed']}%; with as many "
        f"random heads of the same layers ablated, {accuracy['random, same layers']}%.",
    )
    if result["about"]:
        report.text(result["about"])
    report.table(header, rows, strong=1)
    tasks = ", ".join(task for task in result["accuracy"] if task != "scenes")
    report.text(
        f"Accuracy in percent, ± standard deviation over seeds. Scenes ask about pictures; {tasks} are text-only and "
        "tell damage from blindness. Chance on scenes is about 10 % for any answer, 17 % for a guess among the six "
        "digits shown."
    )
    report.heading("Predictions of the claim")
    outcomes = [[prediction, "holds" if holds else "does not hold"] for prediction, holds in result["expected"].items()]
    report.table(["prediction", "result"], outcomes)
    report.heading("Where the heads are")
    report.figures(head_map(scores, top))
    report.heading("What they attend to")
    best, ordinary = top.heads[0], scores.ranked()[scores.n_heads // 2]
    # Neither the best nor the worst example: the scene on which the head's score is its median.
    scores_of_best = scores.values[:, best.layer, best.head]
    sample = scanned[int((scores_of_best == scores_of_best.median()).nonzero()[0])]
    report.figures(*_overlays(model, sample, {best: "highest score", ordinary: "median score"}), height=440)
    report.text(
        f"Question: {sample.question} Answer: {sample.answer}. The box is the evidence; the maps show the attention of "
        f"the last prompt token. Of the scanned scenes this is the one on which {best} has its median score."
    )
    report.heading("How sharp the ranking is")
    report.figures(score_curve(scores, top), height=300)
    report.heading("Effect of ablating heads")
    report.figures(accuracy_bars(result["accuracy"]))
    report.heading("Choices")
    report.facts({name: str(value) for name, value in result["choices"].items()})
    report.text(
        "Retrieval attention mass is the attention from the query tokens to the visual tokens that overlap the "
        "evidence; the formula is inferred, since the paper's own is not public (arXiv 2606.05843)."
    )
    return report


def _overlays(model: HookedMLLM, sample: Sample, heads: Mapping[Head, str]) -> list[go.Figure]:
    """Attention of the last prompt token in some heads over the picture, on one colour scale."""
    inputs = model.prepare(list(sample.images), sample.question)
    with torch.no_grad():
        _, cache = model.run_with_cache(
            inputs, names_filter=lambda name: name.endswith("hook_pattern"), queries=inputs.tokens.last
        )
    maps = {head: inputs.tokens.grid(cache["pattern", head.layer][0, head.head, 0]) for head in heads}
    highest = max(float(attention.max()) for attention in maps.values())
    (picture,) = sample.images
    assert isinstance(picture, Image.Image)  # scenes are drawn, not read
    boxes, region = [evidence.box for evidence in sample.evidence if evidence.box], Box(0, 0, *picture.size)
    return [
        attention_over_picture(picture, attention, region, f"{head}, {heads[head]}", boxes, highest)
        for head, attention in maps.items()
    ]
