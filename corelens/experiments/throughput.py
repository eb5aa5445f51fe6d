"""Time that one sample takes, by which work is planned before it starts."""

import time
from collections.abc import Mapping, Sequence

from corelens.data import BoxUnit, Sample
from corelens.experiments.ablation import run_ablation
from corelens.experiments.layer_scores import AnyMetric
from corelens.experiments.scan import scan_metrics
from corelens.heads import HeadSet
from corelens.model import HookedMLLM

N_TIMED = 16
"""Number of samples that are timed: one batch."""

N_TIMED_ANSWERS = 4
"""Answers to each: several, as in a study, since the vision tower runs once for all of them."""

MIN_DRAWS, MAX_DRAWS = 10, 100
DRAWS_SECONDS = 60.0
"""Time that the draws of control heads may take together, as long as there are `MIN_DRAWS`."""

NamedSamples = Mapping[str, Sequence[Sample]]
"""Samples by data set."""


def timed_samples(samples: NamedSamples) -> dict[str, list[Sample]]:
    """The first few samples of each data set."""
    return {name: list(dataset)[: -(-N_TIMED // len(samples))] for name, dataset in samples.items()}


def seconds_per_pass(model: HookedMLLM, samples: NamedSamples, metrics: Sequence[AnyMetric | str]) -> float:
    """Measure how long the scan of a sample takes."""
    start = time.perf_counter()
    scan_metrics(model, samples, metrics)
    return (time.perf_counter() - start) / sum(map(len, samples.values()))


def seconds_per_answer(
    model: HookedMLLM,
    samples: NamedSamples,
    max_new_tokens: int = 32,
    box_unit: BoxUnit | None = None,
) -> float:
    """Measure how long one of several answers to a sample takes."""
    conditions = {"nothing removed, again": [HeadSet(())] * (N_TIMED_ANSWERS - 1)}
    start = time.perf_counter()
    run_ablation(model, samples, conditions, max_new_tokens=max_new_tokens, box_unit=box_unit)
    return (time.perf_counter() - start) / (N_TIMED_ANSWERS * sum(map(len, samples.values())))


def affordable_draws(seconds_per_draw: float, at_most: int = MAX_DRAWS) -> int:
    """Number of draws of control heads: as many as take a minute, but at least ten, or `at_most` if that is less.

    The more draws, the surer is how rare a cost like that of the top heads is among them.
    """
    return min(at_most, max(MIN_DRAWS, int(DRAWS_SECONDS / seconds_per_draw)))
