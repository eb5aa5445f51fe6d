"""Prompts that go on with an answer: one pass then shows every position that says a part of it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.functional import pad
from transformers.utils.generic import ModelOutput

from corelens.inputs import PreparedInputs
from corelens.model import HookedMLLM
from corelens.tokens import Role


class Continuation(NamedTuple):
    """Prompts with answers behind them."""

    inputs: PreparedInputs
    """The prompts and all but the last token of each answer, which nothing follows; shorter ones are padded behind."""

    saying: Bool[Tensor, "batch position"]
    """The positions that say the answer's tokens: the last of the prompt, and the answer's own but its last."""

    said: Int[Tensor, "batch position"]
    """The token that is said there; -1 elsewhere."""


def continued(model: HookedMLLM, inputs: PreparedInputs, answers: Sequence[Sequence[int]]) -> Continuation:
    """Lets prepared prompts go on with answers, as `generate` would, token by token.

    Args:
        model: The model, whose own bookkeeping says what else grows with the sequence.
        inputs: What `prepare` returned.
        answers: The token ids of each sample's answer.

    Raises:
        ValueError: If an answer has no token, or if the model's decoder stands beside an encoder: its answer is another
            sequence.
    """
    if model.hf_model.config.is_encoder_decoder:
        raise ValueError(
            "the answers of a model with an encoder and a decoder do not follow the prompt; measure 'last'."
        )
    if empty := [sample for sample, ids in enumerate(answers) if not len(ids)]:
        raise ValueError(f"the answers of sample(s) {empty} have no token.")
    prompt, longest = inputs["input_ids"], max(map(len, answers))
    n = prompt.shape[1]
    said = torch.full((len(answers), n - 1 + longest), -1, device=prompt.device)
    for sample, ids in enumerate(answers):
        said[sample, n - 1 : n - 1 + len(ids)] = torch.tensor(ids)
    tensors: dict[str, Any] = dict(inputs)
    # Any: Hugging Face types it for a mixin. One by one, since some models repeat the last type of token.
    hf_model: Any = model.hf_model
    for _ in range(longest - 1):
        tensors = hf_model._update_model_kwargs_for_generation(ModelOutput(), tensors, False)
    behind = said[:, n - 1 : -1]
    real = said[:, n:] >= 0
    # What fills up shorter answers is seen by nobody; it is the prompt's last token, since that is text.
    tensors["input_ids"] = torch.cat([prompt, torch.where(real, behind, prompt[:, -1:])], 1)
    tensors["attention_mask"] = torch.cat([inputs["attention_mask"], real.to(inputs["attention_mask"])], 1)
    tokens = inputs.tokens
    columns = {
        name: pad(column.movedim(1, -1), (0, longest - 1), value=_NOTHING.get(name, -1)).movedim(-1, 1)
        for name, column in tokens._columns().items()
    }
    columns["role"][:, n:] = torch.where(real, Role.ANSWER, Role.PADDING)
    return Continuation(PreparedInputs(tensors, replace(tokens, **columns)), said >= 0, said)


_NOTHING = {"overview": 0, "box": torch.nan, "seconds": torch.nan}
"""What a token map says of positions that stand for no pixels."""


def answer_ids(model: HookedMLLM, texts: Sequence[str]) -> list[list[int]]:
    """The token ids of answers as the model's tokenizer writes them."""
    return [model.processor.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def greedy_ids(model: HookedMLLM, inputs: PreparedInputs, max_new_tokens: int) -> list[list[int]]:
    """The token ids of the model's own greedy answers, without what ends them; at least one token each."""
    said = model.generate(inputs, max_new_tokens=max_new_tokens, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    ends = model.hf_model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends]) | {model.processor.tokenizer.pad_token_id}
    answers = []
    for row in said.tolist():
        n = next((index for index, token in enumerate(row) if token in ends), len(row))
        answers.append(row[: max(n, 1)])
    return answers
