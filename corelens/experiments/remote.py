"""Models elsewhere: what an experiment needs of its model, in this process or in others."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from corelens.data import Sample
from corelens.experiments.fingerprint import model_fingerprint
from corelens.experiments.run_folder import Shard
from corelens.model import HookedMLLM

Result = TypeVar("Result")

DatasetSamples = Sequence[tuple[str, Sample]]
"""Samples, each with the name of its data set."""

Evaluate = Callable[[list[Sample]], Mapping[str, Float[Tensor, "batch *units"]]]
"""Computes the results of a batch, by name; raises `SampleError` if a sample of it cannot be evaluated."""

Evaluator = Callable[[HookedMLLM], Evaluate]
"""Returns the function that evaluates batches with a model; called once in each process that evaluates any."""

ShardFunction = Callable[[DatasetSamples, Evaluate], Shard]
"""Evaluates the samples of a shard."""


@runtime_checkable
class RemoteModel(Protocol):
    """A model that other processes hold, such as `corelens.experiments.ray.RayModel`. Functions travel to it."""

    def call(self, function: Callable[[HookedMLLM], Result]) -> Result:
        """Return what a function of the model returns."""
        ...

    def changed(self, function: Callable[[HookedMLLM], HookedMLLM]) -> "RemoteModel":
        """The model that a function of this one returns."""
        ...

    def map_shards(
        self,
        evaluator: Evaluator,
        function: ShardFunction,
        shard_samples: Mapping[int, DatasetSamples],
        fingerprint: Mapping[str, Any],
    ) -> Iterator[tuple[int, Shard]]:
        """Evaluate the samples of each shard, and yield the shards with their numbers, in any order."""
        ...


AnyModel = HookedMLLM | RemoteModel
"""A model in this process, or one that others hold."""


def call(model: AnyModel, function: Callable[[HookedMLLM], Result]) -> Result:
    """Return what a function of the model returns, wherever that is."""
    return function(model) if isinstance(model, HookedMLLM) else model.call(function)


def changed(model: AnyModel, function: Callable[[HookedMLLM], HookedMLLM]) -> AnyModel:
    """The model that a function of the model returns, in the same place."""
    return function(model) if isinstance(model, HookedMLLM) else model.changed(function)


def map_shards(
    model: AnyModel,
    evaluator: Evaluator,
    function: ShardFunction,
    shard_samples: Mapping[int, DatasetSamples],
    fingerprint: Mapping[str, Any],
) -> Iterator[tuple[int, Shard]]:
    """Evaluate the samples of each shard, one after another in this process, or where the model is."""
    if not isinstance(model, HookedMLLM):
        yield from model.map_shards(evaluator, function, shard_samples, fingerprint)
        return
    evaluate = evaluator(model)
    for number, samples in shard_samples.items():
        yield number, function(samples, evaluate)


def checked_fingerprint(
    model: AnyModel, whole: bool, check: Callable[[HookedMLLM], Result]
) -> tuple[dict[str, Any], Result]:
    """Fingerprint of a model, and what a function of it returns, which raises an error if the model cannot be used.

    Args:
        model: The model.
        whole: As for `model_fingerprint`; that of a model elsewhere always is, by which processes compare theirs.
        check: The function.
    """
    whole = whole or not isinstance(model, HookedMLLM)
    return call(model, partial(_checked_fingerprint, whole=whole, check=check))


def _checked_fingerprint(
    model: HookedMLLM, whole: bool, check: Callable[[HookedMLLM], Result]
) -> tuple[dict[str, Any], Result]:
    checked = check(model)
    return model_fingerprint(model, whole), checked
