"""The public operations on a simulated device: every tensor is made where the model is, and brought back to be read."""

import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch.testing import assert_close

from corelens import (
    Head,
    HeadSet,
    HookedMLLM,
    ablate,
    append_answers,
    attention_knockout,
    attribution_patch,
    attribution_scores,
    circuit_criteria,
    circuit_curves,
    cut_route,
    eliminate_heads,
    grad_drop,
    integrated_gradients,
    key_routes,
    mean_activations,
    ov_by_route,
    patch,
    qk_attribution,
    rank_pages,
    resample_activations,
    self_repair,
)
from corelens.experiments.ablation import run_ablation
from corelens.experiments.key_tokens import scan_key_tokens
from corelens.experiments.scan import scan_metrics
from corelens.experiments.sparse_eval import run_sparse_eval
from corelens.experiments.sweep import run_sweep
from corelens.explorer import Explorer
from corelens.explorer.state import ExplorerState
from corelens.sparse import HeadPlan, StreamingBlocks, TopBlocks, apply, hybrid
from tests.helpers import processors, tiny
from tests.helpers.questions import samples
from tests.helpers.simulated_device import NAME, SimulatedTensor, simulated_device, to_device

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


def gradients(model: HookedMLLM, inputs: Any) -> Any:
    answered, other = (
        append_answers(model, inputs, ["seven"]),
        model.prepare(samples(2)[1].images[0], samples(1)[0].question),
    )
    _, cache = model.run_with_cache(other, names_filter=model.attn_names("z"))
    estimates = [
        estimate(model, cache, other.tokens, answered, positions="last")
        for estimate in (attribution_patch, integrated_gradients, grad_drop)
    ]
    scores = attribution_scores(model, samples(2)).values.nan_to_num()
    return [estimate.detach() for estimate in [*estimates, scores]]


def circuits(model: HookedMLLM, inputs: Any) -> Any:
    ranking = eliminate_heads(model, samples(2), 0.5)
    curves = circuit_curves(model, samples(2), {"elimination": ranking}, (2,), seeds=(0,))
    criteria = circuit_criteria(model, samples(2), HeadSet(ranking.heads[:2]), seeds=(0,))
    return curves.values["elimination"], criteria.minimality


def patched(model: HookedMLLM, inputs: Any) -> Any:
    _, cache = model.run_with_cache(inputs)
    other = model.prepare(samples(2)[1].images[0], samples(1)[0].question)
    return under(patch(cache, inputs.tokens, other.tokens, "z", heads=HEADS, positions="last"), model, other)


def after_prefix(model: HookedMLLM, inputs: Any) -> Any:
    prefix = model.prefix(inputs)
    return model(inputs, prefix=prefix), model.generate(inputs, prefix=prefix, max_new_tokens=2, do_sample=False)


def under_plans(model: HookedMLLM, inputs: Any) -> Any:
    plans = hybrid(HEADS, 4, 8), HeadPlan({}, StreamingBlocks(1, 1, 4)), HeadPlan({}, TopBlocks(0.9))
    tokens = []
    for plan in plans:
        with apply(model, plan, force=True):
            tokens.append(model.generate(inputs, max_new_tokens=3, do_sample=False, num_beams=2))
    return tokens


def resumed(model: HookedMLLM, inputs: Any) -> Any:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        patched.setattr("corelens.experiments.scan.SHARD_SIZE", 1)
        scan_metrics(model, samples(2), out=f"{folder}/run")
        Path(f"{folder}/run/parts/00001.parquet").unlink()
        return scan_metrics(model, samples(2), out=f"{folder}/run")["ram"].values


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
    "resample": lambda model, inputs: under(
        ablate(HEADS, "resample", reference=resample_activations(model, samples(3))), model, inputs
    ),
    "patch": patched,
    "gradients": gradients,
    "after a prefix": after_prefix,
    "under plans": under_plans,
    "scan": scanned,
    "resumed scan": resumed,
    "key tokens": lambda model, inputs: scan_key_tokens(model, samples(2), {"top": [HEADS]}).ratios.values,
    "pages": lambda model, inputs: rank_pages(model, samples(2), {"top": HEADS}).scores["top"],
    "sweep": lambda model, inputs: run_sweep(model, samples(1)).values,
    "circuits": circuits,
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


def two_devices(hf_model: Any) -> None:
    """As `device_map` spreads a model: the last layer and what follows it on the second device."""
    decoder = hf_model.get_decoder()
    second = [decoder.layers[-1], decoder.norm, hf_model.get_output_embeddings()]
    for module in second:
        to_device(module, 1)
    to_device(hf_model)
    for module in second:
        add_hook_to_module(module, AlignDevicesHook(torch.device(NAME, 1)))
    add_hook_to_module(hf_model, AlignDevicesHook(torch.device(NAME, 0), io_same_device=True))


class OffloadedWeights(AlignDevicesHook):
    """accelerate's hook of a module whose weights are elsewhere; its own makes no parameters of a class of tensors."""

    def init_hook(self, module: Any) -> Any:
        self.offload = True
        self.stored = {name: weight.data for name, weight in module._parameters.items() if weight is not None}
        self.post_forward(module, None)
        return module

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        for name, weight in self.stored.items():
            module._parameters[name] = torch.nn.Parameter(SimulatedTensor(weight), requires_grad=False)
        return args, kwargs

    def post_forward(self, module: Any, output: Any) -> Any:
        for name, weight in self.stored.items():
            module._parameters[name] = torch.nn.Parameter(weight.to("meta"), requires_grad=False)
        return output


def offloaded(hf_model: Any) -> None:
    """As `device_map` with `disk` or `cpu` leaves a model: a layer's weights come when it runs."""
    for part in hf_model.get_decoder().layers[1].modules():
        if part._parameters:
            add_hook_to_module(part, OffloadedWeights(torch.device(NAME, 0)))
    to_device(hf_model)


PLACES: dict[str, Callable[[Any], Any]] = {"one": to_device, "two": two_devices, "offloaded": offloaded}
"""Places of a model, and what puts it there."""


def failures(geometry: str, place: str, operations: Iterable[str]) -> dict[str, str]:
    """Operations that fail or give other numbers at a place, each with the reason."""
    name = GEOMETRIES[geometry]
    model = HookedMLLM(tiny.build(name), processors.build(name))
    sample = samples(1)[0]
    failed = {}

    def numbers(operation: str) -> Any:
        inputs = model.prepare(sample.images[0], sample.question)
        with torch.set_grad_enabled(operation == "gradients"):
            return OPERATIONS[operation](model, inputs)

    with simulated_device():
        expected = {operation: numbers(operation) for operation in operations}
        PLACES[place](model.hf_model)
        model = HookedMLLM(model.hf_model, model.processor)
        for operation in operations:
            try:
                found = torch.utils._pytree.tree_map_only(torch.Tensor, torch.Tensor.cpu, numbers(operation))
                assert_close(found, expected[operation], atol=1e-5, rtol=1e-4)
            except Exception as cause:
                failed[operation] = f"{type(cause).__name__}: {cause}"
    return failed


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("geometry", "place"),
    [
        *((geometry, "one") for geometry in GEOMETRIES),
        *(("whole_picture", place) for place in PLACES if place != "one"),
    ],
)
def test_every_operation_runs_where_the_model_is(geometry: str, place: str):
    assert not failures(geometry, place, [operation for operation in OPERATIONS if operation != "gradients"])


@pytest.mark.parametrize("place", ["one", "offloaded"])
def test_gradients_run_where_the_model_is(place: str):
    """In a process of its own: autograd knows what devices there were when it first ran, and one of this kind."""
    program = f"from tests.test_devices import failures; print(failures('whole_picture', {place!r}, ['gradients']))"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.stdout.strip() == "{}", ran.stdout + ran.stderr
