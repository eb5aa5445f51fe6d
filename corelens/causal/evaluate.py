"""Generated answers under interventions, and their scores."""

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
    """Answers of a model, and their scores by the data set's own rule."""

    predictions: tuple[str, ...]
    scores: Float[Tensor, "sample"]
    """From zero to one; zero for a prediction that cannot be read as an answer."""

    parsed: Bool[Tensor, "sample"]
    """True where the prediction can be read as an answer at all."""

    @property
    def accuracy(self) -> float:
        """Mean score; a prediction that is no answer counts as wrong."""
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
    """Generate greedy answers under some hooks, and score them.

    Each answer is scored by the rule that its sample names (`corelens.data.score`).

    Args:
        model: The model.
        batches: Samples and their inputs, from `prepare_batches`: prepared once, used under many interventions.
        fwd_hooks: The intervention; None for the model as it is.
        max_new_tokens: Maximum length of an answer, in tokens.
        choices: The texts that count as answers, to tell other texts from wrong answers; None leaves that to the
            rule.
        box_unit: The unit of the model's boxes, for samples that ask for a box.
    """
    model.check_repeatable()
    predictions: list[str] = []
    with model.hooks(fwd_hooks=fwd_hooks or []):
        for _, inputs in batches:
            predictions += model.answer(inputs, max_new_tokens)
    samples = [sample for batch, _ in batches for sample in batch]
    scores = [
        score(sample, prediction, box_unit) if choices is None or prediction in choices else None
        for sample, prediction in zip(samples, predictions, strict=True)
    ]
    return Evaluation(
        tuple(predictions),
        torch.tensor([value or 0.0 for value in scores]),
        torch.tensor([value is not None for value in scores]),
    )
