"""Answers by generation, under interventions."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from corelens.data import BoxUnit, Sample, score
from corelens.inputs.prepare import PreparedInputs
from corelens.interventions import FwdHooks
from corelens.model import HookedMLLM


@dataclass(frozen=True)
class Evaluation:
    """What a model answered, and how good it is by the data set's own rule."""

    predictions: tuple[str, ...]
    scores: Float[Tensor, "sample"]
    """From zero to one; zero for what cannot be read as an answer."""

    parsed: Bool[Tensor, "sample"]
    """Whether it can be read as an answer at all."""

    @property
    def accuracy(self) -> float:
        """Mean score; what is no answer is not right."""
        return self.scores.mean().item()


@torch.no_grad()
def evaluate(
    model: HookedMLLM,
    batches: Sequence[tuple[Sequence[Sample], PreparedInputs]],
    fwd_hooks: FwdHooks | None = None,
    max_new_tokens: int = 8,
    choices: Collection[str] | None = None,
    box_unit: BoxUnit | None = None,
) -> Evaluation:
    """The model's greedy answers under some hooks, scored by the rule that each sample names (`corelens.data.score`).

    Args:
        model: The model.
        batches: Samples and their inputs, from `prepare_batches`: prepared once, asked under many interventions.
        fwd_hooks: The intervention; none asks the model as it is.
        max_new_tokens: Where answers are cut off.
        choices: What counts as an answer, so that a model that says something else is told from one that is wrong;
            None leaves that to the rule.
        box_unit: The unit in which the model says boxes, for samples that ask for one.
    """
    said: list[str] = []
    with model.hooks(fwd_hooks=fwd_hooks or []):
        for _, inputs in batches:
            said += model.answer(inputs, max_new_tokens)
    asked = [sample for samples, _ in batches for sample in samples]
    found = [
        score(sample, one, box_unit) if choices is None or one in choices else None
        for sample, one in zip(asked, said, strict=True)
    ]
    return Evaluation(
        tuple(said), torch.tensor([one or 0.0 for one in found]), torch.tensor([one is not None for one in found])
    )
