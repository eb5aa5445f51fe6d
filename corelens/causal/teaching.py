"""Prompts followed by the answer that is expected, and what a model says of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from corelens.attention import Rows
from corelens.inputs import PreparedInputs
from corelens.model import HookedMLLM
from corelens.tokens import Role


def with_answers(model: HookedMLLM, inputs: PreparedInputs, answers: Sequence[str]) -> PreparedInputs:
    """Prepared prompts with the expected answer behind each, as if the model had said it.

    Answers are tokenised on their own. In the token map they have the role `answer`; `last` is still the position that
    says the first word. Shorter answers are padded on the right.

    Raises:
        ValueError: If there is not one answer for each prompt, or one has no token.
    """
    if len(answers) != len(inputs.tokens):
        raise ValueError(f"{len(answers)} answers were given for {len(inputs.tokens)} prompts.")
    tokenizer = model.processor.tokenizer
    ids = [tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in answers]
    if empty := [answer for answer, own in zip(answers, ids, strict=True) if not own]:
        raise ValueError(f"the answer {empty[0]!r} has no token.")
    longest = max(map(len, ids))
    padding = tokenizer.pad_token_id or 0
    said = torch.tensor([own + [padding] * (longest - len(own)) for own in ids], device=model.device)
    real = torch.tensor([[True] * len(own) + [False] * (longest - len(own)) for own in ids], device=model.device)
    tensors = dict(inputs)
    for name, tensor in inputs.items():
        if name != "pixel_values" and isinstance(tensor, Tensor) and tensor.shape[:2] == inputs["input_ids"].shape:
            more = {"input_ids": said, "attention_mask": real}.get(name, torch.zeros_like(said))
            tensors[name] = torch.cat([tensor, more.to(tensor)], 1)
    columns = {
        name: pad(column, (0,) * 2 * (column.ndim - 2) + (0, longest))
        for name, column in inputs.tokens._columns().items()
    }
    for name in ("media", "view", "row", "column"):
        columns[name][:, -longest:] = -1
    for name in ("box", "seconds"):
        columns[name][:, -longest:] = torch.nan
    columns["role"][:, -longest:] = torch.where(real, int(Role.ANSWER), int(Role.PADDING))
    return PreparedInputs(tensors, replace(inputs.tokens, **columns))


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
