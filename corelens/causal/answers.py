"""Prompts followed by an answer, as if the model had said it: one pass then shows how every word of it comes about."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad
from transformers.utils.generic import ModelOutput

from corelens.hf.prefix_cache import PrefixCache
from corelens.hooks.rows import QueryRows
from corelens.inputs.prepare import PreparedInputs
from corelens.model import HookedMLLM
from corelens.tokens import Role, TokenMap


def append_answers(
    model: HookedMLLM, inputs: PreparedInputs, answers: Sequence[str] | Sequence[Sequence[int]]
) -> PreparedInputs:
    """Prepared prompts with an answer behind each; shorter answers are padded on the right.

    In the token map answers have the role `answer`; `last` is still the position that says their first word.

    Args:
        model: The model, whose own bookkeeping for `generate` says what else grows with the sequence.
        inputs: What `prepare` returned.
        answers: Texts, which are tokenised on their own, or token ids.

    Raises:
        ValueError: If there is not one answer for each prompt, or one has no token.
        TypeError: If the model's decoder stands beside an encoder: its answer is another sequence.
    """
    if model.hf_model.config.is_encoder_decoder:
        raise TypeError(
            f"{type(model.hf_model).__name__} has an encoder and a decoder: its answers do not follow the prompt."
        )
    if len(answers) != len(inputs.tokens):
        raise ValueError(f"{len(answers)} answers were given for {len(inputs.tokens)} prompts.")
    ids = [_ids(model, answer) if isinstance(answer, str) else list(answer) for answer in answers]
    if empty := [answer for answer, own in zip(answers, ids, strict=True) if not own]:
        raise ValueError(f"the answer {empty[0]!r} has no token.")
    prompt, longest = inputs["input_ids"], max(map(len, ids))
    n = prompt.shape[1]
    real = torch.tensor([[True] * len(own) + [False] * (longest - len(own)) for own in ids], device=prompt.device)
    # What fills up shorter answers is seen by nobody; it is the prompt's last token, since that is text.
    said = torch.cat([prompt, prompt[:, -1:].expand(-1, longest)], 1)
    for sample, own in enumerate(ids):
        said[sample, n : n + len(own)] = torch.tensor(own)
    tensors: dict[str, Any] = dict(inputs)
    # Any: Hugging Face types it for a mixin. One by one, since some models repeat the last types of tokens.
    hf_model: Any = model.hf_model
    for _ in range(longest):
        tensors = hf_model._update_model_kwargs_for_generation(ModelOutput(), tensors, False)
    tensors["input_ids"] = said
    tensors["attention_mask"] = torch.cat([inputs["attention_mask"], real.to(inputs["attention_mask"])], 1)
    columns = {
        name: pad(column.movedim(1, -1), (0, longest), value=_NOTHING.get(name, -1)).movedim(-1, 1)
        for name, column in inputs.tokens.position_tensors().items()
    }
    columns["role"][:, n:] = torch.where(real, int(Role.ANSWER), int(Role.PADDING))
    return PreparedInputs(tensors, replace(inputs.tokens, **columns))


_NOTHING = {"overview": 0, "box": torch.nan, "seconds": torch.nan}
"""What a token map says of positions that stand for no pixels; minus one where it is not named here."""


def answer_positions(tokens: TokenMap) -> Bool[Tensor, "batch position"]:
    """The positions that say an answer's tokens: the one before each."""
    return tokens.answer.roll(-1, 1) & ~tokens.padding


def answer_targets(inputs: PreparedInputs) -> Int[Tensor, "batch position"]:
    """The token of the answer that each position says; -1 where it says none."""
    return torch.where(answer_positions(inputs.tokens), inputs["input_ids"].roll(-1, 1), -1)


def greedy_answers(
    model: HookedMLLM, inputs: PreparedInputs, max_new_tokens: int, prefix: PrefixCache | None = None
) -> list[list[int]]:
    """The token ids of the model's own greedy answers, without what ends them; at least one token each."""
    sequences = model.generate(inputs, prefix=prefix, max_new_tokens=max_new_tokens, do_sample=False)
    generated = sequences[:, inputs["input_ids"].shape[1] :]
    ends = model.hf_model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends]) | {model.processor.tokenizer.pad_token_id}
    answers = []
    for row in generated.tolist():
        n = next((index for index, token in enumerate(row) if token in ends), len(row))
        answers.append(row[: max(n, 1)])
    return answers


def _ids(model: HookedMLLM, text: str) -> list[int]:
    return model.processor.tokenizer(text, add_special_tokens=False)["input_ids"]


@dataclass(frozen=True, eq=False)
class AnswerLogProbs:
    """What a model says where the expected answer stands."""

    log_probs: Float[Tensor, "sample token vocabulary"]
    """Before each token of the answer, of every token that could come there."""

    targets: Int[Tensor, "sample token"]
    mask: Bool[Tensor, "sample token"]
    """False beyond the end of shorter answers."""

    @classmethod
    def of(
        cls, logits: Float[Tensor, "sample position vocabulary"], inputs: PreparedInputs, first: int = 0
    ) -> "AnswerLogProbs":
        """From the logits of a pass over inputs with answers, whose first positions may be missing.

        Raises:
            ValueError: If a prompt has no answer.
        """
        answer = inputs.tokens.answer
        if not answer.any(-1).all():
            raise ValueError(
                "these prompts have no expected answers: add them with append_answers(model, inputs, answers)."
            )
        rows = QueryRows.of(answer)
        sample = torch.arange(len(answer), device=answer.device)[:, None]
        before = logits[sample, (rows.position - 1 - first).clamp(min=0)]
        return cls(before.float().log_softmax(-1), inputs["input_ids"][sample, rows.position], rows.real)
