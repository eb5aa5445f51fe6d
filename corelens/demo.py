"""The whole argument on one page: find the heads that fetch the visual evidence, remove them, remove others."""

import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from corelens import toy
from corelens.causal import evaluate
from corelens.data import Sample, prepare_batches
from corelens.experiments.scan import scan_metrics
from corelens.heads import Head, HeadSet
from corelens.hf.loading import SHIPPED
from corelens.hf.module_outputs import cached_vision
from corelens.interventions import ablate
from corelens.model import HookedMLLM
from corelens.reports.page import Page
from corelens.scores import HeadScores
from corelens.tokens import Box
from corelens.viz import accuracy_bars, attention_over_picture, head_map, score_curve

SEEDS = range(5)
SCAN_SEED, TEST_SEED = 1, 2
FRACTION = 0.05

Accuracies = dict[str, dict[str, list[float]]]
"""Task, then condition, then one accuracy per set of heads, i.e. per seed."""


@dataclass(frozen=True)
class Demo:
    """What the demo found."""

    result: dict[str, Any]
    """Every number, the heads, the choices, seeds, versions and seconds, ready for JSON."""

    page: Page
    """The same as a report."""

    @property
    def rows(self) -> list[list[str]]:
        """One row per condition: accuracy by task, and the heads that were removed."""
        return _rows(self.result)

    def save(self, folder: Path) -> None:
        """Writes `report.html` and `demo.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.html").write_text(self.page.html(), encoding="utf-8")
        (folder / "demo.json").write_text(json.dumps(self.result, indent=1), encoding="utf-8")


def run_demo(name: str = "corelens/toy", n_scanned: int = 200, n_tested: int = 500, n_texts: int = 100) -> Demo:
    """Scans scenes, removes the top heads and five kinds of controls on other scenes, and reports.

    Args:
        name: A model that comes with corelens, or the folder of one that `training.train` made.
        n_scanned: Scenes whose retrieval attention mass ranks the heads.
        n_tested: Other scenes, on which every set of heads is removed.
        n_texts: Questions of every text-only task, the control for "cannot answer".
    """
    began = time.monotonic()
    model = HookedMLLM.from_pretrained(name)
    scanned = list(toy.scenes(n_scanned, SCAN_SEED))
    scores, by_question = scan_metrics(model, scanned, ["ram", "ram_question"], batch_size=32).values()
    conditions = {
        "nothing removed": [HeadSet((), "none")],
        "top": [scores.top(FRACTION)],
        "next-ranked": [scores.next(FRACTION)],
        "random": [scores.random(seed, FRACTION) for seed in SEEDS],
        "random, same layers": [scores.layer_matched_random(seed, FRACTION) for seed in SEEDS],
        "bottom": [scores.bottom(FRACTION)],
        "top by question tokens": [by_question.top(FRACTION)],
    }
    tasks = {"scenes": list(toy.scenes(n_tested, TEST_SEED))}
    tasks |= {task: list(toy.texts(n_texts, TEST_SEED, task)) for task in toy.TEXT_TASKS}
    accuracies = measure(model, tasks, conditions)
    result = {
        "model": name,
        "about": _about(name),
        "metric": scores.metric,
        "choices": scores.choices
        | {
            "data": "scenes of six handwritten digits, test split",
            "fraction": FRACTION,
            "ablation": "zero head output, in prefill and decoding",
            "answer": "greedy generation, exact match",
            "scanned scenes": n_scanned,
            "tested scenes": n_tested,
            "questions of each text task": n_texts,
        },
        "seeds": {"scanned scenes": SCAN_SEED, "tested samples": TEST_SEED, "random heads": list(SEEDS)},
        "mean score": {str(head): round(float(scores.per_head[head]), 5) for head in scores.ranked()},
        "heads": {condition: [str(heads) for heads in sets] for condition, sets in conditions.items()},
        "accuracy": accuracies,
        "expected": expectations(accuracies),
        "versions": {p: version(p) for p in ("corelens", "torch", "transformers", "transformer-lens")}
        | {"python": platform.python_version()},
    }
    page = _page(model, result, scores, conditions["top"][0], scanned)
    result["seconds"] = round(time.monotonic() - began, 1)
    return Demo(result, page)


def measure(
    model: HookedMLLM, tasks: Mapping[str, list[Sample]], conditions: Mapping[str, list[HeadSet]]
) -> Accuracies:
    """Accuracy on every task with every set of heads zeroed."""
    batches = {task: list(prepare_batches(model, samples, 100, f"prepare {task}")) for task, samples in tasks.items()}
    accuracies: Accuracies = {task: {condition: [] for condition in conditions} for task in tasks}
    runs = [(condition, heads) for condition, sets in conditions.items() for heads in sets]
    with cached_vision(model.hf_model):
        for condition, heads in tqdm(runs, desc="ablate", unit="set"):
            for task, prepared in batches.items():
                longest = max(len(sample.answer.split()) for sample in tasks[task])
                said = evaluate(model, prepared, ablate(heads), max_new_tokens=longest + 1)
                accuracies[task][condition].append(round(said.accuracy, 4))
    return accuracies


def expectations(accuracies: Accuracies) -> dict[str, bool]:
    """What the claim predicts, and whether it happened: means over seeds, drops in accuracy."""

    def drop(task: str, condition: str) -> float:
        conditions = accuracies[task]
        return float(np.mean(conditions["nothing removed"]) - np.mean(conditions[condition]))

    top = drop("scenes", "top")
    text = float(np.mean([drop(task, "top") for task in toy.TEXT_TASKS]))
    return {
        "removing the top heads costs at least 40 points": top >= 0.4,
        "next-ranked heads cost at most a third of that": drop("scenes", "next-ranked") <= top / 3,
        "random heads cost at most a third of that": drop("scenes", "random") <= top / 3,
        "random heads of the same layers cost at most a third of that": drop("scenes", "random, same layers")
        <= top / 3,
        "text-only tasks lose at most a third of that": text <= top / 3,
    }


def header(result: Mapping[str, Any]) -> list[str]:
    """Column names of `Demo.rows`."""
    return ["removed", *result["accuracy"], "heads"]


def _rows(result: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for condition, sets in result["heads"].items():
        cells = []
        for task in result["accuracy"]:
            values = result["accuracy"][task][condition]
            spread = f" ±{100 * np.std(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{100 * np.mean(values):.1f}{spread}")
        rows.append([condition, *cells, sets[0] if len(sets) == 1 else f"{len(sets)} draws"])
    return rows


def _about(name: str) -> str:
    """What the model's record says of how it came to be."""
    record = SHIPPED.get(name, Path(name)) / "record.json"
    return json.loads(record.read_text())["about"] if record.is_file() else ""


def _page(
    model: HookedMLLM, result: dict[str, Any], scores: HeadScores, top: HeadSet, scanned: Sequence[Sample]
) -> Page:
    accuracy = {task: {c: float(np.mean(v)) for c, v in of.items()} for task, of in result["accuracy"].items()}
    scenes = accuracy["scenes"]
    page = Page(
        f"Which heads of {result['model']} fetch the visual evidence?",
        f"{len(top)} of {scores.n_heads} heads were chosen by where they look. With them removed, the model "
        f"answers {scenes['top']:.1%} of questions about pictures instead of {scenes['nothing removed']:.1%}; with as "
        f"many random heads of the same layers removed, {scenes['random, same layers']:.1%}.",
    )
    if result["about"]:
        page.text(result["about"])
    rows = _rows(result)
    page.table(header(result), rows, strong=1)
    page.text(
        "Accuracy in percent, ± standard deviation over seeds. Scenes ask about pictures; "
        f"{', '.join(toy.TEXT_TASKS)} are text-only and tell damage from blindness. Chance on scenes is about 10 % "
        "for any answer, 17 % for a guess among the six digits shown."
    )
    page.heading("Expected of the claim")
    page.table(
        ["prediction", "measured"],
        [[said, "holds" if true else "does not hold"] for said, true in result["expected"].items()],
        -1,
    )
    page.heading("Where the heads are")
    page.figures(head_map(scores, top))
    page.heading("What they look at")
    best, ordinary = top.heads[0], scores.ranked()[scores.n_heads // 2]
    # Neither the best nor the worst example: the scene on which the head's score is its median.
    of_best = scores.values[:, best.layer, best.head]
    sample = scanned[int((of_best == of_best.median()).nonzero()[0])]
    page.figures(
        *_overlays(model, sample, {best: "highest score", ordinary: "median score"}),
        height=440,
    )
    page.text(
        f"Question: {sample.question} Answer: {sample.answer}. The box is the evidence; the maps show where the last "
        f"token of the prompt looks. Of the scanned scenes this is the one on which {best} scores its median."
    )
    page.heading("How sharp the ranking is")
    page.figures(score_curve(scores, top), height=300)
    page.heading("What removing heads does")
    page.figures(accuracy_bars(result["accuracy"]))
    page.heading("Choices")
    page.facts({name: str(value) for name, value in result["choices"].items()})
    page.text(
        "Retrieval attention mass is the attention from the query tokens to the visual tokens that overlap the "
        "evidence; the formula is inferred, since the paper's own is not public (arXiv 2606.05843)."
    )
    return page


def _overlays(model: HookedMLLM, sample: Sample, heads: Mapping[Head, str]) -> list[Any]:
    """Where the last token looks through some heads, on one scale."""
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
