"""Answers by generation, under interventions."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from corelens.data import Sample
from corelens.inputs import PreparedInputs
from corelens.interventions import FwdHooks
from corelens.model import HookedMLLM


@dataclass(frozen=True)
class Answers:
    """What a model answered."""

    said: tuple[str, ...]
    right: Bool[Tensor, "sample"]
    parsed: Bool[Tensor, "sample"]
    """Whether it is an answer at all: one of the possible ones."""

    @property
    def accuracy(self) -> float:
        """Share of right answers; what is no answer is not right."""
        return self.right.float().mean().item()


@torch.no_grad()
def answers(
    model: HookedMLLM,
    batches: Sequence[tuple[Sequence[Sample], PreparedInputs]],
    fwd_hooks: FwdHooks | None = None,
    max_new_tokens: int = 8,
    choices: Collection[str] | None = None,
) -> Answers:
    """The model's greedy answers under some hooks; right if they are the expected ones, word for word.

    Args:
        model: The model.
        batches: Samples and their inputs, from `prepared_batches`: prepared once, asked under many interventions.
        fwd_hooks: The intervention; none asks the model as it is.
        max_new_tokens: Where answers are cut off.
        choices: What counts as an answer, so that a model that says something else is told from one that is wrong;
            None takes everything for an answer.
    """
    said: list[str] = []
    with model.hooks(fwd_hooks=fwd_hooks or []):
        for _, inputs in batches:
            said += model.answer(inputs, max_new_tokens)
    expected = [sample.answer for samples, _ in batches for sample in samples]
    return Answers(
        tuple(said),
        torch.tensor([answer == right for answer, right in zip(said, expected, strict=True)]),
        torch.tensor([choices is None or answer in choices for answer in said]),
    )
