"""What an intervention does to an answer: one number per sample, from what is said with it and without it.

An effect is a function of two `Said`, with and without the intervention.
"""

from collections.abc import Callable

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from corelens.causal.answers import AnswerLogProbs

PatchingMetric = Callable[[AnswerLogProbs, AnswerLogProbs], Float[Tensor, "sample"]]


def log_prob(said: AnswerLogProbs, plain: AnswerLogProbs) -> Float[Tensor, "sample"]:
    """Log-probability of the expected answer, summed over its tokens."""
    of_expected = said.log_probs.gather(-1, said.targets[..., None])[..., 0]
    return (of_expected * said.mask).sum(-1)


def rank(said: AnswerLogProbs, plain: AnswerLogProbs) -> Float[Tensor, "sample"]:
    """Rank of the answer's first token among all tokens; 1 is the one that greedy decoding says."""
    first = said.log_probs[:, 0]
    return 1 + (first > first.gather(-1, said.targets[:, :1])).sum(-1).float()


def kl_div(said: AnswerLogProbs, plain: AnswerLogProbs) -> Float[Tensor, "sample"]:
    """Kullback-Leibler divergence from what is said without the intervention to what is said with it.

    Summed over the tokens of the expected answer, in nats.
    """
    apart = plain.log_probs - said.log_probs
    return einsum(
        plain.log_probs.exp(), apart, said.mask.float(), "sample token v, sample token v, sample token -> sample"
    )


def logit_diff(others: Float[Tensor, "sample"] | Tensor) -> PatchingMetric:
    """How far the logit of the answer's first token is above that of another token.

    Args:
        others: The id of the other token of each sample, e.g. the answer about another picture.
    """

    def difference(said: AnswerLogProbs, plain: AnswerLogProbs) -> Float[Tensor, "sample"]:
        pair = torch.stack([said.targets[:, 0], others.to(said.targets)], -1)
        logits = said.log_probs[:, 0].gather(-1, pair)
        return logits[:, 0] - logits[:, 1]

    return difference
