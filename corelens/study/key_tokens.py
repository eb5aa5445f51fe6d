"""Key tokens: the evidence is among the tokens that the top heads attend to most."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from corelens.experiments.key_token_results import KeyTokens
from corelens.heads import Head
from corelens.metrics import hit_rate
from corelens.study.verdict import Finding, Measurement, estimate, sources

N_HEADS = 15
"""Heads whose hit rate the paper shows (appendix E.3), or a quarter of all heads in models of few."""

RULE = (
    "Heads are chosen on other samples. A head hits the evidence of a sample if half of it or more is among the 5 % of "
    "tokens that it attends to most from the question (appendix E.3). The top 15 heads hit at least twice as often as "
    "random heads, as bottom heads and as the top 15 of an untrained model; and the evidence that the top 15 cover "
    "together is at least what as many random heads cover (appendix E.4). The paper prints hit rates (14 and 26 % "
    "against about 2 %) and shows no random heads: the rule is corelens's own."
)


def n_compared(n_heads: int) -> int:
    """Number of heads whose key tokens are compared."""
    return max(1, min(N_HEADS, n_heads // 4))


def key_token_finding(key_tokens: KeyTokens, untrained: KeyTokens) -> Finding:
    """Test whether the top heads attend most to the evidence.

    Args:
        key_tokens: Key tokens of samples on which heads were not chosen, along rankings `top`, `random` and `bottom`.
        untrained: The same of a model of the same configuration with random weights, along its own ranking `top`.
    """
    n = n_compared(key_tokens.ratios.n_heads)
    values, strata = key_tokens.ratios.values, sources(key_tokens.ratios)
    ratios = {kind: _ratios(values, [list(draw)[:n] for draw in draws]) for kind, draws in key_tokens.rankings.items()}

    def hits(kind: str, indices: np.ndarray) -> float:
        return float(hit_rate(ratios[kind][indices].flatten()))

    untrained_ratios = _ratios(untrained.ratios.values, [list(untrained.rankings["top"][0])[:n]])

    def hits_above_untrained(indices: np.ndarray) -> float:
        return hits("top", indices) - 2 * float(hit_rate(untrained_ratios[indices % len(untrained_ratios)].flatten()))

    def covered(kind: str, indices: np.ndarray) -> float:
        return float(key_tokens.coverage[kind][indices, :, n - 1].mean())

    def rate(kind: str) -> Measurement:
        return estimate(f"hit rate of {n} {kind} heads", lambda indices: hits(kind, indices), strata, within=(0, 1))

    def hits_above(control: str) -> Measurement:
        name = f"hit rate of the top {n} less twice that of {control} heads"
        return estimate(name, lambda indices: hits("top", indices) - 2 * hits(control, indices), strata, at_least=0.0)

    chance = key_tokens.hit_rates(n)["chance"]
    return Finding(
        "Key tokens: the top heads attend most to the evidence",
        RULE,
        (
            hits_above("random"),
            hits_above("bottom"),
            estimate(
                f"hit rate of the top {n} less twice that of an untrained model's",
                hits_above_untrained,
                strata,
                at_least=0.0,
            ),
            estimate(
                f"evidence covered by the top {n}, less that by random heads",
                lambda indices: covered("top", indices) - covered("random", indices),
                strata,
                at_least=0.0,
            ),
            rate("top"),
            rate("random"),
            rate("bottom"),
            estimate(
                f"evidence covered by the top {n}", lambda indices: covered("top", indices), strata, within=(0, 1)
            ),
        ),
        (f"By chance, a head covers {chance.ratio:.1%} of the evidence, and {chance.hits:.2%} of heads hit it.",),
    )


def _ratios(values: Float[Tensor, "sample layer head"], draws: list[list[Head]]) -> Float[Tensor, "sample draw_head"]:
    """Key token ratios of some heads."""
    heads = torch.tensor(draws).flatten(0, 1)
    return values[:, heads[:, 0], heads[:, 1]]
