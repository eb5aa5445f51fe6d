"""Cost of ablating every head by itself, in time and in memory, compared with one full pass for each.

All single heads of a random Qwen3-VL decoder (that of `scan_cost.py`: 8 layers, 16 heads of 64, d_model 1024, float32,
batch 1) are zero-ablated from the question on, in prompts of 1,024 and 4,096 visual tokens, a question of 20 tokens,
three of the template and an answer of one. Compared with one full pass for each head under the same ablation, as
`model(inputs)` runs it, without the logits of other positions.

`sweep` is all of it, preparation included. `first` is the time to the answer after one head was changed in an existing
session, the mean over the heads of all layers. `layer 0` and so on are the same for a head of that layer that is
ablated at all positions, so that all layers from there on run again: (8 - layer) / 8 of a pass. Times are seconds of
CPU, summed over threads, so that other work on the machine counts little: medians over interleaved repetitions in one
process. Peaks are resident memory above the loaded model, each in a process of its own. The last line is JSON; only its
ratios carry over to other machines.

    [OMP_NUM_THREADS=1] python benchmarks/sweep_cost.py [--lengths 1024 4096] [--repetitions 3] [--at-once 4]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from scan_cost import peak_bytes_of, random_model, run_child
from transformers.utils import logging

from corelens import Head, HookedMLLM, Role, Session, TokenMap, ablate, sweep
from corelens.inputs.prepare import PreparedInputs

N_QUESTION, N_TEMPLATE, N_ANSWER = 20, 3, 1
N_LAYERS = 8


def prompt(n_visual: int) -> PreparedInputs:
    """Build a prompt in which token ids stand for visual tokens: the decoder's work is the same."""
    roles = [
        (Role.IMAGE, n_visual),
        (Role.QUESTION, N_QUESTION),
        (Role.STRUCTURAL, N_TEMPLATE),
        (Role.ANSWER, N_ANSWER),
    ]
    role = torch.tensor([[role for role, n in roles for _ in range(n)]])
    nowhere, nan = torch.full_like(role, -1), torch.full((*role.shape, 4), torch.nan)
    tokens = TokenMap(
        role=role, media=nowhere, view=nowhere, overview=nowhere > 0, row=nowhere, column=nowhere, box=nan,
        seconds=nan[..., :2], sizes=((),),
    )  # fmt: skip
    ids = torch.randint(0, 1024, role.shape, generator=torch.Generator().manual_seed(1))
    return PreparedInputs({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, tokens)


@torch.no_grad()
def workloads(n_visual: int, at_once: int) -> dict[str, Callable[[], Any]]:
    """Functions that run one pass for one head, the whole sweep, and one head of each layer in a session."""
    model, inputs = HookedMLLM(random_model("sdpa")), prompt(n_visual)
    hooks = ablate([Head(4, 3)], positions="from_question")

    def one_pass() -> None:
        with torch.no_grad(), model.hooks(fwd_hooks=hooks):
            model(inputs, logits_to_keep=N_ANSWER + 1)

    sessions: list[Session] = []

    def session() -> Session:
        if not sessions:
            sessions.append(Session(model, inputs))
        return sessions[0]

    def first() -> None:
        for layer in range(N_LAYERS):
            session().logits(ablate([Head(layer, 3)], positions="from_question"))

    def whole(layer: int) -> None:
        session().logits(ablate([Head(layer, 3)]))

    of_layers = {f"layer {layer}": partial(whole, layer) for layer in range(N_LAYERS)}
    return {"pass": one_pass, "sweep": partial(sweep, model, inputs, at_once=at_once), "first": first, **of_layers}


def median_times(n_visual: int, repetitions: int, at_once: int) -> dict[str, float]:
    """Median seconds of every workload."""
    times: dict[str, list[float]] = {}
    functions = workloads(n_visual, at_once)
    for repetition in range(repetitions + 1):
        for name, run in functions.items():
            start = time.process_time()
            run()
            if repetition:  # the first one is a warm-up
                times.setdefault(name, []).append(time.process_time() - start)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    return seconds | {"first": seconds["first"] / N_LAYERS}


def peak_bytes(name: str, n_visual: int, at_once: int) -> int:
    """Peak of resident memory of a workload above the loaded model."""
    workloads(64, at_once)[name]()  # warm-up: memory of code, kernels and thread pools does not count
    return peak_bytes_of(workloads(n_visual, at_once)[name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--times", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    if arguments.times:
        print(json.dumps(median_times(arguments.times, arguments.repetitions, arguments.at_once)))
        return
    if arguments.peak:
        print(json.dumps(peak_bytes(arguments.peak[0], int(arguments.peak[1]), arguments.at_once)))
        return
    results, at_once = [], ("--at-once", str(arguments.at_once))
    print(
        f"{'visual tokens':>13} {'one pass':>18} {'128 passes / sweep':>20} {'sweep / pass':>14} {'first / pass':>14}"
    )
    for length in arguments.lengths:
        seconds = run_child(__file__, "--times", str(length), "--repetitions", str(arguments.repetitions), *at_once)
        peaks = {name: run_child(__file__, "--peak", name, str(length), *at_once) for name in ("pass", "sweep")}
        ratios = {
            "passes / sweep, time": 128 * seconds["pass"] / seconds["sweep"],
            "sweep / pass, memory": peaks["sweep"] / peaks["pass"],
            "first / pass, time": seconds["first"] / seconds["pass"],
        }
        of_layers = [seconds[f"layer {layer}"] / seconds["pass"] for layer in range(N_LAYERS)]
        cells = f"{seconds['pass']:.2f} s, {peaks['pass'] / 2**20:.0f} MB"
        speed_up, memory, first = ratios.values()
        print(f"{length:>13} {cells:>18} {speed_up:>19.1f}x {memory:>11.2f}x MB {first:>12.1%} s", flush=True)
        predicted = [(N_LAYERS - layer) / N_LAYERS for layer in range(N_LAYERS)]
        print("at all positions, of a pass, by layer:", *(f"{ratio:.2f}" for ratio in of_layers), flush=True)
        print("             as the layers predict it:", *(f"{ratio:.2f}" for ratio in predicted), flush=True)
        ratios["all positions / passes, time"] = statistics.mean(of_layers)
        results.append({"visual tokens": length, "seconds": seconds, "peak_bytes": peaks, "ratios": ratios})
    print(json.dumps({"benchmark": "sweep_cost", "threads": torch.get_num_threads(), "results": results}))


if __name__ == "__main__":
    main()
