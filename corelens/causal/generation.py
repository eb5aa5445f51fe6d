"""Answers by generation, under interventions."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from corelens.data import Sample
from corelens.inputs import PreparedInputs
from corelens.interventions import FwdHooks
from corelens.model import HookedMLLM


@torch.no_grad()
def answers_right(
    model: HookedMLLM,
    batches: Sequence[tuple[Sequence[Sample], PreparedInputs]],
    fwd_hooks: FwdHooks | None = None,
    max_new_tokens: int = 8,
) -> Bool[Tensor, "sample"]:
    """Whether the model's greedy answer to each sample is the expected one, word for word, under some hooks.

    Args:
        model: The model.
        batches: Samples and their inputs, from `prepared_batches`: prepared once, asked under many interventions.
        fwd_hooks: The intervention; none asks the model as it is.
        max_new_tokens: Where answers are cut off.
    """
    right: list[bool] = []
    with model.hooks(fwd_hooks=fwd_hooks or []):
        for samples, inputs in batches:
            said = model.answer(inputs, max_new_tokens)
            right += [answer == sample.answer for answer, sample in zip(said, samples, strict=True)]
    return torch.tensor(right)
