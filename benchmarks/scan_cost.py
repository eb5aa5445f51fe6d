"""What a scan costs beside the plain forward pass, in time and in memory.

Three measures of every head (retrieval attention mass, the same weighted by what heads write, and entropy) from 16
query tokens are scanned on a random LLaVA decoder (8 layers, 16 heads of 64, 8 key-value heads, d_model 1024, MLP 2816,
float32, batch 1), and compared with the same model's plain fused pass, with eager attention that returns its patterns,
and with TransformerLens's run_with_cache of the patterns. Plain and scan both skip the logits and the cache, so that
the difference is the looking alone. Lengths are tokens of the decoder; the vision tower is not part of any mode.

Times are medians over interleaved repetitions in one process; peaks are resident memory above the loaded model, each
in a process of its own. `--samples` also compares the memory that a scan of 1,000 drawn scenes takes with one of 10.
The last line is JSON; only its ratios carry over to other machines.

    python benchmarks/scan_cost.py [--lengths 2048 4096 8192] [--repetitions 5] [--samples]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.utils import logging

from corelens import HookedMLLM, Role, TokenMap
from corelens.experiments.head_metrics import ScoringInputs, score_heads
from corelens.metrics import PRESETS

N_QUERIES = 16
MODES = ("plain", "scan", "eager", "transformer_lens")
PATTERN_BYTES = 4e9
"""Modes that make whole patterns are left out where these alone would take more."""


def random_model(attention: str) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llava",
        text_config=dict(
            model_type="llama", vocab_size=1024, hidden_size=1024, intermediate_size=2816, num_hidden_layers=8,
            num_attention_heads=16, num_key_value_heads=8, head_dim=64, max_position_embeddings=16_384,
        ),
        vision_config=dict(
            model_type="clip_vision_model", num_hidden_layers=2, hidden_size=64, intermediate_size=64,
            num_attention_heads=2, image_size=28, patch_size=14,
        ),
        image_token_id=1023,
    )  # fmt: skip
    return AutoModelForImageTextToText.from_config(config, attn_implementation=attention, dtype=torch.float32).eval()


def asked(length: int) -> ScoringInputs:
    """A sequence whose first part is a picture and whose last tokens ask."""
    nothing = torch.full((1, length), -1)
    queries, evidence = torch.zeros(2, 1, length, dtype=torch.bool)
    queries[:, -N_QUERIES:] = True
    evidence[:, length // 4 : length // 3] = True
    tokens = TokenMap(
        role=torch.where(torch.arange(length) < length // 2, Role.IMAGE, Role.QUESTION)[None], media=nothing,
        view=nothing, overview=nothing > 0, row=nothing, column=nothing, box=torch.full((1, length, 4), torch.nan),
        seconds=torch.full((1, length, 2), torch.nan), sizes=((),),
    )  # fmt: skip
    return ScoringInputs(tokens, evidence, {"last": queries}, nothing)


@torch.no_grad()
def run_of(mode: str, length: int) -> Callable[[], Any]:
    """One pass in one mode, as a function of nothing."""
    hf_model = random_model("eager" if mode in ("eager", "transformer_lens") else "sdpa")
    ids = torch.randint(0, 1000, (1, length), generator=torch.Generator().manual_seed(1))
    savings: dict[str, Any] = dict(use_cache=False, logits_to_keep=1)
    if mode == "scan":
        measures = [PRESETS["ram"], PRESETS["write_ram"], "entropy"]
        return partial(score_heads, HookedMLLM(hf_model), {"input_ids": ids}, asked(length), measures)
    if mode == "transformer_lens":
        from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

        bridge = build_bridge_from_module(hf_model, "LlavaForConditionalGeneration", hf_config=hf_model.config)
        patterns = [f"blocks.{layer}.attn.hook_pattern" for layer in range(8)]
        return torch.no_grad()(lambda: bridge.run_with_cache(ids, names_filter=patterns, use_cache=False))
    return torch.no_grad()(lambda: hf_model(input_ids=ids, output_attentions=mode == "eager", **savings))


def modes_at(length: int) -> list[str]:
    return [mode for mode in MODES if mode in MODES[:2] or 8 * 16 * length**2 * 4 < PATTERN_BYTES]


def times(length: int, repetitions: int) -> dict[str, float]:
    runs = {mode: run_of(mode, length) for mode in modes_at(length)}
    taken: dict[str, list[float]] = {mode: [] for mode in runs}
    for repetition in range(repetitions + 1):
        for mode, run in runs.items():
            began = time.perf_counter()
            run()
            if repetition:  # the first warms up
                taken[mode].append(time.perf_counter() - began)
    return {mode: statistics.median(values) for mode, values in taken.items()}


def peak_bytes(mode: str, length: int) -> int:
    def status(name: str) -> int:
        (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
        return int(line.split()[1]) * 1024

    run = scenes_scan(length) if mode == "samples" else run_of(mode, length)
    (
        scenes_scan(4) if mode == "samples" else run_of(mode, 64)
    )()  # code, kernels and thread pools are not what is measured
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status("VmRSS")
    run()
    return status("VmHWM") - before


def scenes_scan(n: int) -> Callable[[], Any]:
    """A scan of so many scenes of the shipped model, each drawn when it is needed."""
    from dataclasses import replace

    from corelens import toy
    from corelens.experiments.scan import scan_metrics

    model = HookedMLLM.from_pretrained("corelens/toy")
    (first,) = toy.scenes(1, 0)
    samples = [replace(first, id=str(number), images=(partial(first.images[0].copy),)) for number in range(n)]
    return lambda: scan_metrics(model, samples, ["ram", "write_ram", "entropy"], batch_size=8)


def child(*arguments: str) -> Any:
    # Freed memory goes back at once, so that a peak is what is in use.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, *arguments]
    return json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096, 8192])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--samples", action="store_true")
    parser.add_argument("--times", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    if arguments.times:
        print(json.dumps(times(arguments.times, arguments.repetitions)))
        return
    if arguments.peak:
        print(json.dumps(peak_bytes(arguments.peak[0], int(arguments.peak[1]))))
        return
    results: list[dict[str, Any]] = []
    print(f"{'tokens':>6} {'plain':>16}" + "".join(f"{mode + ' / plain':>26}" for mode in MODES[1:]))
    for length in arguments.lengths:
        seconds = child(__file__, "--times", str(length), "--repetitions", str(arguments.repetitions))
        peaks = {mode: child(__file__, "--peak", mode, str(length)) for mode in seconds}
        ratios = {mode: (seconds[mode] / seconds["plain"], peaks[mode] / peaks["plain"]) for mode in seconds}
        cells = [f"{ratios[mode][0]:.2f}x s, {ratios[mode][1]:5.2f}x MB" for mode in list(seconds)[1:]]
        plain = f"{seconds['plain']:.2f} s, {peaks['plain'] / 2**20:.0f} MB"
        print(f"{length:>6} {plain:>16}" + "".join(f"{cell:>26}" for cell in cells), flush=True)
        results.append({"tokens": length, "seconds": seconds, "peak_bytes": peaks, "ratios": ratios})
    if arguments.samples:
        few, many = (child(__file__, "--peak", "samples", str(n)) for n in (10, 1_000))
        print(f"1,000 samples / 10 samples: {many / few:.2f}x MB ({many / 2**20:.0f} and {few / 2**20:.0f} MB)")
        results.append({"peak_bytes of samples": {"10": few, "1000": many}})
    print(json.dumps({"benchmark": "scan_cost", "threads": torch.get_num_threads(), "results": results}))


if __name__ == "__main__":
    main()
