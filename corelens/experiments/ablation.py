"""Accuracy without some heads and without others, over many samples, in parts that are complete or absent."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from os import PathLike
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from corelens.causal import evaluate
from corelens.data import BoxUnit, Sample
from corelens.experiments.conditions import BASELINE, ConditionResults, check_scoring
from corelens.experiments.resumable import (
    Samples,
    flatten_datasets,
    model_fingerprint,
    prepare_samples,
    run_locally,
    run_resumable,
)
from corelens.experiments.sweep import ReferenceMethod, check_method, reference_for
from corelens.heads import HeadSet
from corelens.hf.module_outputs import cached_vision
from corelens.hooks.positions import Phase
from corelens.interventions import ablate, attention_knockout
from corelens.model import HookedMLLM
from corelens.scores import HeadScores

KINDS = ("top", "next-ranked", "random", "random, same layers", "bottom")
"""Of sets of heads; see `HeadScores.controls`."""


@dataclass(frozen=True)
class AblationCurve:
    """Accuracy by share of heads ablated, for every way of choosing them."""

    fractions: tuple[float, ...]
    heads: dict[str, list[list[HeadSet]]]
    """By choice, then fraction, then seed; choices without chance have one set, impossible ones none."""

    accuracy: dict[str, list[list[float]]]
    """In the same order."""

    def mean(self, choice: str) -> list[float]:
        """Over seeds, by fraction; NaN where the choice is impossible."""
        return [float(np.mean(values)) if values else float("nan") for values in self.accuracy[choice]]

    def sd(self, choice: str) -> list[float]:
        """Over seeds, by fraction; zero for choices without chance."""
        return [float(np.std(values)) if values else float("nan") for values in self.accuracy[choice]]


def ablation_curve(
    scores: HeadScores,
    accuracy: Callable[[HeadSet], float],
    fractions: Sequence[float] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    seeds: Sequence[int] = range(5),
) -> AblationCurve:
    """Accuracy without more and more heads: the top, next and bottom ones, random ones, random ones of the same layers.

    Random heads are drawn outside the top ones, so that neither they nor the next ones exist beyond one half; of the
    same layers there may be too few earlier.

    Args:
        scores: What heads are ranked by.
        accuracy: Measures it without some heads: `lambda heads: answers(model, batches, ablate(heads)).accuracy`.
        fractions: Shares of all heads.
        seeds: Of the random draws.
    """
    sets = [scores.controls(fraction, seeds) for fraction in fractions]
    heads = {kind: [controls.get(kind, []) for controls in sets] for kind in KINDS}
    accuracies: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
    with tqdm(total=sum(len(draws) for controls in sets for draws in controls.values()), desc="ablate") as bar:
        for kind, by_fraction in heads.items():
            for draws in by_fraction:
                accuracies[kind].append([])
                for drawn in draws:
                    accuracies[kind][-1].append(accuracy(drawn))
                    bar.update()
    return AblationCurve(tuple(fractions), heads, accuracies)


SHARD_SIZE = 16
"""Samples that are kept or lost together when an ablation is interrupted: each is answered under every condition."""


def run_ablation(
    model: HookedMLLM,
    samples: Samples,
    conditions: Mapping[str, Sequence[HeadSet]],
    method: ReferenceMethod | Literal["blind"] = "zero",
    phase: Phase = "both",
    batch_size: int = 16,
    max_new_tokens: int = 32,
    box_unit: BoxUnit | None = None,
    chosen_by: str | None = None,
    out: str | PathLike[str] | None = None,
) -> ConditionResults[HeadSet]:
    """Greedy answers with nothing removed and with each set of heads removed, scored by the rule of their data set.

    Args:
        model: The model.
        samples: Questions with media, or without as a control; a mapping if there are several data sets.
        conditions: The sets of heads by what they are; several where they are drawn by chance, one for each seed.
        how: What is put in the place of what the heads found; measured on the samples that have media, all of which
            must then be whole. `blind`: heads stay, and from the question on may not look at pictures.
        phase: Whether heads are removed in the prompt (`prefill`), while an answer is generated (`decode`) or in both.
        batch_size: Most samples a pass; fewer after running out of memory.
        max_new_tokens: Where answers are cut off.
        box_unit: The unit in which the model says boxes, for samples that ask for one.
        chosen_by: Whose scores chose the heads, which `out` says too.
        out: A folder that keeps finished parts. The same ablation into the same folder goes on where it was
            interrupted.

    Raises:
        ValueError: If a head does not exist, a choice is not known, there is no sample, none can be asked, one has no
            rule that can score it, or `out` holds another run; names the difference.
        RuntimeError: If another process is writing to `out`.
    """
    if method != "blind":
        check_method(method)
    ablate([], phase=phase)
    every = flatten_datasets(samples)
    check_scoring(every, box_unit)
    all_sets = {BASELINE: [HeadSet((), "nothing removed")]} | {name: list(sets) for name, sets in conditions.items()}
    model.check_heads(head for sets in all_sets.values() for heads in sets for head in heads)

    @cache
    def remove() -> Callable[[HeadSet], Any]:
        # Not before samples are missing: stand-ins cost a pass over all of them.
        if method == "blind":
            return partial(_blinded, phase=phase)
        seen = (sample for _, sample in every if sample.images or sample.videos)
        return partial(ablate, method=method, reference=reference_for(model, seen, method), phase=phase)

    def measure(batch: list[Sample]) -> dict[str, Float[Tensor, "batch _unit"]]:
        asked = [(batch, prepare_samples(model, batch))]

        def without(heads: HeadSet) -> Float[Tensor, "batch"]:
            found = evaluate(model, asked, remove()(heads), max_new_tokens, box_unit=box_unit)
            return found.scores.masked_fill(~found.parsed, torch.nan)

        with cached_vision(model.hf_model):
            return {name: torch.stack([without(heads) for heads in sets], 1) for name, sets in all_sets.items()}

    choices = {
        "how": method,
        "phase": phase,
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "box_unit": box_unit,
        "chosen_by": chosen_by,
        "conditions": {name: [str(heads) for heads in sets] for name, sets in all_sets.items()},
    }
    whole = run_resumable(
        "ablate", every, SHARD_SIZE, model_fingerprint(model), choices, out, run_locally(batch_size, measure)
    )
    return ConditionResults(all_sets, whole.values, whole.samples, whole.datasets, whole.skipped)


def _blinded(heads: HeadSet, phase: Phase) -> Any:
    """Hooks that keep heads from looking at pictures and videos from the question on."""
    return [
        hook for keys in ("image", "video") for hook in attention_knockout(heads, "from_question", keys, phase=phase)
    ]
