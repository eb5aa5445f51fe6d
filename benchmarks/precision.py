"""Deviation of attention patterns from those of float64, by family and type of numbers.

Five families of random weights (those of `unhooked_overhead.py`; queries and keys doubled, so that heads look
somewhere), one picture and 320 positions. The truth is a float64 model of the same weights and inputs, rounded to the
type that is measured, under eager attention. Given is the largest deviation of any attention of any head and query, in
the first layer, where queries and keys are the same but for rounding, and in all twelve, where that of the residual
stream adds up: of the rows that corelens computes beside fused attention, and of the patterns that Hugging Face's eager
attention returns. `autocast` is a float32 model under torch.autocast to bfloat16. The last line is JSON.

    python benchmarks/precision.py
"""

import copy
import json
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging
from unhooked_overhead import FAMILIES, random_model

from corelens import HookedMLLM

TYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "autocast": torch.float32,
}
"""Types of numbers of the language model, by the name of the column."""


def converted(inputs: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Inputs whose pixels have a type."""
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}


def eager_patterns(hf_model: PreTrainedModel, inputs: dict[str, Tensor]) -> Sequence[Tensor]:
    """Patterns of every layer that eager attention returns."""
    before = hf_model.config.get_text_config()._attn_implementation
    hf_model.set_attn_implementation("eager")
    patterns = hf_model(**inputs, output_attentions=True).attentions
    hf_model.set_attn_implementation(before)
    return patterns


def deviations(patterns: Sequence[Tensor], truth: Sequence[Tensor]) -> list[float]:
    """Largest deviation in the first layer, and in all."""
    by_layer = [(pattern.double() - true).abs().max().item() for pattern, true in zip(patterns, truth, strict=True)]
    return [by_layer[0], max(by_layer)]


@torch.no_grad()
def measure(family: str, name: str) -> dict[str, list[float]]:
    """Deviations of corelens's rows and of eager attention's patterns."""
    hf_model, inputs = random_model(family)
    for path, parameter in hf_model.get_decoder().named_parameters():
        if path.endswith(("q_proj.weight", "k_proj.weight")):
            parameter.mul_(2)
    hf_model, inputs = hf_model.to(TYPES[name]), converted(inputs, TYPES[name])
    truth = eager_patterns(copy.deepcopy(hf_model).double(), converted(inputs, torch.float64))
    with torch.autocast("cpu", torch.bfloat16) if name == "autocast" else nullcontext():
        model = HookedMLLM(hf_model)
        _, cache = model.run_with_cache(inputs, names_filter=model.attn_names("pattern"))
        rows = [cache["pattern", layer] for layer in range(model.cfg.n_layers)]
        assert all(pattern.dtype == torch.float32 for pattern in rows)
        return {"corelens": deviations(rows, truth), "eager": deviations(eager_patterns(hf_model, inputs), truth)}


def main() -> None:
    logging.set_verbosity_error()
    results: dict[str, dict[str, dict[str, list[float]]]] = {}
    for family in FAMILIES:
        results[family] = {}
        for name in TYPES:
            results[family][name] = measure(family, name)
            print(family, name, results[family][name], flush=True)
    print(json.dumps({"benchmark": "precision", "results": results}))


if __name__ == "__main__":
    main()
