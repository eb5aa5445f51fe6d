"""Rankings of the shipped models' heads where boxes become tokens as the paper prints it, beside where they are.

For each kind of pictures, heads are ranked by retrieval attention mass over the same samples, once with the tokens that
the evidence's box overlaps and once with those of equation 5 (`rule="as_published"`): Spearman of the two rankings over
all heads, how many of the top 5 percent they share, and the Jaccard index of the two sets of tokens. As a yardstick,
the first ranking is also compared with one from as many other samples.

No time is measured. The last line is JSON, and the numbers carry over to other machines.

    python benchmarks/published_boxes.py [--samples 100]
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from transformers.utils import logging

from corelens import HeadScores, HookedMLLM, Sample, evidence_tokens, prepare_batches, scan, toy
from corelens.experiments.comparison import compare_rankings

MODELS = {
    "corelens/toy": ["scenes"],
    "corelens/toy-natural": ["scenes"],
    "corelens/toy-worlds": ["scenes", "toy-shapes", "toy-pages", "toy-bars"],
}
"""Models, and the pictures that they know."""


def agreement(first: HeadScores, second: HeadScores) -> dict[str, Any]:
    """Spearman of two rankings of all heads, and the number of heads in the top 5 percent of both."""
    comparison = compare_rankings(first, second, 0.05)
    assert comparison.ranks is not None  # all heads have scores
    return {"spearman": round(comparison.ranks.spearman, 2), "shared": comparison.overlap.shared}


def token_jaccard(model: HookedMLLM, samples: Sequence[Sample]) -> float:
    """Jaccard index of the tokens that boxes overlap and those of equation 5, over all samples together."""
    n_both = n_either = 0
    for batch, inputs in prepare_batches(model, samples, 20, "tokens"):
        true, published = (evidence_tokens(batch, inputs.tokens, rule) for rule in ("overlap", "as_published"))
        n_both += int((true & published).sum())
        n_either += int((true | published).sum())
    return n_both / n_either


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100)
    n = parser.parse_args().samples
    logging.set_verbosity_error()
    results: dict[str, Any] = {}
    for name, worlds in MODELS.items():
        model = HookedMLLM.from_pretrained(name)
        for world in worlds:
            samples, others = (list(toy.SAMPLES[world](n, seed)) for seed in (0, 1))
            true = scan(model, samples)
            results[f"{name} {world}"] = {
                "as published": agreement(true, scan(model, samples, rule="as_published")),
                "other samples": agreement(true, scan(model, others)),
                "tokens, Jaccard": round(token_jaccard(model, samples), 2),
                "top 5 percent": len(true.top(0.05)),
                "heads": len(model.heads),
            }
            print(f"{name} {world}: {json.dumps(results[f'{name} {world}'])}", flush=True)
    print(json.dumps({"benchmark": "published boxes", "samples": n, "results": results}))


if __name__ == "__main__":
    main()
