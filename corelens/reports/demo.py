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
    last_token_scores: HeadScores,
    scanned: Sequence[Sample],
) -> Page:
    """Build the report: accuracies, predictions, the top heads and what they attend to.

    Args:
        result: Every number of the demo.
        header: Column names of the table of accuracies.
        rows: The table: one row per condition, after that of the unchanged model the one of the top heads.
        model: The model.
        scores: Scores that ranked the heads, by the question's tokens.
        last_token_scores: Scores that ranked them by the last token.
        scanned: The scenes that they are from.
    """
    top = scores.top(result["choices"]["fraction"])
    accuracy = {row[0]: row[1].partition(" ")[0] for row in rows}
    report = Page(
        f"Which heads of {result['model']} fetch the visual evidence?",
        f"{len(top)} of {scores.n_heads} heads were chosen by their retrieval attention mass. With them ablated, the "
        f"model answers {accuracy['top']}% of questions about pictures instead of {accuracy['nothing removed']}%; with "
        f"as many random heads of the same layers ablated, {accuracy['random, same layers']}%. With those that the "
        f"last token alone ranks highest ablated, it answers {accuracy['top, last token']}%.",
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
    rankings = result["expected"]
    outcomes = [
        [prediction, *("holds" if holds[prediction] else "does not hold" for holds in rankings.values())]
        for prediction in next(iter(rankings.values()))
    ]
    report.table(["prediction", *(f"heads ranked {ranking}" for ranking in rankings)], outcomes)
    shared = len({*top} & {*last_token_scores.top(result["choices"]["fraction"])})
    report.text(
        f"The two rankings share {shared} of {len(top)} heads. The paper averages attention over the question's tokens "
        "(arXiv 2606.05843, equation 1). A head that fetches at the last token alone, where the answer is written, "
        "has little of that mean, and heads that attend to the picture from every word have more of it."
    )
    report.heading("Where the heads are")
    report.figures(head_map(scores, top), head_map(last_token_scores, last_token_scores.top(len(top) / scores.n_heads)))
    report.heading("What they attend to")
    best, ordinary = top.heads[0], scores.ranked()[scores.n_heads // 2]
    # Neither the best nor the worst example: the scene on which the head's score is its median.
    scores_of_best = scores.values[:, best.layer, best.head]
    sample = scanned[int((scores_of_best == scores_of_best.median()).nonzero()[0])]
    report.figures(*_overlays(model, sample, {best: "highest score", ordinary: "median score"}), height=440)
    report.text(
        f"Question: {sample.question} Answer: {sample.answer}. The box is the evidence; the maps show the mean "
        f"attention of the question's tokens. Of the scanned scenes this is the one on which {best} has its median "
        "score."
    )
    report.heading("How sharp the ranking is")
    report.figures(score_curve(scores, top), height=300)
    report.heading("Effect of ablating heads")
    report.figures(accuracy_bars(result["accuracy"]))
    report.heading("Choices")
    report.facts({name: str(value) for name, value in result["choices"].items()})
    report.text(
        "Retrieval attention mass is the attention of the question's tokens to the visual tokens that overlap the "
        "evidence, summed over these and averaged over the question's tokens (arXiv 2606.05843, equation 1). By the "
        "last token: the same of the last prompt token (Elastic Attention, arXiv 2601.17367, equation 9)."
    )
    return report


def _overlays(model: HookedMLLM, sample: Sample, heads: Mapping[Head, str]) -> list[go.Figure]:
    """Mean attention of the question's tokens in some heads over the picture, on one colour scale."""
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
        attention_over_picture(picture, attention, region, f"{head}, {heads[head]}", boxes, highest)
        for head, attention in maps.items()
    ]
