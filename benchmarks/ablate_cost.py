"""What answering under many ablations costs, beside a vision tower that runs anew for each.

The fourteen conditions of `corelens ablate` (nothing removed, the top 5 % of heads and their controls) on the first 16
scenes of one picture, and on 2 haystacks of 32 pictures, for shipped models. Seconds are of CPU, summed over threads:
medians over interleaved repetitions in one process. The last line is JSON; only its ratios carry over to other machines
and models: what is saved is the tower's share of a short answer.

    [OMP_NUM_THREADS=1] python benchmarks/ablate_cost.py [--repetitions 3]
"""

import argparse
import json
import statistics
import time
from contextlib import nullcontext
from unittest.mock import patch

from transformers.utils import logging

from corelens import HookedMLLM, scan, toy
from corelens.experiments import ablation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    asked = {
        "corelens/toy-worlds": list(toy.scenes(16, seed=2)),
        "corelens/toy-haystack": list(toy.haystacks(2, seed=2)),
    }
    results = {}
    for model_name, samples in asked.items():
        model = HookedMLLM.from_pretrained(model_name)
        conditions = scan(model, toy.scenes(20, seed=1)).controls(0.05)
        taken: dict[str, list[float]] = {"once": [], "every time": []}
        found = []
        for repetition in range(arguments.repetitions + 1):
            for way, seeing in (("once", ablation.cached_vision), ("every time", nullcontext)):
                began = time.process_time()
                with patch.object(ablation, "cached_vision", seeing):
                    found.append(ablation.run_ablation(model, samples, conditions, max_new_tokens=4).values)
                if repetition:  # the first warms up
                    taken[way].append(time.process_time() - began)
        assert all(one[name].equal(found[0][name]) for one in found for name in conditions), (
            "both ways give the same answers"
        )
        seconds = {way: statistics.median(times) for way, times in taken.items()}
        results[model_name] = {**seconds, "ratio": seconds["every time"] / seconds["once"]}
        print(f"{model_name}: tower once {seconds['once']:.2f} s, every time {seconds['every time']:.2f} s", flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
