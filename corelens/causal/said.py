"""What a model says where the expected answer stands."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from corelens.attention import Rows
from corelens.inputs import PreparedInputs


@dataclass(frozen=True, eq=False)
class Said:
    """What a model says where the expected answer stands."""

    log_probs: Float[Tensor, "sample token vocabulary"]
    """Before each token of the answer, of every token that could come there."""

    expected: Int[Tensor, "sample token"]
    real: Bool[Tensor, "sample token"]
    """False beyond the end of shorter answers."""

    @classmethod
    def of(cls, logits: Float[Tensor, "sample position vocabulary"], inputs: PreparedInputs, first: int = 0) -> "Said":
        """From the logits of a pass over inputs with answers, whose first positions may be missing.

        Raises:
            ValueError: If a prompt has no answer.
        """
        answer = inputs.tokens.answer
        if not answer.any(-1).all():
            raise ValueError(
                "these prompts have no expected answers: add them with with_answers(model, inputs, answers)."
            )
        rows = Rows.of(answer)
        sample = torch.arange(len(answer), device=answer.device)[:, None]
        before = logits[sample, (rows.position - 1 - first).clamp(min=0)]
        return cls(before.float().log_softmax(-1), inputs["input_ids"][sample, rows.position], rows.real)
