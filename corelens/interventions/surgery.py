"""Removing heads from the weights."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from corelens.heads import Head
from corelens.interventions.hooks import by_layer
from corelens.model import HookedMLLM


@contextmanager
def removed(model: HookedMLLM, heads: Iterable[Head]) -> Iterator[None]:
    """Zeroes the heads' columns of W_O until the block ends: what `ablate(heads, "zero")` does, without hooks.

    Args:
        model: The model. Passes in the block run its own attention; they need no hooks and no corelens.
        heads: Which heads.

    Raises:
        ValueError: If a head does not exist, or its W_O was not found.
    """
    layers = by_layer(heads)
    model.check_heads(head for chosen in layers.values() for head in chosen)
    # Any: pyright sees no attributes of a layer. W_O is a view of the weights.
    blocks: Any = model.blocks
    slices = [blocks[layer].attn.W_O[head] for layer, chosen in layers.items() for _, head in chosen]
    kept = [part.detach().clone() for part in slices]
    try:
        with torch.no_grad():
            for part in slices:
                part.zero_()
        yield
    finally:
        with torch.no_grad():
            for part, before in zip(slices, kept, strict=True):
                part.copy_(before)
