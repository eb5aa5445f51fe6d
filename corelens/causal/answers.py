"""Teacher-forced answers: prompts with an answer appended, and the log-probabilities of its tokens in one pass."""

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
from corelens.inputs.chats import answer_opening
from corelens.inputs.prepare import PreparedInputs, check_context
from corelens.model import HookedMLLM
from corelens.tokens import Role, TokenMap


def append_answers(
    model: HookedMLLM, inputs: PreparedInputs, answers: Sequence[str] | Sequence[Sequence[int]]
) -> PreparedInputs:
    """Append an answer to each prepared prompt; shorter answers are padded on the right.

    In the token map answers have the role `answer`; `last` is still the position that predicts their first token.

    Args:
        model: The model; its bookkeeping for `generate` extends the other tensors that grow with the sequence.
        inputs: Prompts from `prepare`.
        answers: Texts, which become the tokens by which the model would say them after its chat template; or token ids.

    Raises:
        ValueError: If there is not one answer for each prompt, one has no token, or both are longer than the model's
            context.
        TypeError: If the model has an encoder and a decoder: its answer is another sequence.
    """
    if model.hf_model.config.is_encoder_decoder:
        raise TypeError(
            f"{type(model.hf_model).__name__} has an encoder and a decoder: its answers do not follow the prompt."
        )
    if len(answers) != len(inputs.tokens):
        raise ValueError(f"{len(answers)} answers were given for {len(inputs.tokens)} prompts.")
    ids = [answer_ids(model.processor, answer) if isinstance(answer, str) else list(answer) for answer in answers]
    if empty := [answer for answer, tokens in zip(answers, ids, strict=True) if not tokens]:
        raise ValueError(f"the answer {empty[0]!r} has no token.")
    prompt, longest = inputs["input_ids"], max(map(len, ids))
    n = prompt.shape[1]
    mask = torch.tensor([[True] * len(row) + [False] * (longest - len(row)) for row in ids], device=prompt.device)
    # No query attends to the padding of shorter answers; it is the prompt's last token, since that is text.
    input_ids = torch.cat([prompt, prompt[:, -1:].expand(-1, longest)], 1)
    for sample, row in enumerate(ids):
        input_ids[sample, n : n + len(row)] = torch.tensor(row)
    tensors: dict[str, Any] = dict(inputs)
    # Any: Hugging Face types it for a mixin. One by one, since some models repeat the last types of tokens.
    hf_model: Any = model.hf_model
    for _ in range(longest):
        tensors = hf_model._update_model_kwargs_for_generation(ModelOutput(), tensors, False)
    for name, types in tensors.items():
        # Answers are text, as the prompt's last token is. Ernie's own types of tokens are not among the bookkeeping.
        if name.endswith("token_type_ids") and types.shape[1] == n:
            tensors[name] = torch.cat([types, types[:, -1:].expand(-1, longest)], 1)
    tensors["input_ids"] = input_ids
    tensors["attention_mask"] = torch.cat([inputs["attention_mask"], mask.to(inputs["attention_mask"])], 1)
    check_context(hf_model.config, tensors["attention_mask"])
    columns = {
        name: pad(column.movedim(1, -1), (0, longest), value=_FILL_VALUES.get(name, -1)).movedim(-1, 1)
        for name, column in inputs.tokens.position_tensors().items()
    }
    columns["role"][:, n:] = torch.where(mask, int(Role.ANSWER), int(Role.PADDING))
    return PreparedInputs(tensors, replace(inputs.tokens, **columns))


_FILL_VALUES = {"overview": 0, "box": torch.nan, "seconds": torch.nan}
"""Values in a token map's columns for positions without pixels; minus one in all other columns."""


def answer_positions(tokens: TokenMap) -> Bool[Tensor, "batch position"]:
    """Positions whose next-token prediction is an answer token."""
    return tokens.answer.roll(-1, 1) & ~tokens.padding


def answer_targets(inputs: PreparedInputs) -> Int[Tensor, "batch position"]:
    """The answer token that each position predicts; -1 where it predicts none."""
    return torch.where(answer_positions(inputs.tokens), inputs["input_ids"].roll(-1, 1), -1)


def greedy_answers(
    model: HookedMLLM, inputs: PreparedInputs, max_new_tokens: int, prefix: PrefixCache | None = None
) -> list[list[int]]:
    """Token ids of the model's own greedy answers, without the end-of-sequence token; at least one token each."""
    sequences = model.generate(inputs, prefix=prefix, max_new_tokens=max_new_tokens, do_sample=False)
    generated = sequences[:, inputs["input_ids"].shape[1] :]
    eos = model.hf_model.generation_config.eos_token_id
    end_tokens = set(eos if isinstance(eos, list) else [eos]) | {model.processor.tokenizer.pad_token_id}
    answers = []
    for row in generated.tolist():
        n = next((index for index, token in enumerate(row) if token in end_tokens), len(row))
        answers.append(row[: max(n, 1)])
    return answers


def answer_ids(processor: Any, answer: str) -> list[int]:
    """Token ids by which a model says an answer: with the space before it that its chat template ends without."""

    def ids(text: str) -> list[int]:
        return processor.tokenizer(text, add_special_tokens=False)["input_ids"]

    end, space = answer_opening(processor) if getattr(processor, "chat_template", None) else ("", "")
    text = answer if not answer or answer[0].isspace() else space + answer
    # Where the end of the prompt is a space, it would become one token with the answer, and a line break does not.
    for before in (end, "\n"):
        if (whole := ids(before + text))[: (n := len(ids(before)))] == ids(before) and n:
            return whole[n:]
    return ids(text)


def appended_answers(inputs: PreparedInputs) -> Bool[Tensor, "sample position"]:
    """Mask of the tokens of appended answers.

    Raises:
        ValueError: If a prompt has no answer.
    """
    answer = inputs.tokens.answer
    if not answer.any(-1).all():
        raise ValueError(
            "these prompts have no expected answers: add them with append_answers(model, inputs, answers)."
        )
    return answer


@dataclass(frozen=True, eq=False)
class AnswerLogProbs:
    """Log-probabilities of a model at the tokens of the expected answer."""

    log_probs: Float[Tensor, "sample token vocabulary"]
    """Log-probabilities of all tokens before each token of the answer."""

    targets: Int[Tensor, "sample token"]
    """Token ids of the expected answer."""

    mask: Bool[Tensor, "sample token"]
    """False beyond the end of shorter answers."""

    @classmethod
    def of(
        cls, logits: Float[Tensor, "sample position vocabulary"], inputs: PreparedInputs, first: int = 0
    ) -> "AnswerLogProbs":
        """Log-probabilities from the logits of a pass over inputs with answers.

        Args:
            logits: Of all positions, or of those from `first` on.
            inputs: Prompts with answers appended.
            first: The position of the first logits.

        Raises:
            ValueError: If a prompt has no answer.
        """
        answer = appended_answers(inputs)
        rows = QueryRows.of(answer)
        sample = torch.arange(len(answer), device=answer.device)[:, None]
        answer_logits = logits[sample, (rows.position - 1 - first).clamp(min=0)]
        return cls(answer_logits.float().log_softmax(-1), inputs["input_ids"][sample, rows.position], rows.real)

    def detach(self) -> "AnswerLogProbs":
        """The same without a gradient."""
        return replace(self, log_probs=self.log_probs.detach())
