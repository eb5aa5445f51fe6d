"""What heads write from where they look: attention says where a head looks, not whether anything comes of it."""

import torch
from einops import einsum, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor


def output_norms(
    values: Float[Tensor, "batch key kv_head d_head"], W_O: Float[Tensor, "head d_head d_model"]
) -> Float[Tensor, "batch head 1 key"]:
    r"""Length of what each head would add to the residual stream if it attended to one key alone.

    $$s_{h,k} = \lVert W_O^h v_{h,k} \rVert$$

    Times attention it is the size of what a head takes from each key: write-weighted retrieval attention mass is
    `head_score(pattern * output_norms(values, W_O), evidence, queries)`. A head whose W_O is zero looks, and scores
    zero.

    Args:
        values: What `hook_v` shows.
        W_O: What turns each head's output into what it writes. An output gate, which some models have before it, is
            taken as open.

    Source:
        After Kobayashi et al. 2020 (arXiv 2004.10102), who weight attention by the length of transformed values; its
        use for retrieval heads is corelens's own.
    """
    # |v W|^2 = v (W W^T) v^T: nothing of the model's width is made for every key.
    gram = einsum(W_O.float(), W_O.float(), "head i d_model, head j d_model -> head i j")
    values = _of_query_heads(values, len(W_O))
    squares = einsum(values, gram, values, "batch key head i, head i j, batch key head j -> batch head key")
    return squares.clamp(min=0).sqrt()[:, :, None]


def logit_contributions(
    values: Float[Tensor, "batch key kv_head d_head"],
    W_O: Float[Tensor, "head d_head d_model"],
    direction: Float[Tensor, "batch query d_model"],
) -> Float[Tensor, "batch head query key"]:
    r"""How far each head would move the residual stream in a direction if it attended to one key alone.

    $$s_{h,q,k} = u_q \cdot W_O^h v_{h,k}$$

    Times attention, with the unembedding of the answer's token as the direction, it is the head's direct contribution
    to that token's logit from each key, before the final norm.

    Args:
        values: What `hook_v` shows.
        W_O: What turns each head's output into what it writes.
        direction: For every query token, e.g. the unembedding of the token that is said there.

    Source:
        LOCOS (arXiv 2607.01002).
    """
    towards = einsum(
        W_O.float(), direction.float(), "head d_head d_model, batch query d_model -> batch head query d_head"
    )
    values = _of_query_heads(values, len(W_O))
    return einsum(towards, values, "batch head query d_head, batch key head d_head -> batch head query key")


def retrieval_score(
    pattern: Float[Tensor, "batch head query key"],
    evidence: Bool[Tensor, "batch key"],
    queries: Bool[Tensor, "batch query"],
    keys: Int[Tensor, "batch key"],
    said: Int[Tensor, "batch query"],
) -> Float[Tensor, "batch head"]:
    """Share of the evidence's tokens that each head copies: it attends most to one while the model says that very one.

    Args:
        pattern: Attention probabilities after softmax.
        evidence: Where the evidence is among the keys; text, since visual tokens have no word to copy.
        queries: Which rows are the positions that say the answer.
        keys: The token id at every key.
        said: The token id that is said at every query.

    Returns:
        Values in [0, 1].

    Source:
        Wu et al. 2024, "Retrieval Head" (arXiv 2404.15574). Theirs counts only answers whose ROUGE-1 recall is above
        50 percent; choose the samples to do the same.
    """
    index = pattern.nan_to_num().argmax(-1)
    batch = torch.arange(len(pattern), device=pattern.device)[:, None, None]
    copied = evidence[batch, index] & (keys[batch, index] == said[:, None]) & queries[:, None]
    # A set of tokens: one that is copied twice counts once.
    found = torch.zeros(*pattern.shape[:2], pattern.shape[-1] + 1, dtype=torch.bool, device=pattern.device)
    found.scatter_(-1, torch.where(copied, index, pattern.shape[-1]), True)
    return found[..., :-1].sum(-1) / evidence.sum(-1, keepdim=True)


def _of_query_heads(
    values: Float[Tensor, "batch key kv_head d_head"], n_heads: int
) -> Float[Tensor, "batch key head d_head"]:
    """Every query head's own values: neighbours share a key-value head."""
    group = n_heads // values.shape[2]
    return repeat(values.float(), "batch key kv_head d_head -> batch key (kv_head group) d_head", group=group)
