"""Windows and causal parts by the flash attention of torch, on GPUs in half precision."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from corelens.sparse.kernels.merging import Found


def has_varlen(tensor: Tensor) -> bool:
    """Whether torch has the kernel for tensors like this one."""
    return tensor.is_cuda and tensor.dtype in (torch.bfloat16, torch.float16) and tensor.shape[-1] <= 256


def varlen_attention(
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch kv_head key d_head"],
    value: Float[Tensor, "batch kv_head key d_head"],
    scaling: float,
    window: tuple[int, int] = (-1, 0),
) -> Found:
    """Attention of the last queries of a sequence to the keys around their own.

    Args:
        query: Those of the last positions that `key` holds.
        key: All rows of one length.
        value: Likewise.
        scaling: What scores are multiplied by.
        window: How many keys before its own and behind it a query sees; -1 for all.
    """
    from torch.nn.attention.varlen import AuxRequest, varlen_attn

    batch, n_queries, n_keys = len(query), query.shape[2], key.shape[2]
    begins = torch.arange(batch + 1, device=query.device, dtype=torch.int32)
    queries, keys, values = (rearrange(part, "batch head n d -> (batch n) head d") for part in (query, key, value))
    # The documentation of varlen_attn gives the log-sum-exp as [query head]; its code gives [head query].
    found, lse = varlen_attn(
        queries,
        keys,
        values,
        begins * n_queries,
        begins * n_keys,
        n_queries,
        n_keys,
        return_aux=AuxRequest(lse=True),
        scale=scaling,
        window_size=window,
        enable_gqa=True,
    )
    return (
        rearrange(found, "(batch n) head d_head -> batch head n d_head", batch=batch),
        rearrange(lse, "head (batch n) -> batch head n", batch=batch),
    )
