"""Attention patterns drawn by hypothesis, with masks of what they attend to."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class AttentionExample:
    """A causal pattern and masks of its keys and rows; every mask marks something in every sample."""

    pattern: Float[Tensor, "batch head query key"]
    evidence: Bool[Tensor, "batch key"]
    """Mask within `image`."""

    image: Bool[Tensor, "batch key"]
    queries: Bool[Tensor, "batch query"]


@st.composite
def attention_examples(draw: Callable[..., Any]) -> AttentionExample:
    """Strategy for examples of one to three samples and heads, and three to eight positions."""
    batch, n_heads, n = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(3, 8))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    logits = torch.randn(batch, n_heads, n, n, generator=generator) * draw(st.sampled_from([0.1, 1.0, 20.0]))
    pattern = logits.masked_fill(~torch.ones(n, n, dtype=torch.bool).tril(), -torch.inf).softmax(-1)
    image = torch.rand(batch, n, generator=generator) < 0.6
    image[:, 0] = True
    evidence = image & (torch.rand(batch, n, generator=generator) < 0.5)
    evidence[:, 0] = True
    queries = torch.rand(batch, n, generator=generator) < 0.5
    queries[:, -1] = True
    return AttentionExample(pattern, evidence, image, queries)
