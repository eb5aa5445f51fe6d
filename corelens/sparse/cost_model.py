r"""Cost model of head-sparse inference: arithmetic in prefill, bytes in decoding, and the length from which it pays.

With $S$ positions, sinks and window together $c$, and the share $f$ of query heads (and $f_{kv}$ of kv heads) full:

$$ N_{full} = \frac{S(S+1)}{2} \qquad N_{loc} = \frac{c(c+1)}{2} + (S - c)c \; (S > c) \qquad
\rho = f + (1-f) \frac{N_{loc}}{N_{full}} \qquad \varphi = f_{kv} + (1-f_{kv}) \min(1, c/S) $$

$\rho$ is the share of dense attention's arithmetic in prefill and $\varphi$ that of its keys and values in decoding, so
that $1/\rho$ and $1/\varphi$ limit the speedup of attention alone. Layers are taken to be all of one kind.
"""

import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModel, PreTrainedConfig


@dataclass(frozen=True)
class Dimensions:
    """Sizes of a model that determine its cost."""

    layers: int
    heads: int
    kv_heads: int
    d_head: int
    linear_parameters: int
    """Weights of the decoder layers' matrices, applied at every position."""

    output_parameters: int
    """Weights of the unembedding, applied only at positions whose logits are requested."""

    value_bytes: int = 2
    """Bytes of one weight, key or value."""

    vision_flops: float = 0.0
    """Arithmetic of the vision tower for one visual token."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that decoding reads for every token, whatever the length."""
        return (self.linear_parameters + self.output_parameters) * self.value_bytes

    @property
    def position_bytes(self) -> int:
        """Bytes of keys and values of one position of a dense cache."""
        return 2 * self.layers * self.kv_heads * self.d_head * self.value_bytes

    def attention_flops(self, n: int) -> int:
        """FLOPs of dense causal attention over n positions: 4 d_head a pair of query and key, per head and layer."""
        return 4 * self.d_head * self.heads * self.layers * pairs_full(n)


@dataclass(frozen=True)
class Shares:
    """Properties of a plan that determine its cost."""

    full_heads: float
    """Share of query heads that are full, in [0, 1]."""

    full_kv_heads: float
    """Share of kv heads that are stored for all positions, in [0, 1]."""

    sink: int
    window: int

    def __post_init__(self) -> None:
        for name in ("full_heads", "full_kv_heads"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} is outside [0, 1].")
        if self.sink < 0 or self.window < 1:
            raise ValueError(f"sink={self.sink}, window={self.window}: they are at least 0 and 1.")

    def prefill_share(self, n: int) -> float:
        """Share of dense attention's arithmetic that n positions need."""
        local = pairs_streaming(n, self.sink + self.window) / pairs_full(n)
        return self.full_heads + (1 - self.full_heads) * local

    def decode_share(self, n: int) -> float:
        """Share of a dense cache that is stored, and read for the next token, after n positions."""
        return self.full_kv_heads + (1 - self.full_kv_heads) * min(1, (self.sink + self.window) / n)


DENSE = Shares(full_heads=1.0, full_kv_heads=1.0, sink=0, window=1)


@dataclass(frozen=True)
class Device:
    """Rates at which a device computes and reads."""

    matmul_flops_s: float
    attention_flops_s: float
    bytes_s: float


DEVICES = {
    "A100 80GB": Device(312e12, 312e12, 2.039e12),
    "H100": Device(989e12, 989e12, 3.35e12),
    "H200": Device(989e12, 989e12, 4.8e12),
}
"""Assumed: the maker's peaks for dense bfloat16 and memory (SXM), for attention too. Real runs reach a part of them, so
that seconds are lower bounds. Ratios hold if all parts fall short alike."""


def pairs_full(n: int) -> int:
    """Number of pairs of query and key in causal attention over n positions."""
    return n * (n + 1) // 2


def pairs_streaming(n: int, n_keys: int) -> int:
    """Number of pairs of query and key over n positions where each query attends to at most `n_keys` keys."""
    n_keys = min(n, n_keys)
    return n_keys * (n_keys + 1) // 2 + (n - n_keys) * n_keys


def dimensions(
    config: PreTrainedConfig,
    *,
    value_bytes: int = 2,
    patches_per_token: int | None = None,
    patches_per_picture: int = 4096,
) -> Dimensions:
    """Compute the sizes of a model from its configuration alone.

    The vision tower's layers are counted: four matrices of attention and two of the MLP for every patch, and attention
    among the patches of a picture. The embedding and the merging of patches are small beside them and left out.

    Args:
        config: Hugging Face configuration of a multimodal model or a decoder.
        value_bytes: Bytes of one weight, key or value; 2 in half precision.
        patches_per_token: Number of patches that become one visual token; None to take `spatial_merge_size` squared.
        patches_per_picture: Number of patches that attend to each other.

    Raises:
        ValueError: If the decoder has experts, of which a token passes only some, or the number of patches per token is
            not known.
    """
    text, vision = config.get_text_config(), getattr(config, "vision_config", None)
    with torch.device("meta"):
        decoder: Any = AutoModel.from_config(text)
    if any(parameter.ndim > 2 for parameter in decoder.parameters()):
        raise ValueError(f"{text.model_type} has experts: give `Dimensions` with the parameters that a token passes.")
    linear = sum(module.weight.numel() for module in decoder.modules() if isinstance(module, nn.Linear))
    merge = getattr(vision, "spatial_merge_size", None)
    if vision is not None and patches_per_token is None:
        if merge is None:
            raise ValueError(
                f"{config.model_type} does not state how many patches a token has: give `patches_per_token`."
            )
        patches_per_token = merge**2
    return Dimensions(
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
        d_head=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        linear_parameters=linear,
        output_parameters=text.vocab_size * text.hidden_size,
        value_bytes=value_bytes,
        vision_flops=0.0 if vision is None else _patch_flops(vision, patches_per_picture) * (patches_per_token or 1),
    )


def _patch_flops(vision: Any, patches_per_picture: int) -> float:
    width, layers = vision.hidden_size, vision.num_hidden_layers
    linear = 4 * width**2 + 2 * width * vision.intermediate_size
    return layers * (2.0 * linear + 4 * width * patches_per_picture)


def prefill_seconds(
    model: Dimensions, shares: Shares, n: int, device: Device, *, visual: float = 0.0, efficiency: float = 1.0
) -> float:
    r"""Seconds of prefill: $2PS$ and the vision tower as matrix products, and $\rho A$ as attention.

    Args:
        model: Sizes of the model.
        shares: Properties of the plan, or `DENSE`.
        n: Number of positions of the prompt.
        device: Rates of the device.
        visual: Share of the positions that are visual tokens.
        efficiency: Share of the limit that sparse attention reaches; 1 for dense attention.
    """
    linear = n * (2 * model.linear_parameters + visual * model.vision_flops)
    attention = model.attention_flops(n) * shares.prefill_share(n) / efficiency
    return linear / device.matmul_flops_s + attention / device.attention_flops_s


def decode_seconds(
    model: Dimensions, shares: Shares, n: int, device: Device, *, batch: int = 1, efficiency: float = 1.0
) -> float:
    r"""Seconds of the next token of each of a batch of sequences: $W + bK\varphi$ bytes.

    Args:
        model: Sizes of the model.
        shares: Properties of the plan, or `DENSE`.
        n: Number of positions so far.
        device: Rates of the device.
        batch: Number of sequences.
        efficiency: Share of the limit that sparse attention reaches; 1 for dense attention.
    """
    cache = cache_bytes(model, shares, n) / efficiency
    return (model.weight_bytes + batch * cache) / device.bytes_s


def cache_bytes(model: Dimensions, shares: Shares, n: int) -> float:
    """Bytes of keys and values of one sequence of n positions."""
    return model.position_bytes * n * shares.decode_share(n)


def pays_from(
    model: Dimensions,
    shares: Shares,
    device: Device,
    *,
    new_tokens: int = 256,
    efficiency: float = 0.8,
) -> int | None:
    """Length of the shortest prompt for which prefill and decoding are faster than dense; None if there is none.

    The vision tower costs the same either way. The time to launch kernels is not counted.

    Args:
        model: Sizes of the model.
        shares: Properties of the plan.
        device: Rates of the device.
        new_tokens: Number of generated tokens.
        efficiency: Share of the limits that sparse attention reaches; `benchmarks/sparse_kernels.py` measures it.
    """

    def seconds(shares: Shares, n: int, efficiency: float) -> float:
        # Where the cache is whole, decoding is dense attention.
        decode_efficiency = efficiency if shares.full_kv_heads < 1 else 1.0
        token = decode_seconds(model, shares, n, device, efficiency=decode_efficiency)
        return prefill_seconds(model, shares, n, device, efficiency=efficiency) + new_tokens * token

    # Nothing is saved up to `sink + window`; from there on the saving is convex in n, and becomes positive only once.
    longest = 2**30
    n = bisect_left(range(longest), True, lo=1, key=lambda n: seconds(shares, n, efficiency) < seconds(DENSE, n, 1.0))
    return n if n < longest else None


@lru_cache
def rates(dtype: torch.dtype = torch.float32, device: str = "cpu") -> Device:
    """Measure the rates of a device by a matrix product, causal attention and a copy, the fastest of five each."""
    square = torch.randn(1024, 1024, device=device, dtype=dtype)
    heads = torch.randn(1, 8, 2048, 128, device=device, dtype=dtype)
    memory = torch.empty(2**26, dtype=torch.uint8, device=device)

    def seconds(run: Callable[[], Any]) -> float:
        times = []
        for _ in range(6):
            start = time.perf_counter()
            run()
            if device != "cpu":
                torch.accelerator.synchronize()
            times.append(time.perf_counter() - start)
        return min(times[1:])

    return Device(
        matmul_flops_s=2 * 1024**3 / seconds(lambda: square @ square),
        attention_flops_s=4 * 128 * 8 * pairs_full(2048)
        / seconds(lambda: scaled_dot_product_attention(heads, heads, heads, is_causal=True)),
        bytes_s=2 * memory.numel() / seconds(memory.clone),
    )  # fmt: skip
