"""Whether the top heads cause the answers of the shipped models: three ablations, cut edges, and patched heads.

On scenes of digits, for the top 5 percent of heads by retrieval attention mass:

- accuracy with them ablated by zero, mean and resample; and how far the three agree about all heads, ablated one by one
  (Spearman of the drops in the answer's log-probability, and Jaccard of the 5 percent with the largest),
- accuracy with edges cut instead: from the question and the answer to the evidence, or to a region of the same size
  elsewhere; for the top heads, and for all,
- how often the answer becomes that of another scene with the same question, when the outputs of the top heads at the
  last token are those of the other scene; beside as many random heads, and all heads.

No time is measured: the last line is JSON, and the numbers carry over to other machines.

    python benchmarks/cause.py [--samples 200]
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
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
    scan,
    sweep,
    toy,
)  # fmt: skip
from corelens.toy.scene import SIDE

POSITIONS = "from_question"


def ablations(model: HookedMLLM, core: HeadSet, n: int, batches: Any) -> dict[str, Any]:
    others = list(toy.scenes(n, 4))
    ways: dict[str, Callable[[HeadSet], Any]] = {
        "zero": partial(ablate, positions=POSITIONS),
        "mean": partial(ablate, method="mean", reference=mean_activations(model, others), positions=POSITIONS),
        "resample": partial(
            ablate, method="resample", reference=resample_activations(model, others), positions=POSITIONS
        ),
    }
    accuracy = {name: evaluate(model, batches, way(core)).accuracy for name, way in ways.items()}
    drops = {
        name: sweep(model, toy.scenes(n // 4, 5), way, batch_size=10, at_once=8).scores() for name, way in ways.items()
    }
    agreed = {
        f"{a} and {b}": {
            "all": metrics.spearman(drops[a].per_head, drops[b].per_head),
            "top": metrics.jaccard(set(drops[a].top()), set(drops[b].top())),
        }
        for a, b in combinations(drops, 2)
    }
    top = {name: str(own.top()) for name, own in drops.items()}
    return {"accuracy": accuracy, "agreement": agreed, "top by drop": top}


def elsewhere(sample: Sample, rng: np.random.Generator) -> Box:
    """A box of the evidence's size that does not touch it."""
    box = sample.evidence[0].box
    assert box is not None
    width, height = box.right - box.left, box.bottom - box.top
    while True:
        left, top = rng.integers(0, SIDE - width), rng.integers(0, SIDE - height)
        if abs(left - box.left) > width + 16 or abs(top - box.top) > height + 16:
            return Box(float(left), float(top), float(left + width), float(top + height))


def edges(model: HookedMLLM, core: HeadSet, batches: Any) -> dict[str, float]:
    rng = np.random.default_rng(0)
    found: dict[str, list[float]] = defaultdict(list)
    everything = HeadSet(model.heads)
    for samples, inputs in batches:
        evidence = evidence_tokens(samples, inputs.tokens)
        boxes = [elsewhere(sample, rng) for sample in samples]
        other = torch.cat([inputs.tokens[i].in_box(box) for i, box in enumerate(boxes)])
        for name, heads, keys in (
            ("top heads to evidence", core, evidence),
            ("top heads elsewhere", core, other),
            ("all heads to evidence", everything, evidence),
            ("all heads elsewhere", everything, other),
        ):
            found[name] += evaluate(
                model, [(samples, inputs)], attention_knockout(heads, POSITIONS, keys)
            ).scores.tolist()
    return {name: float(np.mean(scores)) for name, scores in found.items()}


def pairs(n: int) -> Iterator[tuple[Sample, Sample]]:
    """Scenes with the same question and different answers."""
    waiting: dict[str, Sample] = {}
    for sample in toy.scenes(20 * n, 6):
        other = waiting.pop(sample.question, None)
        if other is None or other.answer == sample.answer:
            waiting[sample.question] = sample
        elif n:
            n -= 1
            yield other, sample


def patching(model: HookedMLLM, sets: dict[str, HeadSet], n: int) -> dict[str, float]:
    moved: dict[str, list[bool]] = defaultdict(list)
    for source, target in pairs(n):
        one, other = (model.prepare(sample.images[0], sample.question) for sample in (source, target))
        with torch.no_grad():
            _, cache = model.run_with_cache(one, names_filter=model.attn_names("z"))
        for name, heads in sets.items():
            hooks = patch(cache, one.tokens, other.tokens, "z", heads=heads, positions="last")
            with model.hooks(fwd_hooks=hooks):
                moved[name] += [model.answer(other, 4) == [source.answer]]
    return {name: float(np.mean(found)) for name, found in moved.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=200)
    n = parser.parse_args().samples
    logging.set_verbosity_error()
    results: dict[str, Any] = {}
    for name in ("corelens/toy", "corelens/toy-natural"):
        model = HookedMLLM.from_pretrained(name)
        scores = scan(model, toy.scenes(n, 1))
        core = scores.top()
        batches = list(prepare_batches(model, toy.scenes(n, 2), 50, "prepare"))
        sets = {"top": core, "random": scores.random(0), "all": HeadSet(model.heads)}
        results[name] = {
            "plain accuracy": evaluate(model, batches).accuracy,
            "ablations": ablations(model, core, n, batches),
            "edges": edges(model, core, batches),
            "answers moved by patching": patching(model, sets, n // 2),
        }
        print(f"\n{name}\n{json.dumps(results[name], indent=1)}", flush=True)
    print(json.dumps({"benchmark": "cause", "results": results}))


if __name__ == "__main__":
    main()
