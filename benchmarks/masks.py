"""Accuracy under three masks of the same heads: zero output, and uniform attention in both its forms.

On scenes of digits, for the shipped models: accuracy with the top 5 and 10 heads masked, ranked by retrieval attention
mass over the question's tokens (`ram`, the paper's) and from the last prompt token (`ram_last`), and with as many heads
drawn at random outside of the first ranking (mean over five draws). Heads are chosen on other scenes. The masks:

- `zero`: head outputs are zero,
- `uniform`: attention logits are zero for the keys that a head may attend to,
- `uniform_all_keys`: the same for all keys of the pass, later ones included; algorithm 2 of arXiv 2606.05843.

No time is measured. The last line is JSON, and the numbers carry over to other machines.

    python benchmarks/masks.py [--samples 200]
"""

import argparse
import json
from typing import Any, get_args

from transformers.utils import logging

from corelens import HeadSet, HookedMLLM, run_ablation, scan, toy
from corelens.experiments.ablation import UniformMethod

DOSES = (5, 10)


def conditions(model: HookedMLLM, n: int) -> dict[str, list[HeadSet]]:
    """Sets of heads by ranking and dose."""
    rankings = {metric: scan(model, list(toy.scenes(n, 1)), metric) for metric in ("ram", "ram_last")}
    sets = {f"{metric} {dose}": [scores.top(dose)] for metric, scores in rankings.items() for dose in DOSES}
    return sets | {f"random {dose}": [rankings["ram"].random(seed, dose) for seed in range(5)] for dose in DOSES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=200)
    n = parser.parse_args().samples
    logging.set_verbosity_error()
    results: dict[str, Any] = {}
    for name in ("corelens/toy", "corelens/toy-natural", "corelens/toy-worlds"):
        model = HookedMLLM.from_pretrained(name)
        sets, samples = conditions(model, n), list(toy.scenes(n, 2))
        results[name] = {"heads": {condition: [str(heads) for heads in draws] for condition, draws in sets.items()}}
        for method in ("zero", *get_args(UniformMethod)):
            ablation = run_ablation(model, samples, sets, method, batch_size=50, max_new_tokens=8)
            means = {
                condition: ablation.values[condition].nan_to_num().mean().item() for condition in ablation.conditions
            }
            results[name][method] = {condition: round(100 * mean, 1) for condition, mean in means.items()}
            print(name, method, results[name][method], flush=True)
    print(json.dumps({"benchmark": "masks", "results": results}))


if __name__ == "__main__":
    main()
