"""How often heads that are pushed to another digit make it the answer, by strength, beside heads that write as much.

On pairs of questions about two digits of a scene (`toy.scene_pairs`): the first is asked while a number is added to the
attention logits of the heads, from the question on, towards the box of the second. Heads are the top ones by retrieval
attention mass from the last prompt token (`ram_last`), measured on other scenes; the controls are draws of other heads
that write as much there (`write_matched_random`).

No time is measured. The last line is JSON, and the numbers carry over to other machines.

    python benchmarks/steering.py [--heads 5] [--pairs 40] [--draws 3]
"""

import argparse
import json

from transformers.utils import logging

from corelens import HeadSet, HookedMLLM, scan_metrics, steering_curve, toy
from corelens.experiments.controls import write_matched_random

STRENGTHS = (1, 2, 4, 8)
WRITE_NORM = "write_norm"
"""Length of what a head writes at the last prompt token, which ranks the heads, too."""


def conditions(model: HookedMLLM, n_heads: int, n_draws: int) -> dict[str, list[HeadSet]]:
    """The top heads, and draws of others that write as much."""
    scores = scan_metrics(model, list(toy.scenes(40, 1)), ("ram_last", WRITE_NORM))
    top = scores["ram_last"].top(n_heads)
    return {"top": [top], "write-matched": write_matched_random(top, scores[WRITE_NORM], range(n_draws))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--draws", type=int, default=3)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    model = HookedMLLM.from_pretrained("corelens/toy-worlds")
    sets = conditions(model, arguments.heads, arguments.draws)
    pairs = list(toy.scene_pairs(arguments.pairs, 2))
    curve = steering_curve(model, pairs, sets, STRENGTHS, batch_size=40, max_new_tokens=3)
    for row in curve.table():
        print(row, flush=True)
    results = {
        "heads": {kind: [str(heads) for heads in draws] for kind, draws in sets.items()},
        "rows": curve.table(),
        "intervals of the gain": {
            kind: [curve.success(kind, strength).interval() for strength in STRENGTHS] for kind in curve.to_target
        },
    }
    print(json.dumps({"benchmark": "steering", "results": results}))


if __name__ == "__main__":
    main()
