"""Accuracy without some heads and without others, over many samples, in parts that are complete or absent."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from os import PathLike
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from corelens.causal import answers
from corelens.conditions import PLAIN, Conditions, check_scoring
from corelens.data import BoxUnit, Sample
from corelens.heads import HeadSet
from corelens.interventions import ablate, knock_out
from corelens.model import HookedMLLM
from corelens.parts import Samples, described, here, in_parts, named, prepared
from corelens.passes import Phase
from corelens.replay import seeing_once
from corelens.scores import HeadScores
from corelens.sweeping import Removal, check_removal, stand_ins

PART = 16
"""Samples that are kept or lost together when an ablation is interrupted: each is answered under every condition."""


def with_controls(scores: HeadScores, top: float | int, seeds: Sequence[int] = range(5)) -> dict[str, list[HeadSet]]:
    """The top heads, and as many of every kind that they are compared with.

    Random heads of the same layers are left out where most heads of a layer are top heads.

    Raises:
        ValueError: If there are too few other heads.
    """
    chosen = scores.top(top)
    crowded = any(2 * len(heads) > scores.exist[layer].sum() for layer, heads in chosen.by_layer().items())
    matched = [] if crowded else [scores.layer_matched_random(seed, top) for seed in seeds]
    return {
        "top": [chosen],
        "next-ranked": [scores.next(top)],
        "random": [scores.random(seed, top) for seed in seeds],
        **({"random, same layers": matched} if matched else {}),
        "bottom": [scores.bottom(top)],
    }


def ablate_all(
    model: HookedMLLM,
    samples: Samples,
    conditions: Mapping[str, Sequence[HeadSet]],
    how: Removal | Literal["blind"] = "zero",
    phase: Phase = "both",
    batch_size: int = 16,
    max_new_tokens: int = 32,
    box_unit: BoxUnit | None = None,
    chosen_by: str | None = None,
    out: str | PathLike[str] | None = None,
) -> Conditions[HeadSet]:
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
    if how != "blind":
        check_removal(how)
    ablate([], phase=phase)
    every = named(samples)
    check_scoring(every, box_unit)
    all_sets = {PLAIN: [HeadSet((), "nothing removed")]} | {name: list(sets) for name, sets in conditions.items()}
    model.check_heads(head for sets in all_sets.values() for heads in sets for head in heads)

    @cache
    def remove() -> Callable[[HeadSet], Any]:
        # Not before samples are missing: stand-ins cost a pass over all of them.
        if how == "blind":
            return partial(_blinded, phase=phase)
        seen = (sample for _, sample in every if sample.images or sample.videos)
        return partial(ablate, how=how, instead=stand_ins(model, seen, how), phase=phase)

    def measure(batch: list[Sample]) -> dict[str, Float[Tensor, "batch _unit"]]:
        asked = [(batch, prepared(model, batch))]

        def without(heads: HeadSet) -> Float[Tensor, "batch"]:
            found = answers(model, asked, remove()(heads), max_new_tokens, box_unit=box_unit)
            return found.scores.masked_fill(~found.parsed, torch.nan)

        with seeing_once(model.hf_model):
            return {name: torch.stack([without(heads) for heads in sets], 1) for name, sets in all_sets.items()}

    choices = {
        "how": how,
        "phase": phase,
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "box_unit": box_unit,
        "chosen_by": chosen_by,
        "conditions": {name: [str(heads) for heads in sets] for name, sets in all_sets.items()},
    }
    whole = in_parts("ablate", every, PART, described(model), choices, out, here(batch_size, measure))
    return Conditions(all_sets, whole.values, whole.samples, whole.datasets, whole.skipped)


def _blinded(heads: HeadSet, phase: Phase) -> Any:
    """Hooks that keep heads from looking at pictures and videos from the question on."""
    return [hook for keys in ("image", "video") for hook in knock_out(heads, "from_question", keys, phase=phase)]
