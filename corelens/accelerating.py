"""Does a plan keep the answers? Accuracy and kept attention under plans and their controls, part by part."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from corelens.causal import answers
from corelens.conditions import PLAIN, Conditions, check_scoring
from corelens.data import BoxUnit, Sample
from corelens.inputs import PreparedInputs
from corelens.model import HookedMLLM
from corelens.parts import Samples, described, here, in_parts, length_of, named, prepared
from corelens.pruning import Pruning, pruned
from corelens.replay import seeing_once
from corelens.sparse import Full, HeadPlan, apply, place
from corelens.sparse.kept import kept_attention
from corelens.sparse.speed import Speed, measure_speed

PART = 16
"""Samples that are kept or lost together when the work is interrupted: each is answered under every plan."""

KEPT = "kept attention, "
"""Begins the columns of run folders that hold it."""

Plans = Mapping[str, Sequence[HeadPlan | Pruning]]
"""Plans of heads, or prunings of visual tokens to compare them with, by what they are; several where heads are drawn by
chance, one for each seed."""


@dataclass(frozen=True)
class Accelerated(Conditions[HeadPlan | Pruning]):
    """How good answers are under plans, and how much attention they keep."""

    kept: Mapping[str, Float[Tensor, "sample _draw"]]
    """Share of the attention of the prompt's last token, all heads together, that a plan lets heads keep, in [0, 1];
    NaN for prunings, after which attention is another."""

    def kept_attention(self, condition: str) -> float:
        """Mean over samples and draws."""
        return self.kept[condition].mean().item()


def accelerate_all(
    model: HookedMLLM,
    samples: Samples,
    plans: Plans,
    batch_size: int = 16,
    max_new_tokens: int = 32,
    box_unit: BoxUnit | None = None,
    chosen_by: str | None = None,
    out: str | PathLike[str] | None = None,
) -> Accelerated:
    """Greedy answers under no plan and under each plan, scored by the rule of their data set.

    Args:
        model: The model.
        samples: Questions with media, or without; a mapping if there are several data sets.
        plans: The plans.
        batch_size: Most samples a pass; fewer after running out of memory.
        max_new_tokens: Where answers are cut off.
        box_unit: The unit in which the model says boxes, for samples that ask for one.
        chosen_by: Whose scores chose the heads, which `out` says too.
        out: A folder that keeps finished parts. The same work into the same folder goes on where it was interrupted.

    Raises:
        ValueError: If a plan does not fit the model, there is no sample, none can be asked, one has no rule that can
            score it, or `out` holds another run; names the difference.
        RuntimeError: If another process is writing to `out`.
    """
    every = named(samples)
    check_scoring(every, box_unit)
    full = HeadPlan({}, Full(), name="no plan")
    all_plans: dict[str, list[HeadPlan | Pruning]] = {PLAIN: [full], **{n: list(own) for n, own in plans.items()}}
    of_heads = [plan for own in all_plans.values() for plan in own if isinstance(plan, HeadPlan)]
    for plan in of_heads:
        place(plan, model.hf_model)

    def measure(batch: list[Sample]) -> dict[str, Float[Tensor, "batch _unit"]]:
        inputs = prepared(model, batch)
        asked = [(batch, inputs)]

        def under(plan: HeadPlan | Pruning) -> Float[Tensor, "batch"]:
            if isinstance(plan, Pruning):
                found = answers(model, asked, pruned(model, inputs, plan), max_new_tokens, box_unit=box_unit)
            else:
                with nullcontext() if plan is full else apply(model, plan, force=True):
                    found = answers(model, asked, None, max_new_tokens, box_unit=box_unit)
            return found.scores.masked_fill(~found.parsed, torch.nan)

        unknown = torch.full((len(batch),), torch.nan)
        found = {}
        with seeing_once(model.hf_model):
            masses = iter(kept_attention(model, inputs, of_heads))
            for name, own in all_plans.items():
                found[name] = torch.stack([under(plan) for plan in own], 1)
                kept = [next(masses) if isinstance(plan, HeadPlan) else unknown for plan in own]
                found[KEPT + name] = torch.stack(kept, 1)
        return found

    choices = {
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "box_unit": box_unit,
        "chosen_by": chosen_by,
        "plans": {name: [_written(plan) for plan in own] for name, own in all_plans.items()},
    }
    whole = in_parts("accelerate", every, PART, described(model), choices, out, here(batch_size, measure))
    values = {name: whole.values[name] for name in all_plans}
    kept = {name: whole.values[KEPT + name] for name in all_plans}
    return Accelerated(all_plans, values, whole.samples, whole.datasets, whole.skipped, kept)


def longest_prompt(model: HookedMLLM, samples: Samples) -> PreparedInputs:
    """The longest prompt, as far as lengths are known before media are read."""
    _, longest = max(named(samples), key=lambda own: length_of(own[1]))
    return prepared(model, [longest])


def speeds(
    model: HookedMLLM, inputs: PreparedInputs, plans: Plans, n_tokens: int = 16, repeats: int = 3
) -> dict[str, Speed]:
    """How fast a prompt is answered under the first draw of every plan.

    Returns:
        The speeds; `plain` is the model as it is. Prunings have none.
    """
    first = {name: own[0] for name, own in plans.items() if isinstance(own[0], HeadPlan)} | {PLAIN: None}
    return measure_speed(model, inputs, first, n_tokens, repeats)


def _written(plan: HeadPlan | Pruning) -> dict[str, Any]:
    return plan.to_json() if isinstance(plan, HeadPlan) else asdict(plan)
