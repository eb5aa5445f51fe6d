"""Key tokens: how much of the evidence is among the five percent of tokens that a head attends to most.

`top_tokens` finds these tokens, `key_token_ratio` compares those of single heads with the evidence,
`key_token_coverage` those of a set of heads together, and `chance_coverage` and `chance_hit_rate` are what tokens drawn
at random would reach.
"""

import numpy as np
import torch
from einops import reduce
from jaxtyping import Bool, Float, Int
from scipy.stats import hypergeom
from torch import Tensor

from corelens.metrics.head_score import require_queries

HIT_THRESHOLD = 0.5
"""Key token ratio from which on a head hits the evidence of a sample."""


def top_tokens(
    pattern: Float[Tensor, "batch head query key"],
    queries: Bool[Tensor, "batch query"],
    sequence: Bool[Tensor, "batch key"] | None = None,
) -> Bool[Tensor, "batch head key"]:
    r"""Find the tokens that each head attends to most: five percent of the sequence, rounded down, and at least one.

    $$T_\mathrm{top} = \text{the } \max(1, \lfloor 0.05 L \rfloor) \text{ largest of }
    \frac{1}{|Q|} \sum_{q \in Q} A_{h,q}$$

    Args:
        pattern: Attention probabilities after softmax.
        queries: Mask of the rows that are question tokens. Other rows may hold anything, even NaN.
        sequence: Mask of the keys that belong to the sample's sequence of length L, so not padding; all by default.

    Returns:
        Mask of the top tokens of each head.

    Raises:
        ValueError: If a sample has no query token, or no key.

    Source:
        Sun et al. 2026 (arXiv 2606.05843), appendix E.3, equation 22. Of tokens with equal attention the paper does
        not speak; here the first in the sequence are taken.

    Examples:
        >>> pattern = torch.tensor([[[[0.2, 0.5, 0.3]]]])
        >>> top_tokens(pattern, torch.tensor([[True]]))
        tensor([[[False,  True, False]]])
    """
    if sequence is None:
        sequence = torch.ones_like(pattern[:, 0, 0], dtype=torch.bool)
    require_queries(queries=queries, sequence=sequence)
    # Row by row, since a copy of the pattern is as large as all that a scan holds. `where`: NaN times zero is NaN.
    attention = torch.zeros_like(pattern[:, :, 0], dtype=torch.float32)
    for row, is_query in enumerate(queries.unbind(1)):
        attention += torch.where(is_query[:, None, None], pattern[:, :, row], 0)
    attention = attention / queries.sum(-1)[:, None, None]
    attention = torch.where(sequence[:, None], attention, -1)
    n_top = n_top_tokens(sequence.sum(-1))
    last = (n_top - 1)[:, None, None].expand(-1, attention.shape[1], 1)
    threshold = attention.topk(int(n_top.max()), -1).values.gather(-1, last)
    above, ties = attention > threshold, attention == threshold
    n_ties = n_top[:, None, None] - above.sum(-1, keepdim=True)
    return above | ties & (ties.cumsum(-1) <= n_ties)


def n_top_tokens(n_tokens: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """Number of top tokens in sequences of some lengths: five percent, rounded down, and at least one."""
    return (n_tokens // 20).clamp(min=1)


def key_token_ratio(
    pattern: Float[Tensor, "batch head query key"],
    evidence: Bool[Tensor, "batch key"],
    queries: Bool[Tensor, "batch query"],
    sequence: Bool[Tensor, "batch key"] | None = None,
) -> Float[Tensor, "batch head"]:
    r"""Compute the share of the evidence that is among the top tokens of each head.

    $$\frac{|T_\mathrm{top} \cap V^*|}{|V^*|}$$

    Args:
        pattern: Attention probabilities after softmax.
        evidence: Mask of the evidence among the keys.
        queries: Mask of the rows that are question tokens. Other rows may hold anything, even NaN.
        sequence: Mask of the keys that belong to the sample's sequence, so not padding; all by default.

    Returns:
        Values in [0, 1], where the paper prints percent; about 0.05 by chance. Evidence of more than five percent of
        the sequence cannot be held by so few tokens: the highest possible value is then below one.

    Raises:
        ValueError: If a sample has no evidence or no query token, or its evidence leaves the sequence.

    Source:
        Sun et al. 2026 (arXiv 2606.05843), appendix E.3, equation 23.

    Examples:
        >>> pattern = torch.tensor([[[[0.2, 0.5, 0.3]]]])
        >>> key_token_ratio(pattern, torch.tensor([[False, True, True]]), torch.tensor([[True]]))
        tensor([[0.5000]])
    """
    return _share_of_evidence(_evidence_in_top(pattern, evidence, queries, sequence), evidence)


def key_token_coverage(
    pattern: Float[Tensor, "batch head query key"],
    evidence: Bool[Tensor, "batch key"],
    queries: Bool[Tensor, "batch query"],
    sequence: Bool[Tensor, "batch key"] | None = None,
) -> Float[Tensor, "batch"]:
    r"""Compute the share of the evidence that is among the top tokens of at least one head of a set.

    $$\frac{\left|\bigcup_{h \in G} (T_\mathrm{top}^{(h)} \cap V^*)\right|}{|V^*|}$$

    Args:
        pattern: Attention probabilities of the heads of the set, of any layers.
        evidence: Mask of the evidence among the keys.
        queries: Mask of the rows that are question tokens. Other rows may hold anything, even NaN.
        sequence: Mask of the keys that belong to the sample's sequence, so not padding; all by default.

    Returns:
        Values in [0, 1], where the paper prints percent; see `chance_coverage` for their level by chance.

    Raises:
        ValueError: If a sample has no evidence or no query token, or its evidence leaves the sequence.

    Source:
        Sun et al. 2026 (arXiv 2606.05843), appendix E.4, equations 24 and 25.
    """
    captured = _evidence_in_top(pattern, evidence, queries, sequence)
    return _share_of_evidence(captured.any(1, keepdim=True), evidence)[:, 0]


def hit_rate(
    ratios: Float[Tensor, "*groups sample_or_head"], threshold: float | int = HIT_THRESHOLD
) -> Float[Tensor, "*groups"]:
    """Compute the share of key token ratios that reach a threshold; NaN is left out.

    Args:
        ratios: As returned by `key_token_ratio`; the last axis is averaged over.
        threshold: Ratio in (0, 1] from which on a head hits the evidence.

    Source:
        Sun et al. 2026 (arXiv 2606.05843), appendix E.3, which gives 50 percent as an example.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold={threshold} is outside (0, 1]; 0.5 means half of the evidence.")
    return torch.where(ratios.isnan(), torch.nan, (ratios >= threshold).to(ratios)).nanmean(-1)


def chance_coverage(n_heads: Int[Tensor, "size"], n_tokens: Int[Tensor, "sample"]) -> Float[Tensor, "sample size"]:
    r"""Compute the mean coverage of heads whose top tokens are drawn at random from the sequence.

    $$1 - \left(1 - \frac{|T_\mathrm{top}|}{L}\right)^{|G|}$$

    Args:
        n_heads: Sizes of the set of heads, |G|.
        n_tokens: Lengths of the sequences, L.

    Source:
        corelens's own: the paper shows no level of chance.
    """
    share = n_top_tokens(n_tokens) / n_tokens
    return 1 - (1 - share[:, None]) ** n_heads


def chance_hit_rate(
    n_tokens: Int[Tensor, "sample"], n_evidence: Int[Tensor, "sample"], threshold: float | int = HIT_THRESHOLD
) -> Float[Tensor, "sample"]:
    """Compute the probability that top tokens drawn at random from the sequence hit the evidence.

    Args:
        n_tokens: Lengths of the sequences.
        n_evidence: Numbers of tokens of the evidence.
        threshold: As for `hit_rate`.

    Source:
        corelens's own: the hypergeometric distribution.
    """
    tokens, evidence, top = (counts.cpu().numpy() for counts in (n_tokens, n_evidence, n_top_tokens(n_tokens)))
    needed = np.ceil(np.round(threshold * evidence, 9))  # 0.6 * 5 is a little above 3 in floating point
    return torch.from_numpy(np.asarray(hypergeom.sf(needed - 1, tokens, evidence, top))).float()


def _evidence_in_top(
    pattern: Float[Tensor, "batch head query key"],
    evidence: Bool[Tensor, "batch key"],
    queries: Bool[Tensor, "batch query"],
    sequence: Bool[Tensor, "batch key"] | None,
) -> Bool[Tensor, "batch head key"]:
    require_queries(evidence=evidence)
    if sequence is not None and (outside := (evidence & ~sequence).any(-1)).any():
        raise ValueError(f"`evidence` leaves `sequence` in sample(s) {outside.nonzero().flatten().tolist()}.")
    return top_tokens(pattern, queries, sequence) & evidence[:, None]


def _share_of_evidence(
    captured: Bool[Tensor, "batch head key"], evidence: Bool[Tensor, "batch key"]
) -> Float[Tensor, "batch head"]:
    n_captured = reduce(captured.int(), "batch head key -> batch head", "sum")
    return n_captured / evidence.sum(-1, keepdim=True)
