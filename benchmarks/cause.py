"""Causal role of the top heads of the shipped models: three ablations, attention knockout, and patched heads.

On scenes of digits, for the top 5 percent of heads by retrieval attention mass of the question's tokens (`ram`) and of
the last one (`ram_last`):

- accuracy with them ablated by zero, mean and resample,
- accuracy with attention edges cut instead: from the question and the answer to the evidence, or to a region of the
  same size elsewhere; for the top heads, and for all,
- how often the answer becomes that of another scene with the same question, when the outputs of the top heads at the
  last token are patched from the other scene; compared with as many random heads, and all heads.

And how far the three ablations agree about all heads, ablated one by one: Spearman of the drops in the answer's
log-probability, and Jaccard of the 5 percent with the largest.

No time is measured. The last line is JSON, and the numbers carry over to other machines.

    python benchmarks/cause.py [--samples 200]
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from corelens import (
    Box,
    HeadSet,
    HookedMLLM,
    Sample,
    ablate,
    attention_knockout,
    evaluate,
    evidence_tokens,
    mean_activations,
    metrics,
    patch,
    prepare_batches,
    resample_activations,
    scan_metrics,
    sweep,
    toy,
)  # fmt: skip
from corelens.inputs.prepare import PreparedInputs
from corelens.toy.scene import SIDE

POSITIONS = "from_question"


Batches = Sequence[tuple[tuple[Sample, ...], PreparedInputs]]


Methods = dict[str, Callable[[HeadSet], Any]]
"""Hooks that ablate a set of heads, by method."""


def ablation_methods(model: HookedMLLM, n: int) -> Methods:
    references = list(toy.scenes(n, 4))
    return {
        "zero": partial(ablate, positions=POSITIONS),
        "mean": partial(ablate, method="mean", reference=mean_activations(model, references), positions=POSITIONS),
        "resample": partial(
            ablate, method="resample", reference=resample_activations(model, references), positions=POSITIONS
        ),
    }


def agreement_of_methods(model: HookedMLLM, methods: Methods, n: int) -> dict[str, Any]:
    """Agreement of the methods about single heads."""
    drops = {
        name: sweep(model, toy.scenes(n // 4, 5), method, batch_size=10, at_once=8).scores()
        for name, method in methods.items()
    }
    agreement = {
        f"{first} and {second}": {
            "all": metrics.spearman(drops[first].per_head, drops[second].per_head),
            "top": metrics.jaccard(set(drops[first].top()), set(drops[second].top())),
        }
        for first, second in combinations(drops, 2)
    }
    top_heads = {name: str(scores.top()) for name, scores in drops.items()}
    return {"agreement": agreement, "top by drop": top_heads}


def box_elsewhere(sample: Sample, rng: np.random.Generator) -> Box:
    """Draw a box of the evidence's size that does not touch it."""
    box = sample.evidence[0].box
    assert box is not None
    width, height = box.right - box.left, box.bottom - box.top
    while True:
        left, top = rng.integers(0, SIDE - width), rng.integers(0, SIDE - height)
        if abs(left - box.left) > width + 16 or abs(top - box.top) > height + 16:
            return Box(float(left), float(top), float(left + width), float(top + height))


def knockout_results(model: HookedMLLM, core: HeadSet, batches: Batches) -> dict[str, float]:
    """Accuracy without the attention edges to the evidence, and to a region of the same size elsewhere."""
    rng = np.random.default_rng(0)
    scores: dict[str, list[float]] = defaultdict(list)
    all_heads = HeadSet(model.heads)
    for samples, inputs in batches:
        evidence = evidence_tokens(samples, inputs.tokens)
        boxes = [box_elsewhere(sample, rng) for sample in samples]
        elsewhere = torch.cat([inputs.tokens[index].in_box(box) for index, box in enumerate(boxes)])
        for name, heads, keys in (
            ("top heads to evidence", core, evidence),
            ("top heads elsewhere", core, elsewhere),
            ("all heads to evidence", all_heads, evidence),
            ("all heads elsewhere", all_heads, elsewhere),
        ):
            hooks = attention_knockout(heads, POSITIONS, keys)
            scores[name] += evaluate(model, [(samples, inputs)], hooks).scores.tolist()
    return {name: float(np.mean(values)) for name, values in scores.items()}


def scene_pairs(n: int) -> Iterator[tuple[Sample, Sample]]:
    """Pairs of scenes with the same question and different answers."""
    unpaired: dict[str, Sample] = {}
    for sample in toy.scenes(20 * n, 6):
        other = unpaired.pop(sample.question, None)
        if other is None or other.answer == sample.answer:
            unpaired[sample.question] = sample
        elif n:
            n -= 1
            yield other, sample


def patching_results(model: HookedMLLM, sets: dict[str, HeadSet], n: int) -> dict[str, float]:
    """Share of the answers that become the source's when the outputs of a set of heads are patched."""
    flips: dict[str, list[bool]] = defaultdict(list)
    for source, target in scene_pairs(n):
        source_inputs, target_inputs = (model.prepare(sample.images[0], sample.question) for sample in (source, target))
        with torch.no_grad():
            _, cache = model.run_with_cache(source_inputs, names_filter=model.attn_names("z"))
        for name, heads in sets.items():
            hooks = patch(cache, source_inputs.tokens, target_inputs.tokens, "z", heads=heads, positions="last")
            with model.hooks(fwd_hooks=hooks):
                flips[name] += [model.answer(target_inputs, 4) == [source.answer]]
    return {name: float(np.mean(values)) for name, values in flips.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=200)
    n = parser.parse_args().samples
    logging.set_verbosity_error()
    results: dict[str, Any] = {}
    for name in ("corelens/toy", "corelens/toy-natural"):
        model = HookedMLLM.from_pretrained(name)
        methods = ablation_methods(model, n)
        batches = list(prepare_batches(model, toy.scenes(n, 2), 50, "prepare"))
        results[name] = {"plain accuracy": evaluate(model, batches).accuracy}
        for metric, scores in scan_metrics(model, toy.scenes(n, 1), ("ram", "ram_last")).items():
            core = scores.top()
            sets = {"top": core, "random": scores.random(0), "all": HeadSet(model.heads)}
            results[name][f"top by {metric}"] = {
                "heads": str(core),
                "accuracy": {of: evaluate(model, batches, method(core)).accuracy for of, method in methods.items()},
                "edges": knockout_results(model, core, batches),
                "answers moved by patching": patching_results(model, sets, n // 2),
            }
        results[name] |= agreement_of_methods(model, methods, n)
        print(f"\n{name}\n{json.dumps(results[name], indent=1)}", flush=True)
    print(json.dumps({"benchmark": "cause", "results": results}))


if __name__ == "__main__":
    main()
