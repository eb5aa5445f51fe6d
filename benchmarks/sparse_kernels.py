"""Speedup of head-sparse attention over dense attention, as a share of the limit set by arithmetic or by bytes.

16 heads of 8 kv heads, the group of one kv head full and the others streaming: 64 sinks and a window. Batch 1.

Prefill: the time of SDPA's causal attention of all heads, divided by that of the two groups with `full_attention` and
`streaming_attention`. The limit is the ratio of the pairs of queries and keys, which are the FLOPs.

Decode: one token. `packed` is the strongest dense baseline, a preallocated cache and a group's heads packed into rows;
`hf` is the default of Hugging Face, DynamicCache and its SDPA function. The sparse cache holds all keys of the
full group and sinks and window of the others, in buffers. The limit is the ratio of the bytes of keys and values. Six
layers take turns, so that their keys and values do not stay in the cache of the processor.

Times are processor time on one core, the fastest of interleaved repetitions. The last line is JSON; only its ratios
carry over to other machines.

    python benchmarks/sparse_kernels.py [--repetitions 5] [--dtype float32]
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from corelens.sparse.cost_model import Shares
from corelens.sparse.kernels import decode_attention, full_attention, streaming_attention

HEADS, KV_HEADS, FULL, SINK, LAYERS = 16, 8, 1, 64, 6
GROUP = HEADS // KV_HEADS


def fastest(functions: dict[str, Callable[[], Any]], repetitions: int) -> dict[str, float]:
    """Measure the seconds of each function, the fastest of interleaved repetitions."""
    seconds: dict[str, float] = {}
    for repetition in range(repetitions + 1):
        for name, run in functions.items():
            start = time.process_time()
            run()
            if repetition:  # the first warms up
                seconds[name] = min(seconds.get(name, float("inf")), time.process_time() - start)
    return seconds


def random_projection(heads: int, n: int, d_head: int, dtype: torch.dtype) -> Tensor:
    """Random [batch head position d_head] in the memory layout of projections, positions first."""
    return torch.randn(1, n, heads, d_head, dtype=dtype).transpose(1, 2)


def prefill(n: int, window: int, d_head: int, dtype: torch.dtype, repetitions: int) -> dict[str, Any]:
    query = random_projection(HEADS, n, d_head, dtype)
    key, value = random_projection(KV_HEADS, n, d_head, dtype), random_projection(KV_HEADS, n, d_head, dtype)
    sink_position = torch.arange(SINK)[None]
    scaling = d_head**-0.5

    def sparse() -> None:
        full_attention(query[:, : FULL * GROUP], key[:, :FULL], value[:, :FULL], scaling=scaling)
        k, v = key[:, FULL:], value[:, FULL:]
        sinks = k[:, :, :SINK], v[:, :, :SINK]
        streaming_attention(query[:, FULL * GROUP :], k, v, *sinks, sink_position, window=window, scaling=scaling)

    def dense() -> None:
        scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)

    seconds = fastest({"dense": dense, "sparse": sparse}, repetitions)
    limit = 1 / shares(window).prefill_share(n)
    gain = seconds["dense"] / seconds["sparse"]
    return {"seconds": seconds, "limit": limit, "gain": gain, "share": gain / limit}


def decode(n: int, window: int, d_head: int, dtype: torch.dtype, repetitions: int) -> dict[str, Any]:
    query = random_projection(HEADS, 1, d_head, dtype)
    scaling = d_head**-0.5

    def caches(kv_heads: int, length: int) -> list[tuple[Tensor, Tensor]]:
        return [tuple(torch.randn(2, 1, kv_heads, length, d_head, dtype=dtype)) for _ in range(LAYERS)]  # pyright: ignore

    dense, full, near = caches(KV_HEADS, n), caches(FULL, n), caches(KV_HEADS - FULL, SINK + window)
    visible, module = torch.ones(1, 1, SINK + window, dtype=torch.bool), nn.Module()
    module.num_key_value_groups, module.is_causal = GROUP, True
    hf = DynamicCache()
    for layer, (key, value) in enumerate(dense):
        hf.update(key[:, :, 1:], value[:, :, 1:], layer)
    new = random_projection(KV_HEADS, 1, d_head, dtype)

    def packed() -> None:
        for key, value in dense:
            decode_attention(query, key, value, None, scaling=scaling)

    def sparse() -> None:
        for (key, value), (near_key, near_value) in zip(full, near, strict=True):
            decode_attention(query[:, : FULL * GROUP], key, value, None, scaling=scaling)
            decode_attention(query[:, FULL * GROUP :], near_key, near_value, visible, scaling=scaling)

    def stock() -> None:
        for layer in range(LAYERS):
            key, value = hf.update(new, new, layer)
            sdpa_attention_forward(module, query, key, value, None, scaling=scaling)
            hf.layers[layer].crop(-1)

    seconds = fastest({"packed": packed, "sparse": sparse, "hf": stock}, repetitions)
    limit = 1 / shares(window).decode_share(n)
    gain, over_hf = (seconds[name] / seconds["sparse"] for name in ("packed", "hf"))
    return {"seconds": seconds, "limit": limit, "gain": gain, "share": gain / limit, "gain over hf": over_hf}


def shares(window: int) -> Shares:
    return Shares(full_heads=FULL / KV_HEADS, full_kv_heads=FULL / KV_HEADS, sink=SINK, window=window)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    dtype = getattr(torch, arguments.dtype)
    results = []
    for step, lengths in ((prefill, (4096, 8192)), (decode, (8192, 32768))):
        for d_head in (128, 64):
            for n in lengths:
                for window in (256, 512):
                    result = step(n, window, d_head, dtype, arguments.repetitions)
                    settings = {"step": step.__name__, "d_head": d_head, "length": n, "window": window}
                    print(
                        f"{step.__name__:>8} d_head {d_head:>3} length {n:>6} window {window}: limit "
                        f"{result['limit']:.2f}, gain {result['gain']:.2f} = {result['share']:.0%} of it"
                        + (f", over hf {result['gain over hf']:.1f}" if step is decode else ""),
                        flush=True,
                    )
                    results.append(settings | result)
    print(json.dumps({"benchmark": "sparse_kernels", "dtype": arguments.dtype, "results": results}))


if __name__ == "__main__":
    main()
