"""Faithfulness of circuits by the rankings of every preset, single effects, gradients and elimination.

Heads are ranked on scenes and scored on others: the first heads of a ranking are kept, all others ablated from the
question on, and CPR and CMD are areas over the share of heads that is kept (`circuit_curves`). The circuit of the first
heads by single effects, and that by elimination, are then tested for minimality and completeness (`circuit_criteria`).

No time is measured. The last line is JSON, and the numbers carry over to other machines.

    python benchmarks/circuits.py [--model corelens/toy-worlds-organism] [--samples 40] [--heads 20] [--how resample]
                                   [--figure circuits.webp]
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

from transformers.utils import logging

from corelens import Head, HeadSet, HookedMLLM, Sample, run_sweep, scan_metrics, toy
from corelens.experiments.ablation import ReferenceMethod
from corelens.experiments.circuit_search import attribution_scores, eliminate_heads
from corelens.experiments.circuits import RANDOM, CircuitCriteria, circuit_criteria, circuit_curves
from corelens.metrics import PRESETS
from corelens.viz import faithfulness_curves

WRITE_NORM = "question_write_norm"
"""Length of what a head writes at the question's tokens: a ranking, and what tells heads that write nothing."""

SHOWN = ("elimination", "single effects", WRITE_NORM, "integrated gradients", "ram", "ram_last", RANDOM)
"""Rankings of the figure."""

TOLERANCE = 0.01
"""Faithfulness below which a head is called unneeded."""


def rankings(model: HookedMLLM, samples: Sequence[Sample], method: ReferenceMethod) -> dict[str, Sequence[Head]]:
    """Heads in the order of each preset, of what they write, and of causes."""
    scores = scan_metrics(model, samples, [*PRESETS, WRITE_NORM])
    scores["single effects"] = run_sweep(model, samples, method).scores()
    scores["attribution"] = attribution_scores(model, samples, "attribution_patch", method)
    scores["integrated gradients"] = attribution_scores(model, samples, "integrated_gradients", method)
    ranked: dict[str, Sequence[Head]] = {name: of_metric.ranked() for name, of_metric in scores.items()}
    return ranked | {"elimination": eliminate_heads(model, samples, method=method).heads}


def summary(found: CircuitCriteria) -> dict[str, Any]:
    """Criteria of a circuit, ready for JSON."""
    return {
        "heads": str(found.circuit),
        "faithfulness": round(found.faithfulness, 3),
        "unneeded": str(found.unneeded(TOLERANCE)),
        "minimality": [round(loss, 3) for loss in found.minimality.tolist()],
        "model without the circuit": round(float(found.model_without[0]), 3),
        "incompleteness": [round(distance, 3) for distance in found.incompleteness.tolist()],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="corelens/toy-worlds-organism")
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--heads", type=int, default=20)
    parser.add_argument("--how", choices=get_args(ReferenceMethod), default="resample")
    parser.add_argument("--figure", help="a picture of some rankings; needs kaleido")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    model = HookedMLLM.from_pretrained(arguments.model)
    ranked = rankings(model, list(toy.scenes(arguments.samples, 1)), arguments.how)
    others = list(toy.scenes(arguments.samples, 2))
    curves = circuit_curves(model, others, ranked, method=arguments.how)
    rows = [
        {name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()}
        | {
            f"{area} interval": [round(bound, 3) for bound in curves.interval(row["ranking"], area)]
            for area in ("cpr", "cmd")
        }
        for row in sorted(curves.table(), key=lambda row: -row["cpr"])
    ]
    for row in rows:
        print(row, flush=True)
    if arguments.figure:
        shown = replace(curves, values={name: curves.values[name] for name in SHOWN})
        faithfulness_curves(shown).write_image(arguments.figure, width=860, height=460, scale=2)
    circuits = {
        name: summary(
            circuit_criteria(model, others, HeadSet(tuple(ranked[name][: arguments.heads]), name), arguments.how)
        )
        for name in ("single effects", "elimination")
    }
    results = {
        "rankings": {name: [str(head) for head in heads[: arguments.heads]] for name, heads in ranked.items()},
        "random": [round(area, 3) for area in curves.area("random", "cpr").tolist()],
        "rows": rows,
        "circuits": circuits,
    }
    print(json.dumps({"benchmark": "circuits", **vars(arguments), "results": results}))


if __name__ == "__main__":
    main()
