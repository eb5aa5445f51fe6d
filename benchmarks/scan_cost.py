"""What a scan costs beside the plain forward pass, in time and in memory.

Every head's retrieval attention mass from 16 query tokens is measured on a random Qwen3-VL decoder (8 layers, 16 heads
of 64, 8 key-value heads, d_model 1024, MLP 2816, float32, batch 1), and compared with the same model's plain fused
pass and with eager attention that returns its patterns. Plain and scan both skip the logits and the cache, so that the
difference is the looking alone.

Times are medians over interleaved repetitions in one process; peaks are resident memory above the loaded model, each
in a process of its own. The last line is JSON; only its ratios carry over to other machines.

    python benchmarks/scan_cost.py [--lengths 1024 2048 4096] [--repetitions 5]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.utils import logging

from corelens import HookedMLLM
from corelens.scanning import retrieval_masses

IMAGE, N_QUERIES = 151_655, 16
MODES = ("plain", "scan", "eager")


def random_model(attention: str) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "qwen3_vl",
        text_config=dict(
            vocab_size=1024, hidden_size=1024, intermediate_size=2816, num_hidden_layers=8, num_attention_heads=16,
            num_key_value_heads=8, head_dim=64, max_position_embeddings=16_384,
            rope_parameters=dict(
                rope_type="default", rope_theta=5e6, mrope_section=[12, 10, 10], mrope_interleaved=True
            ),
        ),
        vision_config=dict(depth=1, hidden_size=64, intermediate_size=64, num_heads=2, out_hidden_size=1024),
        image_token_id=IMAGE,
    )  # fmt: skip
    return AutoModelForImageTextToText.from_config(config, attn_implementation=attention, dtype=torch.float32).eval()


def run_of(mode: str, length: int) -> Callable[[], Any]:
    """One pass in one mode, as a function of nothing."""
    hf_model = random_model("eager" if mode == "eager" else "sdpa")
    ids = torch.randint(0, 1024, (1, length), generator=torch.Generator().manual_seed(1))
    savings: dict[str, Any] = dict(use_cache=False, logits_to_keep=1)
    if mode == "scan":
        model = HookedMLLM(hf_model)
        queries, evidence = torch.zeros(2, 1, length, dtype=torch.bool)
        queries[:, -N_QUERIES:] = True
        evidence[:, length // 4 : length // 3] = True
        return lambda: retrieval_masses(model, {"input_ids": ids}, evidence, queries)
    return torch.no_grad()(lambda: hf_model(input_ids=ids, output_attentions=mode == "eager", **savings))


def times(length: int, repetitions: int) -> dict[str, float]:
    runs = {mode: run_of(mode, length) for mode in MODES}
    taken: dict[str, list[float]] = {mode: [] for mode in MODES}
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

    run = run_of(mode, length)
    run_of(mode, 64)()  # code, kernels and thread pools are not what is measured
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status("VmRSS")
    run()
    return status("VmHWM") - before


def child(*arguments: str) -> Any:
    # Freed memory goes back at once, so that a peak is what is in use.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, *arguments]
    return json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--repetitions", type=int, default=5)
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
    results = []
    print(f"{'tokens':>6} {'plain':>16} {'scan / plain':>22} {'eager / plain':>22}")
    for length in arguments.lengths:
        seconds = child(__file__, "--times", str(length), "--repetitions", str(arguments.repetitions))
        peaks = {mode: child(__file__, "--peak", mode, str(length)) for mode in MODES}
        ratios = {mode: (seconds[mode] / seconds["plain"], peaks[mode] / peaks["plain"]) for mode in MODES}
        cells = [f"{ratios[mode][0]:.2f}x s, {ratios[mode][1]:5.2f}x MB" for mode in MODES[1:]]
        plain = f"{seconds['plain']:.2f} s, {peaks['plain'] / 2**20:.0f} MB"
        print(f"{length:>6} {plain:>16} {cells[0]:>22} {cells[1]:>22}", flush=True)
        results.append({"tokens": length, "seconds": seconds, "peak_bytes": peaks, "ratios": ratios})
    print(json.dumps({"benchmark": "scan_cost", "threads": torch.get_num_threads(), "results": results}))


if __name__ == "__main__":
    main()
