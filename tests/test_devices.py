"""The public operations on a simulated device: every tensor is made where the model is, and brought back to be read."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from corelens import (
    Head,
    HeadSet,
    HookedMLLM,
    ablate,
    append_answers,
    attention_knockout,
    cut_route,
    key_routes,
    mean_activations,
    ov_by_route,
    qk_attribution,
    rank_pages,
    self_repair,
)
from corelens.experiments.ablation import run_ablation
from corelens.experiments.key_tokens import scan_key_tokens
from corelens.experiments.scan import scan_metrics
from corelens.experiments.sparse_eval import run_sparse_eval
from corelens.experiments.sweep import run_sweep
from corelens.explorer import Explorer
from corelens.explorer.state import ExplorerState
from corelens.sparse.plan import hybrid
from tests.helpers import processors, tiny
from tests.helpers.questions import samples
from tests.helpers.simulated_device import simulated_device, to_device

HEADS = HeadSet((Head(0, 1), Head(1, 0)))
GEOMETRIES = {
    "whole_picture": "qwen3_vl",
    "resized_picture_or_tiles": "llava",
    "square_tiles": "internvl",
}
"""Token geometries, each with a model of it; many others have processors that need torchvision."""


def under(hooks: Any, model: HookedMLLM, inputs: Any) -> Any:
    return model.run_with_hooks(inputs, fwd_hooks=hooks)


def rows(model: HookedMLLM, inputs: Any) -> Any:
    _, cache = model.run_with_cache(inputs, queries=inputs.tokens.last)
    return cache["pattern", 0], cache["z", 1], cache["resid_post", 1]


def scanned(model: HookedMLLM, inputs: Any) -> Any:
    metrics = ["ram", "ram_last", "write_ram", "entropy", "sink_share", "write_norm"]
    return [scores.values.nan_to_num() for scores in scan_metrics(model, samples(2), metrics).values()]


def why(model: HookedMLLM, inputs: Any) -> Any:
    answered = append_answers(model, inputs, ["seven"])
    why_it_looks = qk_attribution(model, inputs, Head(1, 0), "last", "image", against="question").values
    routes = ov_by_route(model, answered, HEADS, key_routes(answered.tokens)).values
    return why_it_looks, routes, self_repair(model, answered, ablate(HEADS)).changes


OPERATIONS: dict[str, Callable[[HookedMLLM, Any], Any]] = {
    "forward": lambda model, inputs: model(inputs),
    "rows": rows,
    "generate": lambda model, inputs: model.generate(inputs, max_new_tokens=2, do_sample=False),
    "zero": partial(under, ablate(HEADS)),
    "uniform": partial(under, ablate(HEADS, "uniform")),
    "mean": lambda model, inputs: under(
        ablate(HEADS, "mean", reference=mean_activations(model, samples(2))), model, inputs
    ),
    "knockout": partial(under, attention_knockout(HEADS, "last", "image")),
    "cut route": partial(under, cut_route(HEADS, "last", "image")),
    "why": why,
    "scan": scanned,
    "key tokens": lambda model, inputs: scan_key_tokens(model, samples(2), {"top": [HEADS]}).ratios.values,
    "pages": lambda model, inputs: rank_pages(model, samples(2), {"top": HEADS}).scores["top"],
    "sweep": lambda model, inputs: run_sweep(model, samples(1)).values,
    "ablation": lambda model, inputs: run_ablation(
        model, samples(1), {"top": [HEADS]}, max_new_tokens=2
    ).values["top"].nan_to_num(),
    "sparse": lambda model, inputs: run_sparse_eval(
        model, samples(1), {"plan": [hybrid(HEADS, 4, 8)]}, max_new_tokens=2
    ).recall["plan"],
    "explorer": lambda model, inputs: torch.tensor(
        Explorer(model, samples(1)).view(ExplorerState("s0", metric="entropy"))["map"]
    ),
}  # fmt: skip
"""Public operations, each as a function of a model and a prompt that returns numbers."""


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_every_operation_runs_where_the_model_is(geometry: str):
    name = GEOMETRIES[geometry]
    model = HookedMLLM(tiny.build(name), processors.build(name))
    sample = samples(1)[0]
    failed = {}

    def numbers(operation: str) -> Any:
        inputs = model.prepare(sample.images[0], sample.question)
        with torch.no_grad():
            return OPERATIONS[operation](model, inputs)

    expected = {operation: numbers(operation) for operation in OPERATIONS}
    with simulated_device():
        model = HookedMLLM(to_device(model.hf_model), model.processor)
        for operation in OPERATIONS:
            try:
                found = torch.utils._pytree.tree_map_only(torch.Tensor, torch.Tensor.cpu, numbers(operation))
                assert_close(found, expected[operation], atol=1e-5, rtol=1e-4)
            except Exception as cause:
                failed[operation] = f"{type(cause).__name__}: {cause}"
    assert not failed, "\n".join(f"{operation}: {reason}" for operation, reason in failed.items())
