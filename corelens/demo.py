"""The whole argument on one page: find the heads of each task, ablate them in both tasks, and compare with controls.

Two things are asked about the pictures, such as a digit or a colour. Heads are found by the questions of one task, and
ablated in both: what is needed for one task alone is no damage to the model in general. What a set costs is compared
with what random heads cost that write as much.
"""

import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from corelens.data import Sample
from corelens.experiments.ablation import run_ablation
from corelens.experiments.conditions import BASELINE, MATCHED, low_to_high
from corelens.experiments.controls import WRITE_NORM, n_writing, write_matched_random
from corelens.experiments.scan import scan_metrics
from corelens.files import write_file
from corelens.heads import HeadSet
from corelens.hf.loading import checkpoint_folder
from corelens.model import HookedMLLM
from corelens.reports import demo as report
from corelens.reports.page import Page
from corelens.scores import HeadScores
from corelens.shipped import Questions, questions_for

SCAN_SEED, TEST_SEED = 1, 2
BATCH_SIZE = 100

RANKED_BY = ("ram", "ram_last")
"""Metrics that rank heads: the paper's, by the question's tokens, and that of the last token of the prompt."""

NOTHING_ABLATED = "nothing ablated"
TOP, NEXT = "top", "next-ranked"

Conditions = Mapping[str, Sequence[HeadSet]]
"""By condition: one set of heads, or several draws."""

Accuracies = dict[str, dict[str, list[float]]]
"""By questions, then condition: one accuracy per set of heads, i.e. per draw."""


@dataclass(frozen=True)
class Demo:
    """Result and report of the demo."""

    result: dict[str, Any]
    """Every number, the heads, the choices, seeds, versions and seconds, ready for JSON."""

    page: Page
    """The same as a report."""

    @property
    def header(self) -> list[str]:
        """Column names of `rows`. `write`: heads of the set that write anything; the others change nothing."""
        return _header(self.result)

    @property
    def rows(self) -> list[list[str]]:
        """One row per condition: number of its heads that write anything, and accuracy by questions."""
        return _rows(self.result)

    def save(self, folder: Path) -> None:
        """Write `report.html` and `demo.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / "report.html", self.page.html())
        write_file(folder / "demo.json", json.dumps(self.result, indent=1))


def run_demo(
    name: str = "corelens/toy-worlds",
    n_scanned: int | None = None,
    n_tested: int | None = None,
    n_texts: int | None = None,
    n_draws: int | None = None,
) -> Demo:
    """Scan pictures by task, ablate the top heads of each task and their controls on other ones, and report.

    Heads are ranked by the paper's retrieval attention mass (`ram`), and beside it by that of the last token alone.

    Args:
        name: A model that comes with corelens, or the folder of one that `training.train` made.
        n_scanned: Pictures whose scores rank the heads, of both tasks together. This and the other numbers are by
            default as many as some minutes on two cores allow.
        n_tested: Other pictures, on which sets of heads are ablated.
        n_texts: Questions of every text-only task, the control for "cannot answer".
        n_draws: Draws of write-matched heads for each set.
    """
    start = time.monotonic()
    model = HookedMLLM.from_pretrained(name)
    questions = questions_for(name)
    sizes, tasks = questions.sizes, questions.tasks
    n_scanned = sizes.scanned if n_scanned is None else n_scanned
    n_tested = sizes.tested if n_tested is None else n_tested
    n_texts = sizes.texts if n_texts is None else n_texts
    n_draws = sizes.draws if n_draws is None else n_draws
    scanned, tested = (_by_task(questions, n, seed) for n, seed in ((n_scanned, SCAN_SEED), (n_tested, TEST_SEED)))
    scores = scan_metrics(model, scanned, [*RANKED_BY, WRITE_NORM], batch_size=32)
    conditions, missing = _conditions(scores, tasks, sizes.share, range(n_draws))
    texts = {task: list(draw(n_texts, TEST_SEED)) for task, draw in questions.texts.items()}
    accuracies: Accuracies = {}
    for asked, samples in {**tested, **texts}.items():
        chosen = {name: sets for name, sets in conditions.items() if _is_tested(name, asked, tasks)}
        longest = max(len(ids) for ids in model.tokenizer([sample.answer for sample in samples])["input_ids"])
        ablated = run_ablation(model, {asked: samples}, chosen, batch_size=BATCH_SIZE, max_new_tokens=longest + 1)
        accuracies[asked] = {
            NOTHING_ABLATED if condition == BASELINE else condition: [
                round(accuracy, 4) for accuracy in ablated.accuracies(condition, asked)
            ]
            for condition in ablated.conditions
        }
    result = {
        "model": name,
        "about": _about(name),
        "choices": {
            "data": questions.described,
            "heads ablated": f"{sizes.share:.0%} of all",
            "ablation": "zero head output, in prefill and decoding",
            "answer": "greedy generation, exact match",
            "scanned pictures": n_scanned,
            "tested pictures": n_tested,
            "tested questions": {task: len(samples) for task, samples in tested.items()},
            "questions of each text task": n_texts,
            "write-matched draws of each set": n_draws,
        },
        "seeds": {"scanned pictures": SCAN_SEED, "tested samples": TEST_SEED, "write-matched heads": [0, n_draws - 1]},
        "mean score": {
            metric: {task: _mean_scores(scores[metric].for_dataset(task)) for task in tasks} for metric in RANKED_BY
        },
        "heads": {condition: [str(heads) for heads in draws] for condition, draws in conditions.items()},
        "heads that write": {
            condition: [n_writing(heads, scores[WRITE_NORM]) for heads in draws]
            for condition, draws in conditions.items()
        },
        "no control": missing,
        "accuracy": accuracies,
        "expected": {
            f"{task}, {metric}": expectations(accuracies, metric, task, tasks) for metric in RANKED_BY for task in tasks
        },
        "versions": {p: version(p) for p in ("corelens", "torch", "transformers", "transformer-lens")}
        | {"python": platform.python_version()},
    }
    page = report.page(result, _header(result), _rows(result), model, scores, scanned)
    result["seconds"] = round(time.monotonic() - start, 1)
    return Demo(result, page)


def expectations(accuracies: Accuracies, metric: str, task: str, tasks: Sequence[str]) -> dict[str, bool]:
    """Predictions of the claim for the heads of one task, and True for those that hold.

    Args:
        accuracies: Accuracy under every condition.
        metric: Metric that ranked the heads.
        task: Task whose questions they were found by.
        tasks: Both tasks; all other questions need no picture.
    """

    def drop(questions: str, kind: str) -> float:
        by_condition = accuracies[questions]
        return float(np.mean(by_condition[NOTHING_ABLATED]) - np.mean(by_condition[condition(kind, task, metric)]))

    (other,) = (other for other in tasks if other != task)
    third = drop(task, TOP) / 3
    text = float(np.mean([drop(questions, TOP) for questions in accuracies if questions not in tasks]))
    draws = accuracies[task].get(condition(MATCHED, task, metric), [])
    (top,) = accuracies[task][condition(TOP, task, metric)]
    return {
        "removing them costs at least 40 points in their task": drop(task, TOP) >= 0.4,
        "and at most a third of that in the other": drop(other, TOP) <= third,
        "next-ranked heads cost at most a third of that": drop(task, NEXT) <= third,
        "every draw of write-matched heads costs less": bool(draws) and top < min(draws),
        "text-only questions lose at most a third of that": text <= third,
    }


def condition(kind: str, task: str, metric: str) -> str:
    """Name of a condition, such as `top, digit, by ram`."""
    return f"{kind}, {task}, by {metric}"


def _by_task(questions: Questions, n: int, seed: int) -> dict[str, list[Sample]]:
    """Questions about pictures by what they ask for."""
    samples = list(questions.two_tasks(n, seed))
    return {task: [sample for sample in samples if sample.about["task"] == task] for task in questions.tasks}


def _conditions(
    scores: Mapping[str, HeadScores], tasks: Sequence[str], share: float, seeds: range
) -> tuple[dict[str, list[HeadSet]], dict[str, str]]:
    """Sets of heads by condition, and for those without write-matched controls the reason."""
    conditions: dict[str, list[HeadSet]] = {}
    missing: dict[str, str] = {}
    for metric in RANKED_BY:
        for task in tasks:
            of_task = scores[metric].for_dataset(task)
            top = of_task.top(share)
            conditions |= {
                condition(TOP, task, metric): [top],
                condition(NEXT, task, metric): [of_task.next(share)],
            }
            name = condition(MATCHED, task, metric)
            try:
                conditions[name] = write_matched_random(top, scores[WRITE_NORM].for_dataset(task), seeds)
            except ValueError as cause:
                missing[name] = str(cause)
    return conditions, missing


def _is_tested(name: str, questions: str, tasks: Sequence[str]) -> bool:
    """Draws are many, so that they are tested on their own task alone; text-only questions test the top heads."""
    kind, task, _ = name.split(", ")
    return {TOP: True, NEXT: questions in tasks, MATCHED: questions == task}[kind]


def _header(result: dict[str, Any]) -> list[str]:
    return ["ablated", "write", *result["accuracy"]]


def _rows(result: dict[str, Any]) -> list[list[str]]:
    return [
        [
            name,
            low_to_high(result["heads that write"].get(name, [])),
            *(low_to_high([100 * value for value in of.get(name, [])], 1) for of in result["accuracy"].values()),
        ]
        for name in (NOTHING_ABLATED, *result["heads"])
    ]


def _mean_scores(scores: HeadScores) -> dict[str, float]:
    return {str(head): round(float(scores.per_head[head]), 5) for head in scores.ranked()}


def _about(name: str) -> str:
    """Description in the record of the model's training."""
    record = Path(checkpoint_folder(name)) / "record.json"
    return json.loads(record.read_text())["about"] if record.is_file() else ""
