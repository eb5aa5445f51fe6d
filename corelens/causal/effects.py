"""Metrics of an intervention's effect on an answer: one number per sample.

A metric is a function of two `AnswerLogProbs`, with and without the intervention.
"""

from collections.abc import Callable

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from corelens.causal.answers import AnswerLogProbs

PatchingMetric = Callable[[AnswerLogProbs, AnswerLogProbs], Float[Tensor, "sample"]]


def log_prob(patched: AnswerLogProbs, clean: AnswerLogProbs) -> Float[Tensor, "sample"]:
    """Log-probability of the expected answer, summed over its tokens."""
    target_log_probs = patched.log_probs.gather(-1, patched.targets[..., None])[..., 0]
    return (target_log_probs * patched.mask).sum(-1)


def rank(patched: AnswerLogProbs, clean: AnswerLogProbs) -> Float[Tensor, "sample"]:
    """Rank of the answer's first token among all tokens; 1 is the token that greedy decoding generates.

    NaN where log-probabilities are.
    """
    first = patched.log_probs[:, 0]
    ranks = 1 + (first > first.gather(-1, patched.targets[:, :1])).sum(-1).float()
    return ranks.where(~first.isnan().any(-1), torch.nan)


def kl_div(patched: AnswerLogProbs, clean: AnswerLogProbs) -> Float[Tensor, "sample"]:
    """Kullback-Leibler divergence of the predictions with the intervention from those without it.

    KL(clean || patched), summed over the tokens of the expected answer, in nats.
    """
    log_ratio = clean.log_probs - patched.log_probs
    return einsum(
        clean.log_probs.exp(), log_ratio, patched.mask.float(), "sample token v, sample token v, sample token -> sample"
    )


def logit_margin(patched: AnswerLogProbs, clean: AnswerLogProbs) -> Float[Tensor, "sample"]:
    """Logits of the expected answer minus those of the runners-up, summed over its tokens.

    The runner-up of a token is the strongest other one without the intervention. Unlike the log-probability, the margin
    still grows where the model is sure of its answer.
    """
    targets = clean.targets[..., None]
    runners_up = clean.log_probs.detach().scatter(-1, targets, -torch.inf).argmax(-1, keepdim=True)
    margins = (patched.log_probs.gather(-1, targets) - patched.log_probs.gather(-1, runners_up))[..., 0]
    return (margins * patched.mask).sum(-1)


def logit_diff(others: Float[Tensor, "sample"] | Tensor) -> PatchingMetric:
    """Metric: the logit of the answer's first token minus that of another token.

    Args:
        others: The id of the other token of each sample, e.g. of the answer about another picture.
    """

    def difference(patched: AnswerLogProbs, clean: AnswerLogProbs) -> Float[Tensor, "sample"]:
        pair = torch.stack([patched.targets[:, 0], others.to(patched.targets)], -1)
        logits = patched.log_probs[:, 0].gather(-1, pair)
        return logits[:, 0] - logits[:, 1]

    return difference
