"""Overhead of wrapping without hooks: HookedMLLM.forward compared with the plain Hugging Face forward.

Five families, random weights (a decoder of 12 layers of 8 heads, d_model 512, MLP 1408; a vision tower of 4 layers,
width 256; float32), one picture and 320 positions. Both modes run the same model object on the same tensors, in turn,
and the order alternates, so that a drift of the machine's speed affects both alike. Times are processor time on one
core, which other programs on the machine hardly affect. The ratio is the median over repetitions of
wrapped / plain, and its spread is their interquartile range. Peaks are resident memory above the loaded model, in a
process of their own. The last line is JSON; only its ratios carry over to other machines.

    python benchmarks/unhooked_overhead.py [--repetitions 30]
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
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel
from transformers.utils import logging

from corelens import HookedMLLM

LENGTH, IMAGE, SIDE = 320, 1000, 224
TEXT = dict(
    vocab_size=1024, hidden_size=512, intermediate_size=1408, num_hidden_layers=12, num_attention_heads=8,
    num_key_value_heads=4, head_dim=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
TOWER = dict(
    hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=4, image_size=SIDE, patch_size=14
)
FAMILIES: dict[str, tuple[dict[str, Any], tuple[int, ...], int]] = {
    "qwen3_vl": (
        dict(
            text_config=TEXT
            | dict(
                rope_parameters=dict(
                    rope_type="default", rope_theta=5e6, mrope_section=[12, 10, 10], mrope_interleaved=True
                )
            ),
            vision_config=dict(
                depth=4, hidden_size=256, intermediate_size=1024, num_heads=4, out_hidden_size=512,
                deepstack_visual_indexes=[0, 1],
            ),
            image_token_id=IMAGE,
        ),
        (32 * 32, 3 * 2 * 16 * 16),
        256,
    ),
    "llava": (
        dict(
            text_config=TEXT | dict(model_type="llama"),
            vision_config=TOWER | dict(model_type="clip_vision_model", projection_dim=64),
            image_token_index=IMAGE,
        ),
        (1, 3, SIDE, SIDE),
        256,
    ),
    "gemma3": (
        dict(
            text_config=TEXT | dict(sliding_window=128),
            vision_config=TOWER | dict(model_type="siglip_vision_model", vision_use_head=False),
            image_token_index=IMAGE,
            mm_tokens_per_image=64,
        ),
        (1, 3, SIDE, SIDE),
        64,
    ),
    "internvl": (
        dict(
            text_config=TEXT | dict(model_type="qwen2"),
            vision_config=TOWER | dict(image_size=[SIDE, SIDE], patch_size=[14, 14]),
            image_token_id=IMAGE,
        ),
        (1, 3, SIDE, SIDE),
        64,
    ),
    "idefics3": (
        dict(
            text_config=TEXT | dict(model_type="llama"), vision_config=TOWER, image_token_id=IMAGE, scale_factor=2
        ),
        (1, 4, 3, SIDE, SIDE),
        256,
    ),
}  # fmt: skip
"""Configuration, shape of the pixels, and visual tokens of one picture."""

MODES = ("plain", "wrapped")


def random_model(family: str) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """A model of random weights, and a prompt with one picture."""
    torch.manual_seed(0)
    settings, pixels, n_visual = FAMILIES[family]
    config = AutoConfig.for_model(family, **settings)
    hf_model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    ids = torch.randint(3, IMAGE, (1, LENGTH))
    ids[:, 8 : 8 + n_visual] = IMAGE
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(pixels)}
    if family == "qwen3_vl":
        inputs |= {"image_grid_thw": torch.tensor([[1, 32, 32]]), "mm_token_type_ids": (ids == IMAGE).long()}
    if family == "gemma3":
        inputs["token_type_ids"] = (ids == IMAGE).long()
    return hf_model, inputs


def pass_functions(family: str) -> dict[str, Callable[[], Tensor]]:
    """Functions without arguments that run one pass in each mode and return its logits."""
    hf_model, inputs = random_model(family)
    model = HookedMLLM(hf_model)
    functions = {"plain": lambda: hf_model(**inputs).logits, "wrapped": lambda: model(inputs)}
    return {mode: torch.no_grad()(function) for mode, function in functions.items()}


def pass_times(family: str, repetitions: int) -> dict[str, list[float]]:
    """Seconds of every repetition by mode."""
    torch.set_num_threads(1)
    passes = pass_functions(family)
    if not torch.equal(passes["plain"](), passes["wrapped"]()):
        raise AssertionError(f"{family}: the logits differ, so their times cannot be compared.")
    times: dict[str, list[float]] = {mode: [] for mode in MODES}
    for repetition in range(repetitions):
        for mode in MODES if repetition % 2 else reversed(MODES):
            start = time.process_time()
            passes[mode]()
            times[mode].append(time.process_time() - start)
    return times


def peak_bytes(family: str, repetitions: int = 9) -> dict[str, float]:
    """Median peak of resident memory by mode, above the loaded model."""

    def status(name: str) -> int:
        (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
        return int(line.split()[1]) * 1024

    passes = pass_functions(family)
    peaks: dict[str, list[int]] = {mode: [] for mode in MODES}
    for repetition in range(repetitions + 1):
        for mode in MODES:
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak
            before = status("VmRSS")
            passes[mode]()
            if repetition:  # the first one loads code, kernels and thread pools
                peaks[mode].append(status("VmHWM") - before)
    return {mode: statistics.median(values) for mode, values in peaks.items()}


def run_child(*arguments: str, **environment: str) -> Any:
    """Run this script in a process of its own and parse its output as JSON."""
    command = [sys.executable, __file__, *arguments]
    result = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=30)
    parser.add_argument("--times", help=argparse.SUPPRESS)
    parser.add_argument("--peaks", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    if arguments.times:
        print(json.dumps(pass_times(arguments.times, arguments.repetitions)))
        return
    if arguments.peaks:
        print(json.dumps(peak_bytes(arguments.peaks)))
        return
    results = []
    print(f"{'family':>10} {'plain':>8} {'wrapped / plain, time':>24} {'memory':>8}")
    for family in FAMILIES:
        times = run_child("--times", family, "--repetitions", str(arguments.repetitions))
        # Freed memory is returned at once, so that a peak is the memory in use.
        peaks = run_child("--peaks", family, MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="65536")
        ratios = [wrapped / plain for plain, wrapped in zip(*(times[mode] for mode in MODES), strict=True)]
        low, ratio, high = statistics.quantiles(ratios, n=4)
        seconds = {mode: statistics.median(values) for mode, values in times.items()}
        memory = peaks["wrapped"] / peaks["plain"]
        spread = f"{ratio:.3f} ({low:.3f} to {high:.3f})"
        print(f"{family:>10} {seconds['plain']:>6.2f} s {spread:>24} {memory:>8.3f}", flush=True)
        results.append({"family": family, "seconds": seconds, "ratio": [low, ratio, high], "peak_bytes": peaks})
    print(json.dumps({"benchmark": "unhooked_overhead", "results": results}))


if __name__ == "__main__":
    main()
