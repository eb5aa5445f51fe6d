"""Contributions of keys to a head's output: attention alone does not tell whether a key changes the residual stream."""

import torch
from einops import einsum, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor


def output_norms(
    values: Float[Tensor, "batch key kv_head d_head"], W_O: Float[Tensor, "head d_head d_model"]
) -> Float[Tensor, "batch head 1 key"]:
    r"""Norm of the vector that each head would add to the residual stream if it attended to one key only.

    $$s_{h,k} = \lVert W_O^h v_{h,k} \rVert$$

    Times attention, it is the size of each key's contribution to the head's output: write-weighted retrieval attention
    mass is `head_score(pattern * output_norms(values, W_O), evidence, queries)`. A head whose W_O is zero scores zero,
    wherever it attends.

    Args:
        values: Values of `hook_v`.
        W_O: Output projection of each head. An output gate, which some models have before it, is taken as open.

    Source:
        After Kobayashi et al. 2020 (arXiv 2004.10102), who weight attention by the norm of transformed values; its
        use for retrieval heads is corelens's own.
    """
    return _norms(_repeat_kv(values, len(W_O)), W_O)[:, :, None]


def write_norms(
    pattern: Float[Tensor, "batch head query key"],
    values: Float[Tensor, "batch key kv_head d_head"],
    W_O: Float[Tensor, "head d_head d_model"],
) -> Float[Tensor, "batch head query"]:
    r"""Norm of the vector that each head adds to the residual stream at each query, from all keys together.

    $$\Big\lVert W_O^h \sum_k A_{h,q,k} v_{h,k} \Big\rVert$$

    A head that writes nothing cannot do harm when it is ablated: control heads are matched by this number.

    Args:
        pattern: Attention probabilities after softmax.
        values: Values of `hook_v`.
        W_O: Output projection of each head. An output gate, which some models have before it, is taken as open.
    """
    values = _repeat_kv(values, len(W_O))
    outputs = einsum(pattern.float(), values, "batch head query key, batch key head d -> batch query head d")
    return _norms(outputs, W_O)


def _norms(
    vectors: Float[Tensor, "batch position head d_head"], W_O: Float[Tensor, "head d_head d_model"]
) -> Float[Tensor, "batch head position"]:
    """Norms after the output projection: |v W|^2 = v (W W^T) v^T, so that no tensor has positions and d_model."""
    gram = einsum(W_O.float(), W_O.float(), "head i d_model, head j d_model -> head i j")
    squares = einsum(vectors, gram, vectors, "batch pos head i, head i j, batch pos head j -> batch head pos")
    return squares.clamp(min=0).sqrt()


def logit_contributions(
    values: Float[Tensor, "batch key kv_head d_head"],
    W_O: Float[Tensor, "head d_head d_model"],
    direction: Float[Tensor, "batch query d_model"],
) -> Float[Tensor, "batch head query key"]:
    r"""Contribution of each head along a direction of the residual stream if it attended to one key only.

    $$s_{h,q,k} = u_q \cdot W_O^h v_{h,k}$$

    Times attention, with the unembedding of the answer's token as the direction, it is the head's direct contribution
    to that token's logit from each key, before the final norm.

    Args:
        values: Values of `hook_v`.
        W_O: Output projection of each head.
        direction: One vector for every query token, e.g. the unembedding of the token that is predicted there.

    Source:
        LOCOS (arXiv 2607.01002).
    """
    value_directions = einsum(
        W_O.float(), direction.float(), "head d_head d_model, batch query d_model -> batch head query d_head"
    )
    values = _repeat_kv(values, len(W_O))
    return einsum(value_directions, values, "batch head query d_head, batch key head d_head -> batch head query key")


def retrieval_score(
    pattern: Float[Tensor, "batch head query key"],
    evidence: Bool[Tensor, "batch key"],
    queries: Bool[Tensor, "batch query"],
    keys: Int[Tensor, "batch key"],
    said: Int[Tensor, "batch query"],
) -> Float[Tensor, "batch head"]:
    """Share of the evidence's tokens that each head copies: it attends most to a token while the model outputs it.

    Args:
        pattern: Attention probabilities after softmax.
        evidence: Mask of the evidence among the keys; text, since visual tokens have no token id to copy.
        queries: Mask of the rows whose next-token prediction is an answer token.
        keys: The token id at every key.
        said: The token id that is predicted at every query.

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
    copied_keys = torch.zeros(*pattern.shape[:2], pattern.shape[-1] + 1, dtype=torch.bool, device=pattern.device)
    copied_keys.scatter_(-1, torch.where(copied, index, pattern.shape[-1]), True)
    return copied_keys[..., :-1].sum(-1) / evidence.sum(-1, keepdim=True)


def _repeat_kv(
    values: Float[Tensor, "batch key kv_head d_head"], n_heads: int
) -> Float[Tensor, "batch key head d_head"]:
    """Values of every query head: consecutive query heads share a key-value head."""
    group = n_heads // values.shape[2]
    return repeat(values.float(), "batch key kv_head d_head -> batch key (kv_head group) d_head", group=group)
