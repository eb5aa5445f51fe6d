"""Retrieval of pages by attention: the mass on each page of a prompt, and whether those with the evidence come first.

A page is a picture, such as one of a document, or a frame of a video.
"""

import torch
from einops import einsum
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
    masses = einsum(pattern, on_page, "batch head query key, batch key page -> batch head query page")
    return torch.stack([mean_over_queries(of_page, queries) for of_page in masses.unbind(-1)], -1)


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
