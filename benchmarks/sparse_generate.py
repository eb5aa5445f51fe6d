"""Speedup of a plan end to end, beside the prediction of the cost model: prefill, then further tokens.

A random LLaVA decoder, text only, so that the vision tower, which costs the same either way, is left out: 4 layers of
16 heads over 8 KV heads, width 1,024, heads of 64 (`--size small`), or the sizes of the decoder of Qwen3-VL-4B or
8B. One of eight groups of heads is full, the others attend to 64 sinks and a window of 256. Batch 1; float32 on CPUs,
bfloat16 on GPUs.

`stock` is Hugging Face's own cache and attention; `dense` a plan whose heads are all full, which is a preallocated
cache and a group's heads packed into rows; `sparse` the plan. The prediction for prefill is the ratio of
`prefill_seconds` at the measured rates of this machine; that for a token the ratio of bytes. Times are processor time
on one core, or of the GPU until it has finished, the fastest of interleaved repetitions. The last line is JSON; only
its ratios carry over. No GPU has run this yet.

    python benchmarks/sparse_generate.py [--repetitions 2] [--lengths 8192]
    python benchmarks/sparse_generate.py --device cuda --size 4B --lengths 8192 32768 131072 --repetitions 5
"""

import argparse
import json
import time
from contextlib import nullcontext
from typing import Any

import torch
from transformers import AutoConfig, DynamicCache, LlavaForConditionalGeneration

from corelens.heads import Head
from corelens.hf.versions import CACHE
from corelens.sparse import Full, HeadPlan, apply, hybrid, resolve
from corelens.sparse.cost_model import DENSE, decode_seconds, dimensions, prefill_seconds, rates

KV_HEADS, TOKENS = 8, 8
SIZES: dict[str, dict[str, int]] = {
    "small": dict(num_hidden_layers=4, hidden_size=1024, intermediate_size=2816, num_attention_heads=16, head_dim=64),
    "4B": dict(num_hidden_layers=36, hidden_size=2560, intermediate_size=9728, num_attention_heads=32, head_dim=128),
    "8B": dict(num_hidden_layers=36, hidden_size=4096, intermediate_size=12288, num_attention_heads=32, head_dim=128),
}
TEXT: dict[str, Any] = dict(
    model_type="llama", vocab_size=512, num_key_value_heads=KV_HEADS, max_position_embeddings=2**18, pad_token_id=0
)
TOWER = dict(
    model_type="clip_vision_model", hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
    image_size=56, patch_size=14, projection_dim=32,
)  # fmt: skip


@torch.no_grad()
def time_generation(model: Any, ids: torch.Tensor, plan: HeadPlan | None) -> tuple[float, float, int]:
    """Measure the seconds of the prompt and of each further token, and the bytes of keys and values."""
    n = ids.shape[1]
    with nullcontext() if plan is None else apply(model, plan, force=True) as active:
        cache = DynamicCache(config=model.config) if active is None else active.cache(n + TOKENS)
        start = synchronized_time(ids.device)
        model(ids, **{CACHE: cache}, use_cache=True, logits_to_keep=1)
        prefilled = synchronized_time(ids.device)
        for _ in range(TOKENS):
            model(ids[:, :1], **{CACHE: cache}, use_cache=True)
        end = synchronized_time(ids.device)
    stock_bytes = (layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    n_bytes = sum(stock_bytes) if active is None else cache.nbytes
    return prefilled - start, (end - prefilled) / TOKENS, n_bytes


def synchronized_time(device: torch.device) -> float:
    if device.type == "cpu":
        return time.process_time()
    torch.accelerator.synchronize()
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--lengths", type=int, nargs="+", default=[8192])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    text, device = TEXT | SIZES[arguments.size], torch.device(arguments.device)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    config = AutoConfig.for_model("llava", text_config=text, vision_config=TOWER, image_token_index=500)
    with device:
        model = LlavaForConditionalGeneration._from_config(config, dtype=dtype).eval()
    layers, group = text["num_hidden_layers"], text["num_attention_heads"] // KV_HEADS
    core = [Head(layer, head) for layer in range(layers) for head in range(group)]
    plan = hybrid(core, sink=64, window=256)
    resolved = resolve(plan, model)
    sizes, measured = dimensions(model.config.get_text_config(), value_bytes=dtype.itemsize), rates(dtype, device.type)
    results: dict[str, Any] = {}
    for n in arguments.lengths:
        ids = torch.randint(1, 400, (1, n), device=device)
        plans = {"stock": None, "dense": HeadPlan({}, Full()), "sparse": plan}
        runs: dict[str, list[tuple[float, float, int]]] = {name: [] for name in plans}
        for _ in range(arguments.repetitions):
            for name, candidate in plans.items():
                runs[name].append(time_generation(model, ids, candidate))
        prefill, token = ({name: min(run[i] for run in times) for name, times in runs.items()} for i in range(2))
        n_bytes = {name: times[0][2] for name, times in runs.items()}
        dense, sparse = ((sizes, shares, n, measured) for shares in (DENSE, resolved.shares))
        gains = {
            "prefill": (prefill, prefill_seconds(*dense) / prefill_seconds(*sparse)),
            "a token": (token, decode_seconds(*dense) / decode_seconds(*sparse)),
        }
        results[str(n)] = {
            step: {
                "gain": seconds["stock"] / seconds["sparse"],
                "over dense": seconds["dense"] / seconds["sparse"],
                "predicted": predicted,
            }
            for step, (seconds, predicted) in gains.items()
        } | {
            "bytes": n_bytes["stock"] / n_bytes["sparse"],
            "as planned": n_bytes["sparse"] == resolved.bytes(n + TOKENS),
        }
        for step in gains:
            line = ", ".join(f"{name} {gain:.2f}x" for name, gain in results[str(n)][step].items())
            print(f"{n:>7,} positions, {step}: {line}")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
