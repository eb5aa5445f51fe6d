"""The size of a cache, from shapes, before the pass that fills it.

| hook point             | numbers                                         | bytes each    |
|------------------------|-------------------------------------------------|---------------|
| the residual stream's  | batch x position x d_model                      | the model's   |
| q k v z o_in           | batch x position x head (or kv_head) x d_head   | the model's   |
| attn_scores, pattern   | batch x head x row x key                        | 4             |
| an MLP's               | batch x position x d_mlp (or expert)            | the model's   |
"""

import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from corelens.errors import docs_link
from corelens.hf.layers import AttentionModule
from corelens.hooks.experts import HookedExperts
from corelens.hooks.points import HookedAttention
from corelens.hooks.sublayers import HookedMLP, HookedNorm

ROWS = ("hook_attn_scores", "hook_pattern")


class CacheShape(NamedTuple):
    """Axes of the activations of a pass."""

    n_samples: int
    n_positions: int
    n_rows: int
    """Number of rows that patterns have."""

    d_model: int
    dtype: torch.dtype


def activation_sizes(model: nn.Module, names: Iterable[str], shape: CacheShape) -> dict[str, int]:
    """Bytes of the activations at some hook points, by name.

    Those of vision towers and of keys in an encoder are left out: their axes are known only when they run.
    """
    sizes: dict[str, int] = {}
    modules = dict(model.named_modules())
    for name in names:
        owner, _, point = name.rpartition(".")
        module = modules[owner]
        encoder = isinstance(module, HookedAttention) and module.hf_attention.is_cross_attention
        if name.startswith("vision.") or (encoder and point in (*ROWS, "hook_k", "hook_v")):
            continue
        numbers = _numbers_per_sample(module, point, shape)
        in_float32 = point in (*ROWS, "hook_scale")
        sizes[name] = shape.n_samples * numbers * (torch.float32 if in_float32 else shape.dtype).itemsize
    return sizes


def _numbers_per_sample(module: nn.Module, point: str, shape: CacheShape) -> int:
    match module:
        case HookedAttention(hf_attention=attention) if point in ROWS:
            return attention.n_heads * shape.n_rows * shape.n_positions
        case HookedAttention(hf_attention=attention):
            return shape.n_positions * _attention_width(attention, point.removeprefix("hook_"))
        case HookedMLP(hf_mlp=mlp):
            return shape.n_positions * mlp.d_mlp
        case HookedExperts():
            return shape.n_positions * module.n_experts
        case HookedNorm():
            return shape.n_positions
    return shape.n_positions * shape.d_model


def _attention_width(attention: AttentionModule, point: str) -> int:
    n_heads = attention.n_kv_heads if point in ("k", "v") else attention.n_heads
    rows = next((rows for part, rows in attention.head_rows.items() if part == point), None)
    d_head = attention.d_head if rows is None else rows.n_rows // (rows.n_heads * rows.n_parts)
    return n_heads * d_head


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device, as its driver or Linux says; None if nothing says so."""
    if device.type != "cpu":
        known = torch.accelerator.is_available() and device.type == str(torch.accelerator.current_accelerator())
        try:
            return torch.accelerator.get_memory_info(device)[0] if known else None
        except RuntimeError:  # not every device has an allocator that counts
            return None
    path = Path("/proc/meminfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def warn_if_large(sizes: dict[str, int], device: torch.device) -> None:
    """Warn, before a pass, of a cache that takes more than half of the free memory, and say which filter would do.

    Args:
        sizes: Bytes of each activation, by name.
        device: Device of the cache.
    """
    free, total = free_memory(device), sum(sizes.values())
    if free is None or 2 * total <= free:
        return
    warnings.warn(
        f"the cache of this pass takes at least {_gb(total)}, and {_gb(free)} are free on {device}: "
        f"{_smaller(sizes, free // 2)}. {docs_link('large-cache')}",
        stacklevel=4,  # the caller of run_with_cache
    )


def _smaller(sizes: dict[str, int], limit: int) -> str:
    """A filter that leaves out the largest kinds of activations until the others fit, and their size."""
    by_kind: Counter[str] = Counter()
    for name, size in sizes.items():
        by_kind[name.rpartition(".")[2]] += size
    left_out: tuple[str, ...] = ()
    for kind, _ in by_kind.most_common():
        left_out += (kind,)
        left = [size for name, size in sizes.items() if name.startswith("blocks.") and not name.endswith(left_out)]
        if left and sum(left) <= limit:
            # Without that prefix it would select those of the vision tower too.
            return (
                f'names_filter=lambda name: name.startswith("blocks.") and not name.endswith({left_out}) takes '
                f"{_gb(sum(left))} of it"
            )
    largest = max(sizes, key=sizes.__getitem__)
    return f"names_filter={largest!r}, of one layer, takes {_gb(sizes[largest])}"


def _gb(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.3g} GB"
