"""Latency of the prefill under the published plan, by the paper's protocol, beside dense attention.

Protocol (appendix G.4): the language model alone, one sequence of random token ids without padding, lengths of 8K to
128K, two passes that do not count and the mean of five; CUDA events on a GPU. Where memory runs out, the error is
logged, the cache emptied, and the next one measured. The kept heads are counts. The paper draws the speed-ups as
figure 7; `--figure` draws these in the same layout.

Chosen here, since the paper does not say: weights are random, as time does not depend on them; the kept heads are drawn
at random, as the plan's time depends on them only through their number in each layer, unless `--scores` has a ranking;
logits are computed of the last position alone; `dense` is Hugging Face's SDPA with its own cache; bfloat16 on GPUs.
On a CPU (float32, one thread) wall-clock time takes the place of events. The default model is small enough for that.
The last line is JSON; only its ratios carry over. No GPU has run this yet.

    python benchmarks/prefill_latency.py --lengths 4096 8192 --counts 3 8
    python benchmarks/prefill_latency.py --model Qwen3-VL-8B --device cuda --lengths 8192 16384 32768 65536 131072
"""

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, LlavaForConditionalGeneration

from corelens.heads import Head, HeadSet
from corelens.hf.versions import CACHE
from corelens.scores import HeadScores
from corelens.sparse import HeadPlan, apply, published, resolve
from corelens.sparse.cost_model import DENSE, Device, dimensions, prefill_seconds

# Layers, width, MLP, heads, KV heads, width of a head, and the counts of table 2.
SIZES: dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]] = {
    "small": ("qwen3", (4, 256, 768, 16, 4, 64), (3, 8)),
    "LLaVA-OneVision-7B": ("qwen2", (28, 3584, 18944, 28, 4, 128), (20, 30, 50, 100, 150)),
    "Qwen3-VL-8B": ("qwen3", (36, 4096, 12288, 32, 8, 128), (20, 30, 50, 100, 150, 250)),
    "Qwen3-VL-32B": ("qwen3", (64, 5120, 25600, 64, 8, 128), (50, 100, 150, 200, 250, 300)),
}
TOWER = dict(
    model_type="clip_vision_model", hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
    image_size=56, patch_size=14, projection_dim=32,
)  # fmt: skip
WARM_UPS = 2


def language_model(name: str, device: torch.device) -> Any:
    """Language model of the named sizes with random weights, beside a tower that reads nothing here."""
    kind, (layers, width, mlp, heads, kv_heads, d_head), _ = SIZES[name]
    text = dict(
        model_type=kind, num_hidden_layers=layers, hidden_size=width, intermediate_size=mlp, num_attention_heads=heads,
        num_key_value_heads=kv_heads, head_dim=d_head, max_position_embeddings=2**18,
        vocab_size=512 if name == "small" else 151936,
    )  # fmt: skip
    config = AutoConfig.for_model("llava", text_config=text, vision_config=TOWER, image_token_index=500)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    with device:
        return LlavaForConditionalGeneration._from_config(config, dtype=dtype, attn_implementation="sdpa").eval()


def kept_heads(model: Any, count: int, scores: HeadScores | None) -> HeadSet:
    """Heads that attend to everything: the first by score, or drawn at random."""
    if scores is not None:
        return scores.top(count)
    text = model.config.get_text_config()
    n_heads = text.num_attention_heads
    drawn = np.random.default_rng(0).choice(text.num_hidden_layers * n_heads, count, replace=False)
    return HeadSet(tuple(Head(*divmod(int(index), n_heads)) for index in drawn), f"{count} random heads")


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of a pass, by events on the GPU itself."""
    if device.type != "cuda":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / 1000


@torch.no_grad()
def latency(model: Any, ids: torch.Tensor, plan: HeadPlan | None, repetitions: int) -> float | None:
    """Mean seconds of the prefill; None where memory ran out."""
    try:
        with nullcontext() if plan is None else apply(model, plan) as active:

            def prefill() -> None:
                cache = None if active is None else active.cache(ids.shape[1])
                model(ids, **{CACHE: cache}, use_cache=True, logits_to_keep=1)

            times = [seconds(prefill, ids.device) for _ in range(WARM_UPS + repetitions)]
        return mean(times[WARM_UPS:])
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        print(f"{ids.shape[1]:>7,} positions, {'dense' if plan is None else plan.name}: {error}", file=sys.stderr)
    # Out of the handler, so that the error no longer holds the pass's tensors.
    gc.collect()
    if ids.device.type == "cuda":
        torch.cuda.empty_cache()
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SIZES, default="small")
    parser.add_argument("--lengths", type=int, nargs="+", default=[8192, 16384, 32768, 65536, 131072])
    parser.add_argument("--counts", type=int, nargs="+", help="kept heads; the paper's by default")
    parser.add_argument("--scores", type=Path, help="a .safetensors of a scan, which ranks the heads")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--figure", type=Path, help="an HTML file for figure 7")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    model = language_model(arguments.model, device)
    scores = arguments.scores and HeadScores.load(arguments.scores)
    counts = arguments.counts or SIZES[arguments.model][2]
    plans = {count: published(kept_heads(model, count, scores)) for count in counts}
    sizes, equal_rates = dimensions(model.config.get_text_config()), Device(1.0, 1.0, 1.0)
    results: dict[str, Any] = {}
    for n in arguments.lengths:
        ids = torch.randint(1, 500, (1, n), device=device)
        dense = latency(model, ids, None, arguments.repetitions)
        results[str(n)] = {"dense, seconds": dense, "kept heads": {}}
        for count, plan in plans.items():
            sparse, resolved = latency(model, ids, plan, arguments.repetitions), resolve(plan, model)
            limit = prefill_seconds(sizes, DENSE, n, equal_rates) / prefill_seconds(
                sizes, resolved.shares, n, equal_rates
            )
            results[str(n)]["kept heads"][str(count)] = {
                "speed-up": dense / sparse if dense and sparse else None,
                "limit of arithmetic": limit,
                "seconds": sparse,
                "full attention": resolved.is_full(n),
            }
            gain = f"{dense / sparse:.2f}x" if dense and sparse else "not measured"
            print(f"{n:>7,} positions, {count} heads ({resolved.share_of_full_heads:.1%}): {gain}, limit {limit:.2f}x")
    if arguments.figure:
        from corelens.viz import speed_by_length

        measured = {
            f"{count} heads": {
                n: gain for n in arguments.lengths if (gain := results[str(n)]["kept heads"][str(count)]["speed-up"])
            }
            for count in counts
        }
        speed_by_length(measured).write_html(arguments.figure)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
