"""Direction of the residual stream that raises the logit of an answer, with the last norm held at its scale."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from corelens.causal.answers import appended_answers
from corelens.hf.norms import NormWeights
from corelens.inputs.prepare import PreparedInputs
from corelens.model import HookedMLLM


@dataclass(frozen=True, eq=False)
class LogitDirection:
    """A linear map from the residual stream, where it predicts the answer, to the answer's logit."""

    vector: Float[Tensor, "sample d_model"]
    """A part of the stream times it is the part's contribution to the logit."""

    bias: Float[Tensor, "sample"]
    """Contribution of the biases of the last norm and of the unembedding."""

    @classmethod
    def of(
        cls,
        model: HookedMLLM,
        inputs: PreparedInputs,
        stream: Float[Tensor, "sample position d_model"],
        others: Int[Tensor, "sample"] | None,
    ) -> "LogitDirection":
        """Read the direction from the unembedding and the last norm.

        Args:
            model: The model.
            inputs: Prompts with answers appended.
            stream: The residual stream behind the last layer.
            others: Tokens whose logit is taken off; None for the logit itself.

        Raises:
            ValueError: If a prompt has no answer, or the model no unembedding.
        """
        w_u, b_u = model.W_U.T.float(), model.b_U.float()
        targets = first_answer_tokens(inputs).to(w_u.device)
        tokens = w_u[targets]
        bias = b_u.expand(len(w_u))[targets]
        if others is not None:
            tokens, bias = tokens - w_u[others.to(w_u.device)], bias - b_u.expand(len(w_u))[others.to(w_u.device)]
        norm = model._ln_final
        if norm is None:
            return cls(tokens, bias)
        weights, at_last = norm.weights, at_last_position(inputs, stream).to(tokens)
        return cls(transposed(weights, tokens, weights.scale(at_last)), bias + tokens @ weights.bias.to(tokens))


def transposed(
    norm: NormWeights, direction: Float[Tensor, "sample d_model"], scale: Float[Tensor, "sample 1"]
) -> Float[Tensor, "sample d_model"]:
    """Direction before a norm at some scale that is a direction behind it: the transpose of `NormWeights.at_scale`."""
    before = direction * norm.gain.to(direction) / scale.to(direction)
    return before - before.mean(-1, keepdim=True) if norm.centred else before


def first_answer_tokens(inputs: PreparedInputs) -> Int[Tensor, "sample"]:
    """The token of each answer that the last position of the prompt predicts.

    Raises:
        ValueError: If a prompt has no answer.
    """
    answer = appended_answers(inputs)
    return inputs["input_ids"].gather(1, answer.to(torch.uint8).argmax(-1, keepdim=True))[:, 0]


def at_last_position(
    inputs: PreparedInputs, values: Float[Tensor, "sample position *rest"]
) -> Float[Tensor, "sample *rest"]:
    """Values at the position of each prompt that predicts its answer."""
    return values[inputs.tokens.last.to(values.device)]
