"""What Hugging Face's mask of a pass says, and attention under it."""

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.masking_utils import causal_mask_function, sdpa_mask

from corelens.sparse.kernels import block_attention, full_attention, streaming_attention
from corelens.sparse.keys import KeysValues


def head_sparse_mask(**kwargs: Any) -> Int[Tensor, "batch 1 1 1"] | Bool[Tensor, "batch 1 query key"] | None:
    """What layers are told: where each left-padded sample starts, or a whole mask if more than padding is masked.

    In four dimensions in either case: Hugging Face leaves masks alone that have four.

    Raises:
        ValueError: If padding stands on the right or between tokens.
    """
    if kwargs["mask_function"] is not causal_mask_function or kwargs.get("use_vmap"):
        return sdpa_mask(**kwargs)
    real: Tensor | None = kwargs.get("attention_mask")
    if real is None:
        return None
    # Graphs cannot look at numbers, and the prompt has been looked at.
    if not torch.compiler.is_compiling():
        if real.all():
            return None
        if (real[:, :-1] & ~real[:, 1:]).any():
            raise ValueError(
                "head-sparse attention needs padding on the left, and this attention mask has some elsewhere."
            )
    return rearrange(real.logical_not().sum(-1), "batch -> batch 1 1 1")


class Causal:
    """Attention to all that came before, padding left out: by kernels that skip what is not seen."""

    def __init__(self, start: Int[Tensor, "batch 1 1 1"] | None, scaling: float) -> None:
        self.start = None if start is None else start.flatten()
        self.scaling = scaling

    def full(self, query: Tensor, keys: KeysValues) -> Tensor:
        return full_attention(query, *keys, scaling=self.scaling, start=self.start)

    def streaming(
        self, query: Tensor, keys: KeysValues, kept: KeysValues, kept_position: Tensor, window: int, first: int
    ) -> Tensor:
        return streaming_attention(
            query, *keys, *kept, kept_position, window=window, scaling=self.scaling, first=first, start=self.start
        )

    def blocks(self, query: Tensor, keys: KeysValues, top_p: float) -> Tensor:
        if query.shape[2] < keys.n:
            # The estimate is made for whole prompts.
            return self.full(query, keys)
        return block_attention(query, *keys, top_p, scaling=self.scaling, start=self.start)


class Masked:
    """Attention under a mask of the model's own, such as pictures that are seen whole; exact, and not faster."""

    def __init__(self, mask: Bool[Tensor, "batch 1 query key"], scaling: float) -> None:
        self.mask, self.scaling = mask, scaling
        newest = mask[:, 0, -1]
        # A sample of which nothing is seen has not begun.
        self.start = torch.where(newest.any(-1), newest.int().argmax(-1), newest.shape[-1])

    def full(self, query: Tensor, keys: KeysValues) -> Tensor:
        return self._attention(query, keys, self.mask)

    def streaming(
        self, query: Tensor, keys: KeysValues, kept: KeysValues, kept_position: Tensor, window: int, first: int
    ) -> Tensor:
        batch, _, n, _ = query.shape
        position = torch.arange(first, first + keys.n, device=query.device)
        reach = position[-n:, None] - window
        near = (position > reach).expand(batch, -1, -1)
        far = (kept_position >= 0)[:, None] & (kept_position[:, None] <= reach)
        place = torch.cat([kept_position.clamp(min=0), position.expand(batch, -1)], 1)
        seen = self.mask.gather(-1, place[:, None, None].expand(-1, 1, n, -1))
        return self._attention(query, kept.then(keys), seen & torch.cat([far, near], -1)[:, None])

    def blocks(self, query: Tensor, keys: KeysValues, top_p: float) -> Tensor:
        return self.full(query, keys)

    def _attention(self, query: Tensor, keys: KeysValues, seen: Bool[Tensor, "batch 1 query key"]) -> Tensor:
        grouped = query.shape[1] != keys.key.shape[1]
        return scaled_dot_product_attention(query, *keys, seen, scale=self.scaling, enable_gqa=grouped)
