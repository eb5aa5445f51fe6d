"""What wrapping costs while nobody looks: HookedMLLM.forward without hooks beside the plain Hugging Face forward.

Five families, random weights (a decoder of 12 layers of 8 heads, d_model 512, MLP 1408; a vision tower of 4 layers,
width 256; float32), one picture and 320 positions. Both ways run the same model object on the same tensors, in turn,
and the turn changes every repetition, so that a drift of the machine's speed hits both alike. Times are processor time
on one core, in which other programs on the machine have little part. The ratio is the median over repetitions of
wrapped / plain, and its spread is the middle half of them. Peaks are resident memory above the loaded model, in a
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
from transformers import AutoConfig, AutoModelForImageTextToText
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

WAYS = ("plain", "wrapped")


def passes(family: str) -> dict[str, Callable[[], Tensor]]:
    """One pass either way, as functions of nothing."""
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
    model = HookedMLLM(hf_model)
    ways = {"plain": lambda: hf_model(**inputs).logits, "wrapped": lambda: model(inputs)}
    return {name: torch.no_grad()(way) for name, way in ways.items()}


def times(family: str, repetitions: int) -> dict[str, list[float]]:
    torch.set_num_threads(1)
    run = passes(family)
    if not torch.equal(run["plain"](), run["wrapped"]()):
        raise AssertionError(f"{family}: the logits differ, so that there is nothing to compare.")
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    for repetition in range(repetitions):
        for way in WAYS if repetition % 2 else reversed(WAYS):
            began = time.process_time()
            run[way]()
            taken[way].append(time.process_time() - began)
    return taken


def peaks(family: str, repetitions: int = 9) -> dict[str, float]:
    def status(name: str) -> int:
        (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
        return int(line.split()[1]) * 1024

    run, found = passes(family), {way: [] for way in WAYS}
    for repetition in range(repetitions + 1):
        for way in WAYS:
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
            before = status("VmRSS")
            run[way]()
            if repetition:  # the first loads code, kernels and thread pools
                found[way].append(status("VmHWM") - before)
    return {way: statistics.median(values) for way, values in found.items()}


def child(*arguments: str, **environment: str) -> Any:
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=30)
    parser.add_argument("--times", help=argparse.SUPPRESS)
    parser.add_argument("--peaks", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    if arguments.times:
        print(json.dumps(times(arguments.times, arguments.repetitions)))
        return
    if arguments.peaks:
        print(json.dumps(peaks(arguments.peaks)))
        return
    results = []
    print(f"{'family':>10} {'plain':>8} {'wrapped / plain, time':>24} {'memory':>8}")
    for family in FAMILIES:
        taken = child("--times", family, "--repetitions", str(arguments.repetitions))
        # Freed memory goes back at once, so that a peak is what is in use.
        peak = child("--peaks", family, MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="65536")
        ratios = [wrapped / plain for plain, wrapped in zip(*(taken[way] for way in WAYS), strict=True)]
        low, ratio, high = statistics.quantiles(ratios, n=4)
        seconds = {way: statistics.median(values) for way, values in taken.items()}
        memory = peak["wrapped"] / peak["plain"]
        spread = f"{ratio:.3f} ({low:.3f} to {high:.3f})"
        print(f"{family:>10} {seconds['plain']:>6.2f} s {spread:>24} {memory:>8.3f}", flush=True)
        results.append({"family": family, "seconds": seconds, "ratio": [low, ratio, high], "peak_bytes": peak})
    print(json.dumps({"benchmark": "unhooked_overhead", "results": results}))


if __name__ == "__main__":
    main()
