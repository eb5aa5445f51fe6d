"""What an intervention does to an answer: one number per sample, from what is said with it and without it.

An effect is a function of two `Said`, with and without the intervention.
"""

from collections.abc import Callable

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from corelens.causal.answers import Said

Effect = Callable[[Said, Said], Float[Tensor, "sample"]]


def log_probability(said: Said, plain: Said) -> Float[Tensor, "sample"]:
    """Log-probability of the expected answer, summed over its tokens."""
    of_expected = said.log_probs.gather(-1, said.expected[..., None])[..., 0]
    return (of_expected * said.real).sum(-1)


def rank(said: Said, plain: Said) -> Float[Tensor, "sample"]:
    """Rank of the answer's first token among all tokens; 1 is the one that greedy decoding says."""
    first = said.log_probs[:, 0]
    return 1 + (first > first.gather(-1, said.expected[:, :1])).sum(-1).float()


def kl(said: Said, plain: Said) -> Float[Tensor, "sample"]:
    """Kullback-Leibler divergence from what is said without the intervention to what is said with it.

    Summed over the tokens of the expected answer, in nats.
    """
    apart = plain.log_probs - said.log_probs
    return einsum(
        plain.log_probs.exp(), apart, said.real.float(), "sample token v, sample token v, sample token -> sample"
    )


def logit_difference(others: Float[Tensor, "sample"] | Tensor) -> Effect:
    """How far the logit of the answer's first token is above that of another token.

    Args:
        others: The id of the other token of each sample, e.g. the answer about another picture.
    """

    def difference(said: Said, plain: Said) -> Float[Tensor, "sample"]:
        pair = torch.stack([said.expected[:, 0], others.to(said.expected)], -1)
        logits = said.log_probs[:, 0].gather(-1, pair)
        return logits[:, 0] - logits[:, 1]

    return difference
