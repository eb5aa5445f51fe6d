"""One intervention on every head, layer or group of heads in turn."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from corelens.causal.answers import AnswerLogProbs, append_answers
from corelens.causal.effects import PatchingMetric, log_prob
from corelens.causal.session import Session
from corelens.data import Sample, prepare_batches
from corelens.experiments.resumable import (
    Samples,
    flatten_datasets,
    model_fingerprint,
    prepare_samples,
    run_locally,
    run_resumable,
    sample_errors,
)
from corelens.experiments.run_folder import atomic_write
from corelens.heads import Head, HeadSet
from corelens.inputs.prepare import PreparedInputs
from corelens.interventions import FwdHooks, ReferenceActivations, ablate, mean_activations, resample_activations
from corelens.model import HookedMLLM
from corelens.scores import HeadScores

Unit = Literal["head", "layer", "group"]


ZERO: Callable[[HeadSet], FwdHooks] = partial(ablate, positions="from_question")
"""Zero-ablation from the question on: all that comes before is as without it."""


@dataclass(frozen=True)
class Sweep:
    """What one intervention did to every sample, for each set of heads on its own."""

    units: tuple[HeadSet, ...]
    values: Float[Tensor, "sample unit"]
    """The effect with the intervention on the unit's heads."""

    baseline: Float[Tensor, "sample"]
    """The same number without it."""

    effect: str
    """What the numbers are."""

    samples: tuple[str, ...]
    model: str = ""
    choices: dict[str, Any] = field(default_factory=dict)
    datasets: tuple[str, ...] = ()
    """The data set of every sample, or nothing if there is one."""

    skipped: dict[str, str] = field(default_factory=dict)
    """Samples that could not be measured, by id, and why."""

    @property
    def drop(self) -> Float[Tensor, "sample unit"]:
        """By how much the intervention lowers the number, paired by sample."""
        return self.baseline[:, None] - self.values

    def scores(self) -> HeadScores:
        """The drop of each head as scores, to rank heads by what depends on them; NaN where there is no head.

        Raises:
            ValueError: If the units are not single heads.
        """
        if any(len(unit) != 1 for unit in self.units):
            raise ValueError("units of several heads have no scores by head: sweep with per='head'.")
        heads = [unit.heads[0] for unit in self.units]
        layers, numbers = torch.tensor(heads).T
        values = torch.full((len(self.baseline), int(layers.max()) + 1, int(numbers.max()) + 1), torch.nan)
        values[:, layers, numbers] = self.drop
        return HeadScores(
            values, f"drop in {self.effect}", self.samples, self.model, self.datasets, choices=self.choices,
            skipped=self.skipped,
        )  # fmt: skip


def sweep(
    model: HookedMLLM,
    samples: Iterable[Sample] | PreparedInputs,
    intervention: Callable[[HeadSet], FwdHooks] = ZERO,
    metric: PatchingMetric = log_prob,
    per: Unit | Sequence[HeadSet] = "head",
    batch_size: int = 1,
    at_once: int = 4,
    progress: bool = True,
) -> Sweep:
    """The effect of intervening on every head, layer or group of heads by itself.

    Gives what one pass for each of them would give, but runs only what each changes: see `Session`.

    Args:
        model: The model.
        asked: Samples, or one batch of prompts with answers behind them (`append_answers`).
        intervention: From heads to hooks. The default is zero-ablation from the question on, which shares all that
            comes before.
        effect: What is measured of each answer, from what is said with and without the intervention.
        per: Every head; all heads of a layer; all heads that share a key and a value; or sets of heads.
        batch_size: Samples a session. With left padding, questions of different lengths begin at different positions,
            so that samples with pictures share no prefix, and run whole; one by one each has its own.
        at_once: How many units share a pass, each acting on its own copy of the samples. Where whole prompts run, only
            short ones of a session of one sample do; see `Session.logits_of_each`.
        progress: Show a progress bar for each batch.

    Raises:
        ValueError: If a prompt has no answer, or a head does not exist.
    """
    if batch_size < 1 or at_once < 1:
        raise ValueError(f"batch_size={batch_size} and at_once={at_once} need to be at least one.")
    values, plain, names = [], [], []
    units: tuple[HeadSet, ...] = ()
    for ids, inputs in _batches(model, samples, batch_size):
        session = Session(model, inputs)
        said = partial(AnswerLogProbs.of, inputs=inputs, first=session.first)
        before = said(session.plain)
        units = units or sweep_units(model, per, inputs)
        found = []
        unit_name = per if isinstance(per, str) else "set"
        with tqdm(total=len(units), desc="sweep", unit=unit_name, leave=False, disable=not progress) as bar:
            for start in range(0, len(units), at_once):
                some = units[start : start + at_once]
                for logits in session.logits_of_each([intervention(unit) for unit in some]):
                    found.append(metric(said(logits), before))
                bar.update(len(some))
        values.append(torch.stack(found, -1).cpu())
        plain.append(metric(before, before).cpu())
        names += ids
    return Sweep(
        units, torch.cat(values), torch.cat(plain), getattr(metric, "__name__", "effect").replace("_", " "),
        tuple(names), model.cfg.model_name,
    )  # fmt: skip


def sweep_units(
    model: HookedMLLM, per: Unit | Sequence[HeadSet], inputs: PreparedInputs | None = None
) -> tuple[HeadSet, ...]:
    """The sets of heads that are intervened on one after another.

    Args:
        model: The model.
        per: As for `sweep`.
        inputs: Any prompt, for groups: a pass over it shows which heads share a key.

    Raises:
        ValueError: If a head does not exist.
    """
    if not isinstance(per, str):
        model.check_heads(head for heads in per for head in heads)
        return tuple(per)
    if per == "head":
        return tuple(HeadSet((head,), str(head)) for head in model.heads)
    n_groups = dict.fromkeys(range(model.cfg.n_layers), 1)
    if per == "group":

        def count(key: Float[Tensor, "batch key kv_head d_qk"], hook: Any) -> None:
            n_groups[hook.layer()] = key.shape[2]

        with torch.no_grad(), model.hooks(fwd_hooks=[(name, count) for name in model.attn_names("k")]):
            model(inputs)
    units = []
    for layer, numbers in HeadSet(model.heads).by_layer().items():
        size = len(numbers) // n_groups[layer]
        for group in range(n_groups[layer]):
            heads = tuple(Head(layer, head) for head in numbers[group * size : (group + 1) * size])
            units.append(HeadSet(heads, f"layer {layer}" + (f" group {group}" if per == "group" else "")))
    return tuple(units)


def _batches(
    model: HookedMLLM, asked: Iterable[Sample] | PreparedInputs, batch_size: int
) -> Iterable[tuple[list[str], PreparedInputs]]:
    if isinstance(asked, PreparedInputs):
        yield [str(number) for number in range(len(asked.tokens))], asked
        return
    for batch, inputs in prepare_batches(model, asked, batch_size, "sweep"):
        yield [sample.id for sample in batch], append_answers(model, inputs, [sample.answer for sample in batch])


ReferenceMethod = Literal["zero", "mean", "resample"]
"""What stands in for what a head found: nothing, its mean over the samples, or what it found in a random one."""

SHARD_SIZE = 4
"""Samples that are kept or lost together when a sweep is interrupted: each costs about a pass for every layer."""


def run_sweep(
    model: HookedMLLM,
    samples: Samples,
    method: ReferenceMethod = "zero",
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
    check_method(method)
    if per not in get_args(Unit):
        raise ValueError(f"per={per!r} is not known; heads are swept by {', '.join(get_args(Unit))}.")
    every = flatten_datasets(samples)
    # Which heads share a key shows in a pass over any prompt.
    units = sweep_units(model, per, prepare_samples(model, [every[0][1]]) if per == "group" else None)

    @cache
    def remove() -> Callable[..., Any]:
        # Not before samples are missing: stand-ins cost a pass over all of them.
        instead = reference_for(model, (sample for _, sample in every), method)
        return partial(ablate, method=method, reference=instead, positions="from_question")

    def measure(batch: list[Sample]) -> dict[str, Float[Tensor, "batch _unit"]]:
        inputs = prepare_samples(model, batch)
        with sample_errors():
            answered = append_answers(model, inputs, [sample.answer for sample in batch])
        found = sweep(model, answered, remove(), per=units)
        return {"values": found.values, "plain": found.baseline[:, None]}

    choices = {"how": method, "per": per, "effect": "log probability", "positions": "from_question"}
    # One by one: samples whose questions differ in length share no prefix.
    whole = run_resumable("sweep", every, SHARD_SIZE, model_fingerprint(model), choices, out, run_locally(1, measure))
    found = Sweep(
        units, whole.values["values"], whole.values["plain"][:, 0], "log probability", whole.samples,
        model.cfg.model_name, choices, whole.datasets, whole.skipped,
    )  # fmt: skip
    if out is not None and per == "head":
        atomic_write(Path(out) / "sweep.safetensors", found.scores().save)
    return found


def check_method(how: str) -> None:
    """Raises a ValueError if heads cannot be removed in this way."""
    if how not in get_args(ReferenceMethod):
        raise ValueError(f"how={how!r} is not known; heads can be removed by {', '.join(get_args(ReferenceMethod))}.")


def reference_for(model: HookedMLLM, samples: Iterable[Sample], how: ReferenceMethod) -> ReferenceActivations | None:
    """What is put in the place of heads' outputs, measured on the samples themselves."""
    measured: dict[str, Callable[..., Any]] = {"mean": mean_activations, "resample": resample_activations}
    return measured[how](model, samples) if how in measured else None
