"""Cost of answers under many ablations, compared with running the vision tower again for each.

The fourteen conditions of `corelens ablate` (nothing removed, the top 5 % of heads and their controls) on the first 16
scenes of one picture, and on 2 haystacks of 32 pictures, for shipped models. Seconds are CPU time, summed over threads:
medians over interleaved repetitions in one process. The last line is JSON; only its ratios carry over to other machines
and models: the saving is the tower's share of a short answer.

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
    test_samples = {
        "corelens/toy-worlds": list(toy.scenes(16, seed=2)),
        "corelens/toy-haystack": list(toy.haystacks(2, seed=2)),
    }
    results = {}
    for model_name, samples in test_samples.items():
        model = HookedMLLM.from_pretrained(model_name)
        conditions = scan(model, toy.scenes(20, seed=1)).controls(0.05)
        times: dict[str, list[float]] = {"once": [], "every time": []}
        scores = []
        for repetition in range(arguments.repetitions + 1):
            for tower_runs, context in (("once", ablation.cached_vision), ("every time", nullcontext)):
                start = time.process_time()
                with patch.object(ablation, "cached_vision", context):
                    scores.append(ablation.run_ablation(model, samples, conditions, max_new_tokens=4).values)
                if repetition:  # the first one is a warm-up
                    times[tower_runs].append(time.process_time() - start)
        assert all(values[name].equal(scores[0][name]) for values in scores for name in conditions), (
            "answers differ with the cached vision tower"
        )
        seconds = {tower_runs: statistics.median(values) for tower_runs, values in times.items()}
        results[model_name] = {**seconds, "ratio": seconds["every time"] / seconds["once"]}
        print(f"{model_name}: tower once {seconds['once']:.2f} s, every time {seconds['every time']:.2f} s", flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
