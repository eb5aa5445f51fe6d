"""Fixtures of the explorer. Nothing here imports corelens at module level: the shape checks must be in place first."""

from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from corelens import HeadScores, HookedMLLM, PreparedInputs, Sample
    from corelens.explorer import Explorer
    from corelens.explorer.state import ExplorerState


@pytest.fixture(scope="module")
def scenes() -> "list[Sample]":
    from corelens import toy

    return list(toy.scenes(4, seed=0))


@pytest.fixture(scope="module")
def scores() -> "HeadScores":
    from corelens import HeadScores

    values = torch.rand(3, 6, 16, generator=torch.Generator().manual_seed(0))
    return HeadScores(values, "retrieval attention mass", ("a", "b", "c"))


@pytest.fixture(scope="module")
def explorer(toy_model: "HookedMLLM", scenes: "list[Sample]", scores: "HeadScores") -> "Explorer":
    from corelens.explorer import Explorer

    return Explorer(toy_model, scenes, scores)


@pytest.fixture(scope="module")
def first(explorer: "Explorer") -> "ExplorerState":
    return explorer.first()


@pytest.fixture(scope="module")
def inputs(toy_model: "HookedMLLM", scenes: "list[Sample]") -> "PreparedInputs":
    return toy_model.prepare(list(scenes[0].images), scenes[0].question)
