"""The whole argument on one page: find the heads that attend to the visual evidence, ablate them, ablate controls."""

import json
import platform
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from corelens import toy
from corelens.experiments.ablation import run_ablation
from corelens.experiments.conditions import BASELINE
from corelens.experiments.scan import scan_metrics
from corelens.heads import HeadSet
from corelens.hf.loading import SHIPPED
from corelens.model import HookedMLLM
from corelens.reports import demo as report
from corelens.reports.page import Page
from corelens.scores import HeadScores

SEEDS = range(5)
SCAN_SEED, TEST_SEED = 1, 2
FRACTION = 0.05
BATCH_SIZE = 100

BY_LAST_TOKEN = ", last token"
"""Ending of the conditions whose heads `ram_last` ranks, not `ram`."""

Accuracies = dict[str, dict[str, list[float]]]
"""By task, then condition: one accuracy per set of heads, i.e. per seed."""


@dataclass(frozen=True)
class Demo:
    """Result and report of the demo."""

    result: dict[str, Any]
    """Every number, the heads, the choices, seeds, versions and seconds, ready for JSON."""

    page: Page
    """The same as a report."""

    @property
    def rows(self) -> list[list[str]]:
        """One row per condition: accuracy by task, and the ablated heads."""
        return _rows(self.result)

    def save(self, folder: Path) -> None:
        """Write `report.html` and `demo.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.html").write_text(self.page.html(), encoding="utf-8")
        (folder / "demo.json").write_text(json.dumps(self.result, indent=1), encoding="utf-8")


def run_demo(name: str = "corelens/toy", n_scanned: int = 200, n_tested: int = 500, n_texts: int = 100) -> Demo:
    """Scan scenes, ablate the top heads and their controls on other scenes, and report.

    Heads are ranked by the paper's retrieval attention mass (`ram`), and beside it by that of the last token alone.

    Args:
        name: A model that comes with corelens, or the folder of one that `training.train` made.
        n_scanned: Scenes whose retrieval attention mass ranks the heads.
        n_tested: Other scenes, on which every set of heads is ablated.
        n_texts: Questions of every text-only task, the control for "cannot answer".
    """
    start = time.monotonic()
    model = HookedMLLM.from_pretrained(name)
    scanned = list(toy.scenes(n_scanned, SCAN_SEED))
    scores, last_token_scores = scan_metrics(model, scanned, ["ram", "ram_last"], batch_size=32).values()
    conditions = scores.controls(FRACTION, SEEDS)
    conditions |= {
        kind + BY_LAST_TOKEN: head_sets
        for kind, head_sets in last_token_scores.controls(FRACTION, SEEDS).items()
        if kind != "random"
    }
    tasks = {"scenes": list(toy.scenes(n_tested, TEST_SEED))}
    tasks |= {task: list(toy.texts(n_texts, TEST_SEED, task)) for task in toy.TEXT_TASKS}
    accuracies: Accuracies = {}
    for task, samples in tasks.items():
        longest = max(len(sample.answer.split()) for sample in samples)
        ablated = run_ablation(model, {task: samples}, conditions, batch_size=BATCH_SIZE, max_new_tokens=longest + 1)
        accuracies[task] = {
            _label(condition): [round(accuracy, 4) for accuracy in ablated.accuracies(condition, task)]
            for condition in ablated.conditions
        }
    head_sets = {"nothing removed": [HeadSet(())]} | conditions
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
        "mean score": _mean_scores(scores),
        "mean score, last token": _mean_scores(last_token_scores),
        "heads": {condition: [str(heads) for heads in draws] for condition, draws in head_sets.items()},
        "accuracy": accuracies,
        "expected": {
            "by the question's tokens": expectations(accuracies),
            "by the last token": expectations(accuracies, BY_LAST_TOKEN),
        },
        "versions": {p: version(p) for p in ("corelens", "torch", "transformers", "transformer-lens")}
        | {"python": platform.python_version()},
    }
    page = report.page(result, header(result), _rows(result), model, scores, last_token_scores, scanned)
    result["seconds"] = round(time.monotonic() - start, 1)
    return Demo(result, page)


def expectations(accuracies: Accuracies, ranking: str = "") -> dict[str, bool]:
    """Predictions of the claim, and True for those that hold: of means over seeds of drops in accuracy.

    Args:
        accuracies: Accuracy under every condition.
        ranking: Ending of the conditions whose heads are those of another ranking: `BY_LAST_TOKEN`.
    """

    def drop(task: str, condition: str) -> float:
        conditions = accuracies[task]
        condition = condition if condition == "random" else condition + ranking
        return float(np.mean(conditions["nothing removed"]) - np.mean(conditions[condition]))

    third = drop("scenes", "top") / 3
    text = float(np.mean([drop(task, "top") for task in toy.TEXT_TASKS]))
    return {
        "removing the top heads costs at least 40 points": drop("scenes", "top") >= 0.4,
        "next-ranked heads cost at most a third of that": drop("scenes", "next-ranked") <= third,
        "random heads cost at most a third of that": drop("scenes", "random") <= third,
        "random heads of the same layers cost at most a third of that": drop("scenes", "random, same layers") <= third,
        "text-only tasks lose at most a third of that": text <= third,
    }


def header(result: dict[str, Any]) -> list[str]:
    """Column names of `Demo.rows`."""
    return ["removed", *result["accuracy"], "heads"]


def _rows(result: dict[str, Any]) -> list[list[str]]:
    rows = []
    for condition, draws in result["heads"].items():
        cells = []
        for by_condition in result["accuracy"].values():
            values = by_condition[condition]
            deviation = f" ±{100 * np.std(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{100 * np.mean(values):.1f}{deviation}")
        rows.append([condition, *cells, draws[0] if len(draws) == 1 else f"{len(draws)} draws"])
    return rows


def _mean_scores(scores: HeadScores) -> dict[str, float]:
    return {str(head): round(float(scores.per_head[head]), 5) for head in scores.ranked()}


def _label(condition: str) -> str:
    return "nothing removed" if condition == BASELINE else condition


def _about(name: str) -> str:
    """Description in the record of the model's training."""
    record = SHIPPED.get(name, Path(name)) / "record.json"
    return json.loads(record.read_text())["about"] if record.is_file() else ""
