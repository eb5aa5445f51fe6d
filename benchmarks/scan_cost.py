"""Cost of a scan compared with the plain forward pass, in time and in memory.

Three metrics of every head (retrieval attention mass, the same weighted by output norms, and entropy) from 16 query
tokens are scanned on a random LLaVA decoder (8 layers, 16 heads of 64, 8 key-value heads, d_model 1024, MLP 2816,
float32, batch 1), and compared with the same model's plain fused pass, with eager attention that returns its patterns,
and with TransformerLens's run_with_cache of the patterns. Plain and scan both skip the logits and the cache, so that
they differ by the hooks alone. Lengths are tokens of the decoder; the vision tower is not part of any mode.

Times are medians over interleaved repetitions in one process; peaks are resident memory above the loaded model, each
in a process of its own. `--samples` also compares the memory of a scan of 1,000 drawn scenes with that of 10.
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
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.utils import logging

from corelens import HookedMLLM, Role, TokenMap, toy
from corelens.experiments.head_metrics import score_heads
from corelens.experiments.layer_scores import ScoringInputs
from corelens.experiments.scan import scan_metrics
from corelens.metrics import PRESETS

N_QUERIES = 16
MODES = ("plain", "scan", "eager", "transformer_lens")
PATTERN_BYTES = 4e9
"""Bytes of whole patterns above which the modes that compute them are left out."""


def random_model(attention: str) -> Any:
    """Build a LLaVA model with random weights and an attention implementation."""
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


def scoring_inputs(length: int) -> ScoringInputs:
    """Build a sequence whose first half is a picture and whose last tokens are the query tokens."""
    nothing = torch.full((1, length), -1)
    queries, evidence = torch.zeros(2, 1, length, dtype=torch.bool)
    queries[:, -N_QUERIES:] = True
    evidence[:, length // 4 : length // 3] = True
    tokens = TokenMap(
        role=torch.where(torch.arange(length) < length // 2, Role.IMAGE, Role.QUESTION)[None], media=nothing,
        view=nothing, overview=nothing > 0, row=nothing, column=nothing, box=torch.full((1, length, 4), torch.nan),
        seconds=torch.full((1, length, 2), torch.nan), sizes=((),),
    )  # fmt: skip
    return ScoringInputs(tokens, evidence, {"question": queries, "last": queries}, nothing)


@torch.no_grad()
def pass_function(mode: str, length: int) -> Callable[[], Any]:
    """Function without arguments that runs one pass in a mode."""
    hf_model = random_model("eager" if mode in ("eager", "transformer_lens") else "sdpa")
    ids = torch.randint(0, 1000, (1, length), generator=torch.Generator().manual_seed(1))
    without_logits: dict[str, Any] = dict(use_cache=False, logits_to_keep=1)
    if mode == "scan":
        scanned = [PRESETS["ram"], PRESETS["write_ram"], "entropy"]
        return partial(score_heads, HookedMLLM(hf_model), {"input_ids": ids}, scoring_inputs(length), scanned)
    if mode == "transformer_lens":
        from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

        bridge = build_bridge_from_module(hf_model, "LlavaForConditionalGeneration", hf_config=hf_model.config)
        patterns = [f"blocks.{layer}.attn.hook_pattern" for layer in range(8)]
        return torch.no_grad()(lambda: bridge.run_with_cache(ids, names_filter=patterns, use_cache=False))
    return torch.no_grad()(lambda: hf_model(input_ids=ids, output_attentions=mode == "eager", **without_logits))


def modes_at(length: int) -> list[str]:
    """Modes that fit into memory at a length."""
    return [mode for mode in MODES if mode in MODES[:2] or 8 * 16 * length**2 * 4 < PATTERN_BYTES]


def median_times(length: int, repetitions: int) -> dict[str, float]:
    """Median seconds of a pass in each mode."""
    passes = {mode: pass_function(mode, length) for mode in modes_at(length)}
    times: dict[str, list[float]] = {mode: [] for mode in passes}
    for repetition in range(repetitions + 1):
        for mode, run in passes.items():
            start = time.perf_counter()
            run()
            if repetition:  # the first one is a warm-up
                times[mode].append(time.perf_counter() - start)
    return {mode: statistics.median(values) for mode, values in times.items()}


def peak_bytes(mode: str, length: int) -> int:
    """Peak of resident memory above the loaded model in one pass, or in one scan of samples."""
    make = scene_scan_function if mode == "samples" else partial(pass_function, mode)
    run = make(length)
    make(4 if mode == "samples" else 64)()  # warm-up: memory of code, kernels and thread pools does not count
    return peak_bytes_of(run)


def peak_bytes_of(run: Callable[[], Any]) -> int:
    """Peak of resident memory while a function runs, above that before."""

    def status(name: str) -> int:
        (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
        return int(line.split()[1]) * 1024

    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = status("VmRSS")
    run()
    return status("VmHWM") - before


def scene_scan_function(n: int) -> Callable[[], Any]:
    """Function without arguments that scans n scenes with the shipped model, each drawn when it is needed."""
    model = HookedMLLM.from_pretrained("corelens/toy")
    (scene,) = toy.scenes(1, 0)
    samples = [replace(scene, id=str(number), images=(partial(scene.images[0].copy),)) for number in range(n)]
    return lambda: scan_metrics(model, samples, ["ram", "write_ram", "entropy"], batch_size=8)


def run_child(*arguments: str) -> Any:
    """Run a script in a process of its own and parse its output as JSON."""
    # Freed memory is returned at once, so that a peak is the memory in use.
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
        print(json.dumps(median_times(arguments.times, arguments.repetitions)))
        return
    if arguments.peak:
        print(json.dumps(peak_bytes(arguments.peak[0], int(arguments.peak[1]))))
        return
    results: list[dict[str, Any]] = []
    print(f"{'tokens':>6} {'plain':>16}" + "".join(f"{mode + ' / plain':>26}" for mode in MODES[1:]))
    for length in arguments.lengths:
        seconds = run_child(__file__, "--times", str(length), "--repetitions", str(arguments.repetitions))
        peaks = {mode: run_child(__file__, "--peak", mode, str(length)) for mode in seconds}
        ratios = {mode: (seconds[mode] / seconds["plain"], peaks[mode] / peaks["plain"]) for mode in seconds}
        cells = [f"{ratios[mode][0]:.2f}x s, {ratios[mode][1]:5.2f}x MB" for mode in list(seconds)[1:]]
        plain = f"{seconds['plain']:.2f} s, {peaks['plain'] / 2**20:.0f} MB"
        print(f"{length:>6} {plain:>16}" + "".join(f"{cell:>26}" for cell in cells), flush=True)
        results.append({"tokens": length, "seconds": seconds, "peak_bytes": peaks, "ratios": ratios})
    if arguments.samples:
        few, many = (run_child(__file__, "--peak", "samples", str(n)) for n in (10, 1_000))
        print(f"1,000 samples / 10 samples: {many / few:.2f}x MB ({many / 2**20:.0f} and {few / 2**20:.0f} MB)")
        results.append({"peak_bytes of samples": {"10": few, "1000": many}})
    print(json.dumps({"benchmark": "scan_cost", "threads": torch.get_num_threads(), "results": results}))


if __name__ == "__main__":
    main()
