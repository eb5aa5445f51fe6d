"""A sweep over many samples, in parts that are complete or absent."""

from collections.abc import Callable, Iterable
from functools import cache, partial
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

from jaxtyping import Float
from torch import Tensor

from corelens.answering import with_answers
from corelens.causal import Sweep, sweep
from corelens.causal.sweeps import Unit, units_of
from corelens.data import Sample
from corelens.interventions import HeadOutputs, ablate, drawn_outputs, mean_outputs
from corelens.model import HookedMLLM
from corelens.parts import Samples, about_samples, described, here, in_parts, named, prepared
from corelens.store import write_whole

Removal = Literal["zero", "mean", "resample"]
"""What stands in for what a head found: nothing, its mean over the samples, or what it found in a random one."""

PART = 4
"""Samples that are kept or lost together when a sweep is interrupted: each costs about a pass for every layer."""


def sweep_all(
    model: HookedMLLM,
    samples: Samples,
    how: Removal = "zero",
    per: Unit = "head",
    out: str | PathLike[str] | None = None,
) -> Sweep:
    """What removing every head, layer or group of heads by itself, from the question on, does to every sample.

    Args:
        model: The model.
        samples: Questions with media and answers; a mapping if there are several data sets.
        how: What is put in the place of what the heads found.
        per: Every head; all heads of a layer; or all heads that share a key and a value.
        out: A folder that keeps finished parts, and for single heads in the end `sweep.safetensors`: the drops, for
            `HeadScores.load`. The same sweep into the same folder goes on where it was interrupted.

    Returns:
        Log-probabilities of the answers. Samples that cannot be measured are left out: `Sweep.skipped` says which and
        why, and a warning how many.

    Raises:
        ValueError: If a choice is not known, there is no sample, none can be measured, one from which a mean is to be
            taken or drawn cannot be prepared, or `out` holds another run; names the difference.
        RuntimeError: If another process is writing to `out`.
    """
    check_removal(how)
    if per not in get_args(Unit):
        raise ValueError(f"per={per!r} is not known; heads are swept by {', '.join(get_args(Unit))}.")
    every = named(samples)
    # Which heads share a key shows in a pass over any prompt.
    units = units_of(model, per, prepared(model, [every[0][1]]) if per == "group" else None)

    @cache
    def remove() -> Callable[..., Any]:
        # Not before samples are missing: stand-ins cost a pass over all of them.
        instead = stand_ins(model, (sample for _, sample in every), how)
        return partial(ablate, how=how, instead=instead, positions="from_question")

    def measure(batch: list[Sample]) -> dict[str, Float[Tensor, "batch _unit"]]:
        inputs = prepared(model, batch)
        with about_samples():
            answered = with_answers(model, inputs, [sample.answer for sample in batch])
        found = sweep(model, answered, remove(), per=units)
        return {"values": found.values, "plain": found.plain[:, None]}

    choices = {"how": how, "per": per, "effect": "log probability", "positions": "from_question"}
    # One by one: samples whose questions differ in length share no prefix.
    whole = in_parts("sweep", every, PART, described(model), choices, out, here(1, measure))
    found = Sweep(
        units, whole.values["values"], whole.values["plain"][:, 0], "log probability", whole.samples,
        model.cfg.model_name, choices, whole.datasets, whole.skipped,
    )  # fmt: skip
    if out is not None and per == "head":
        write_whole(Path(out) / "sweep.safetensors", found.scores().save)
    return found


def check_removal(how: str) -> None:
    """Raises a ValueError if heads cannot be removed in this way."""
    if how not in get_args(Removal):
        raise ValueError(f"how={how!r} is not known; heads can be removed by {', '.join(get_args(Removal))}.")


def stand_ins(model: HookedMLLM, samples: Iterable[Sample], how: Removal) -> HeadOutputs | None:
    """What is put in the place of heads' outputs, measured on the samples themselves."""
    measured: dict[str, Callable[..., Any]] = {"mean": mean_outputs, "resample": drawn_outputs}
    return measured[how](model, samples) if how in measured else None
