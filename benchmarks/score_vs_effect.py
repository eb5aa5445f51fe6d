"""Comparison of head scores by how well they predict the effect of removing heads, on the shipped models.

Every metric is scanned on scenes of digits; on other scenes every head is zeroed by itself from the question on, and
the top 5 percent by each metric together, in prefill and decoding. For each metric:

- rank correlation (Spearman, over all heads) with the drop in the log-probability of the answer,
- the share of all positive drops that its top 5 percent hold, and the most that any five heads hold,
- accuracy with its top 5 percent removed; lower is better.

No time is measured. The last line is JSON, and the numbers carry over to other machines.

    python benchmarks/score_vs_effect.py [--samples 200]
"""

import argparse
import json
from typing import Any

from transformers.utils import logging

from corelens import HookedMLLM, ablate, evaluate, metrics, prepare_batches, toy
from corelens.experiments.scan import scan_metrics
from corelens.experiments.sweep import sweep

METRICS = (
    "ram", "ram_last", "vrh", "write_ram", "answer_ram", "locos", "vera", "mmrethead", "sparsemm", "relative_attention",
    "localization", "vision_heads",
)  # fmt: skip


def compare_metrics(name: str, n: int) -> dict[str, Any]:
    """Compare the metrics on one model."""
    model = HookedMLLM.from_pretrained(name)
    scores_by_metric = scan_metrics(model, toy.scenes(n, 1), METRICS)
    drops = sweep(model, toy.scenes(n, 2), batch_size=20, at_once=8).scores().per_head.clamp(min=0)
    batches = list(prepare_batches(model, toy.scenes(n, 3), 50, "prepare"))
    ordered = drops.flatten().sort(descending=True).values
    n_top = len(scores_by_metric["ram"].top())
    result: dict[str, Any] = {
        "nothing removed": evaluate(model, batches).accuracy,
        "most that so many heads hold": float(ordered[:n_top].sum() / ordered.sum()),
    }
    for metric, scores in scores_by_metric.items():
        top = scores.top()
        result[metric] = {
            "spearman": metrics.spearman(scores.per_head, drops),
            "share of drops": float(sum(drops[head] for head in top) / ordered.sum()),
            "accuracy": evaluate(model, batches, ablate(top)).accuracy,
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=200)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    results = {}
    for name in ("corelens/toy", "corelens/toy-natural"):
        results[name] = result = compare_metrics(name, arguments.samples)
        print(f"\n{name}: accuracy {result['nothing removed']:.3f}; any heads hold at most "
              f"{result['most that so many heads hold']:.2f} of the drops")  # fmt: skip
        print(f"{'metric':>20} {'spearman':>9} {'share of drops':>15} {'accuracy':>9}")
        for metric in METRICS:
            row = result[metric]
            print(f"{metric:>20} {row['spearman']:>9.2f} {row['share of drops']:>15.2f} {row['accuracy']:>9.3f}")
    print(json.dumps({"benchmark": "score_vs_effect", "results": results}))


if __name__ == "__main__":
    main()
