"""The vision tower need not run again for what it has seen."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from corelens import Head, HookedMLLM, ablate
from corelens.hf.module_outputs import cached_vision, vision_towers
from tests.helpers import tiny
from tests.hf.test_architecture import SUPPORTED, build, wrap


def counted(module: nn.Module) -> list[int]:
    """Number of runs of the first part of a module, as its only element."""
    calls, part = [0], next(module.children())

    def count(*_: Any) -> None:
        calls[0] += 1

    part.register_forward_pre_hook(count)
    return calls


@torch.no_grad()
@pytest.mark.parametrize("name", SUPPORTED)
def test_seeing_once_is_seeing_every_time_under_every_intervention(name: str):
    model = wrap(build(name))
    batches = [tiny.batch(name, seed=seed) for seed in (3, 4)]
    point = "o_in" if name == "kosmos-2" else "z"  # What its heads find is normalised together.

    def logits() -> Iterator[Any]:
        for heads in ([], [model.heads[0]]):
            with model.hooks(fwd_hooks=ablate(heads, point=point)):
                yield from (model(inputs) for inputs in batches)

    expected = [*logits()]
    assert not torch.equal(expected[0], expected[2]), "the intervention changes something"
    with cached_vision(model.hf_model):
        for _ in range(2):
            assert all(map(torch.equal, logits(), expected))
    assert all("forward" not in vars(tower) for tower in vision_towers(model.hf_model))


@torch.no_grad()
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_tower_runs_once_for_every_picture(family: str):
    model = HookedMLLM(tiny.build(family))
    one, other = (tiny.batch(family, seed=seed) for seed in (3, 4))
    (calls,) = map(counted, vision_towers(model.hf_model))

    def told() -> Iterator[Any]:
        for heads in ([Head(0, 0)], [Head(1, 1)]):
            with model.hooks(fwd_hooks=ablate(heads)):
                for inputs in (one, other):
                    yield model.generate(tiny.generation_inputs(family, inputs), max_new_tokens=3, do_sample=False)

    expected = [*told()]
    every_time, calls[0] = calls[0], 0
    with cached_vision(model.hf_model):
        assert all(map(torch.equal, told(), expected))
    assert calls[0] == every_time / 2
