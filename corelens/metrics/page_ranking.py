"""Retrieval of pages by attention: the mass on each page of a prompt, and whether those with the evidence come first.

A page is a picture, such as one of a document, or a frame of a video.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from corelens.metrics.head_score import mean_over_queries, require_queries


def page_masses(
    pattern: Float[Tensor, "batch head query key"],
    pages: Int[Tensor, "batch key"],
    queries: Bool[Tensor, "batch query"],
) -> Float[Tensor, "batch head page"]:
    """Compute the attention of each head from the query tokens to every page: retrieval attention mass, page by page.

    Args:
        pattern: Attention probabilities after softmax.
        pages: Number of each key's page, from zero; -1 for keys of none.
        queries: Mask of the rows of `pattern` that are query tokens. Other rows may hold anything, even NaN.

    Returns:
        Values in [0, 1]; zero for pages that only other samples of the batch have.

    Raises:
        ValueError: If a sample has no query token.

    Examples:
        >>> pattern = torch.tensor([[[[0.1, 0.2, 0.3, 0.4]]]])
        >>> page_masses(pattern, torch.tensor([[-1, 0, 1, 1]]), torch.tensor([[True]]))
        tensor([[[0.2000, 0.7000]]])
    """
    require_queries(queries=queries)
    on_page = one_hot(pages + 1)[..., 1:].to(pattern)
    masses = einsum(pattern, on_page, "batch head query key, batch key page -> batch head page query")
    of_pages = mean_over_queries(rearrange(masses, "batch head page query -> batch (head page) query"), queries)
    return rearrange(of_pages, "batch (head page) -> batch head page", head=pattern.shape[1])


def recall_at_k(
    scores: Float[Tensor, "sample page"], relevant: Bool[Tensor, "sample page"], k: int
) -> Float[Tensor, "sample"]:
    """Compute the share of each sample's relevant pages that are among the `k` pages with the highest scores.

    Args:
        scores: NaN where a sample has no such page. Of equal scores, the first page's counts as higher.
        relevant: Mask of the pages with the evidence.
        k: Number of pages that are retrieved.

    Raises:
        ValueError: If `k` is less than one, or a sample has no relevant page.

    Examples:
        >>> recall_at_k(torch.tensor([[0.2, 0.7, 0.1]]), torch.tensor([[True, False, True]]), k=2)
        tensor([0.5000])
    """
    if k < 1:
        raise ValueError(f"k={k} is less than one: no page would be retrieved.")
    require_queries(relevant=relevant)
    order = scores.nan_to_num(-torch.inf).argsort(dim=-1, descending=True, stable=True)
    found = relevant.gather(-1, order)[:, :k].sum(-1)
    return found / relevant.sum(-1)


class RankedPage(NamedTuple):
    """A page with its score."""

    page: int
    score: float


@dataclass(frozen=True, eq=False)
class PageRanking:
    """Scores of the pages of every sample, by head sets."""

    samples: tuple[str, ...]

    scores: dict[str, Float[Tensor, "sample page"]]
    """By head set: the relevance curve of every sample; NaN where it has no such page."""

    evidence: Bool[Tensor, "sample page"]
    """Mask of the pages with the evidence; empty for a sample that names none."""

    groups: tuple[str, ...]
    """Group of each sample, such as its document."""

    def ranked(self, heads: str, sample: int = 0) -> list[RankedPage]:
        """Pages of a sample by a head set, the most relevant first."""
        scores = self.scores[heads][sample]
        order = scores[~scores.isnan()].argsort(descending=True, stable=True)
        return [RankedPage(page, float(scores[page])) for page in order.tolist()]

    def recall(self, heads: str, k: int) -> Float[Tensor, "sample"]:
        """Share of the pages with the evidence that are among the first `k` by a head set.

        Raises:
            ValueError: If `k` is less than one, or a sample has no evidence.
        """
        return recall_at_k(self.scores[heads], self.evidence, k)

    def chance(self, k: int) -> Float[Tensor, "sample"]:
        """Expected recall of pages in random order."""
        n_pages = (~next(iter(self.scores.values())).isnan()).sum(-1)
        return (k / n_pages).clamp(max=1)
