"""One intervention on each head, layer or group of heads by itself."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from corelens.causal.answers import AnswerLogProbs, append_answers
from corelens.causal.effects import PatchingMetric, kl_div, log_prob
from corelens.causal.session import Session
from corelens.data import Sample, prepare_batches
from corelens.errors import check_choice
from corelens.experiments.ablation import ReferenceMethod, lazy_ablation, needs_reference
from corelens.experiments.passes import finite_passes
from corelens.experiments.remote import AnyModel, Evaluate, checked_fingerprint
from corelens.experiments.resumable import (
    SampleSets,
    flatten_datasets,
    prepare_samples,
    run_resumable,
    sample_errors,
)
from corelens.experiments.run_folder import write_scores, write_summary
from corelens.heads import Head, HeadSet
from corelens.inputs.prepare import PreparedInputs
from corelens.interventions import FwdHooks, ablate
from corelens.metrics import (
    aggregate,
    false_discovery_rates,
    join_groups,
    mean_p_values,
    simultaneous_interval,
)
from corelens.model import HookedMLLM
from corelens.progress import nested_progress
from corelens.scores import HeadScores

Unit = Literal["head", "layer", "group"]


ZERO: Callable[[HeadSet], FwdHooks] = partial(ablate, positions="from_question")
"""Zero-ablation from the question on: earlier positions are as without it."""

METRIC_LABELS: dict[PatchingMetric, str] = {log_prob: "log probability", kl_div: "kl"}
"""Labels of metrics, as saved files have them, where they differ from the function's name."""


def metric_label(metric: PatchingMetric) -> str:
    """Label of a metric in figures and files."""
    return METRIC_LABELS.get(metric) or getattr(metric, "__name__", "effect").replace("_", " ")


@dataclass(frozen=True)
class Sweep:
    """Effect of one intervention on every sample, for each set of heads by itself."""

    units: tuple[HeadSet, ...]
    values: Float[Tensor, "sample unit"]
    """The metric with the intervention on the unit's heads."""

    baseline: Float[Tensor, "sample"]
    """The metric without it."""

    metric: str
    """Label of the metric."""

    samples: tuple[str, ...]
    model: str = ""
    choices: dict[str, Any] = field(default_factory=dict)
    datasets: tuple[str, ...] = ()
    """The data set of every sample, or nothing if there is one."""

    skipped: dict[str, str] = field(default_factory=dict)
    """Reasons of the samples that were skipped, by id."""

    groups: tuple[str, ...] = ()
    """The group of every sample, such as its picture; empty if each is its own."""

    @property
    def drop(self) -> Float[Tensor, "sample unit"]:
        """Decrease of the metric by the intervention, paired by sample."""
        return self.baseline[:, None] - self.values

    def scores(self) -> HeadScores:
        """Drops as head scores, which rank heads by how much the answer depends on them; NaN where there is no head.

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
            values, f"drop in {self.metric}", self.samples, self.model, self.datasets, choices=self.choices,
            skipped=self.skipped, groups=self.groups,
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
    """Intervene on each head, layer or group of heads by itself, and compute the effect on the answer.

    The result is that of one pass for each unit, but only what the intervention changes is run again: see `Session`.

    Args:
        model: The model.
        samples: SampleSets, or one batch of prompts with answers behind them (`append_answers`).
        intervention: From heads to hooks. The default is zero-ablation from the question on, which shares all earlier
            positions.
        metric: Computed for each answer, from its log-probabilities with and without the intervention.
        per: Each head; all heads of a layer; all heads that share a key and a value; or sets of heads.
        batch_size: Samples a session. With left padding, questions of different lengths begin at different positions,
            so that samples with pictures share no prefix, and whole prompts run; one by one each has its own prefix.
        at_once: Number of units that share a pass, each acting on its own copy of the samples. Where whole prompts run,
            only short ones of a session of one sample do; see `Session.logits_of_each`.
        progress: Show a progress bar for each batch.

    Raises:
        ValueError: If a prompt has no answer, or a head does not exist.
    """
    if batch_size < 1 or at_once < 1:
        raise ValueError(f"batch_size={batch_size} and at_once={at_once} need to be at least one.")
    values, baselines = [], []
    sample_ids: list[str] = []
    sample_groups: list[str] = []
    units: tuple[HeadSet, ...] = ()
    for ids, groups, inputs in _batches(model, samples, batch_size):
        session = Session(model, inputs)
        log_probs = partial(AnswerLogProbs.of, inputs=inputs, first=session.first)
        baseline = log_probs(session.plain)
        units = units or sweep_units(model, per, inputs)
        effects = []
        unit_name = per if isinstance(per, str) else "set"
        with tqdm(total=len(units), desc="sweep", unit=unit_name, leave=False, disable=not progress) as bar:
            for start in range(0, len(units), at_once):
                group = units[start : start + at_once]
                for logits in session.logits_of_each([intervention(unit) for unit in group]):
                    effects.append(metric(log_probs(logits), baseline))
                bar.update(len(group))
        values.append(torch.stack(effects, -1).cpu())
        baselines.append(metric(baseline, baseline).cpu())
        sample_ids += ids
        sample_groups += groups
    return Sweep(
        units, torch.cat(values), torch.cat(baselines), metric_label(metric), tuple(sample_ids), model.cfg.model_name,
        groups=join_groups([(sample_ids, sample_groups)]),
    )  # fmt: skip


def sweep_units(
    model: HookedMLLM, per: Unit | Sequence[HeadSet], inputs: PreparedInputs | None = None
) -> tuple[HeadSet, ...]:
    """List the sets of heads of a sweep.

    Args:
        model: The model.
        per: As for `sweep`.
        inputs: Any prompt, for groups: a pass over it gives the number of keys of each layer.

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
    for layer, indices in HeadSet(model.heads).by_layer().items():
        size = len(indices) // n_groups[layer]
        for group in range(n_groups[layer]):
            heads = tuple(Head(layer, index) for index in indices[group * size : (group + 1) * size])
            units.append(HeadSet(heads, f"layer {layer}" + (f" group {group}" if per == "group" else "")))
    return tuple(units)


def _batches(
    model: HookedMLLM, samples: Iterable[Sample] | PreparedInputs, batch_size: int
) -> Iterable[tuple[list[str], list[str], PreparedInputs]]:
    """Ids and groups of samples, and inputs, of each batch, with answers appended."""
    if isinstance(samples, PreparedInputs):
        numbers = [str(number) for number in range(len(samples.tokens))]
        yield numbers, numbers, samples
        return
    for batch, inputs in prepare_batches(model, samples, batch_size, "sweep"):
        with_answers = append_answers(model, inputs, [sample.answer for sample in batch])
        yield [sample.id for sample in batch], [sample.group for sample in batch], with_answers


SHARD_SIZE = 4
"""Samples that are kept or lost together when a sweep is interrupted: each costs about a pass for every layer."""


def run_sweep(
    model: AnyModel,
    samples: SampleSets,
    method: ReferenceMethod = "zero",
    per: Unit = "head",
    out: str | PathLike[str] | None = None,
) -> Sweep:
    """Ablate each head, layer or group of heads by itself, from the question on, for every sample.

    Args:
        model: The model.
        samples: Questions with media and answers; a mapping if there are several data sets.
        method: What head outputs are replaced by; means are those of positions from the question on.
        per: Each head; all heads of a layer; or all heads that share a key and a value.
        out: A folder that keeps finished shards, and in the end `sweep.json`, the summary, and for single heads
            `sweep.safetensors`: the drops, for `HeadScores.load`. The same sweep into the same folder resumes it.

    Returns:
        Log-probabilities of the answers. Samples that cannot be evaluated are skipped: `Sweep.skipped` has the reason
        of each, and a warning their number.

    Raises:
        ValueError: If a choice is not known, there is no sample, every sample is skipped, one that reference
            activations are taken from cannot be prepared, or `out` holds another run; the message names the difference.
        RuntimeError: If another process is writing to `out`.
    """
    check_choice("method", method, ReferenceMethod)
    check_choice("per", per, Unit)
    listed = flatten_datasets(samples)
    first = listed[0][1] if per == "group" else None
    fingerprint, units = checked_fingerprint(model, out is not None, partial(_units_of, per=per, sample=first))
    sources = [sample for _, sample in listed] if needs_reference(method) else []
    evaluator = partial(_sweep_batches, units=units, method=method, sources=sources)
    label = METRIC_LABELS[log_prob]
    choices = {"how": method, "per": per, "effect": label, "positions": "from_question"}
    # One by one: samples whose questions differ in length share no prefix.
    results = run_resumable("sweep", model, listed, evaluator, fingerprint, choices, SHARD_SIZE, 1, out)
    swept = Sweep(
        units, results.values["values"], results.values["plain"][:, 0], label, results.samples,
        fingerprint["model"], choices, results.datasets, results.skipped, results.groups,
    )  # fmt: skip
    if out is not None:
        if per == "head":
            write_scores(out, "sweep", swept.scores())
        write_summary(Path(out) / "sweep.json", sweep_summary(swept))
    return swept


def _units_of(model: HookedMLLM, per: Unit, sample: Sample | None) -> tuple[HeadSet, ...]:
    """The units; a pass over the sample gives the number of heads that share a key, which groups need."""
    return sweep_units(model, per, None if sample is None else prepare_samples(model, [sample]))


def _sweep_batches(
    model: HookedMLLM, units: tuple[HeadSet, ...], method: ReferenceMethod, sources: Sequence[Sample]
) -> Evaluate:
    """Evaluation of the log-probabilities of answers with each unit ablated."""
    intervention = lazy_ablation(method, model, sources, positions="from_question")

    def sweep_batch(batch: list[Sample]) -> dict[str, Float[Tensor, "batch _unit"]]:
        inputs = prepare_samples(model, batch)
        with sample_errors():
            inputs = append_answers(model, inputs, [sample.answer for sample in batch])
        effects = sweep(model, inputs, intervention, per=units, progress=not nested_progress())
        if not effects.baseline.isfinite().all():
            with finite_passes(model, inputs):
                model(inputs)
        return {"values": effects.values, "plain": effects.baseline[:, None]}

    return sweep_batch


def sweep_summary(swept: Sweep, fdr: float = 0.05) -> dict[str, Any]:
    """Drops of all units, largest first, and the number of units with an effect, ready for JSON.

    The 95 % intervals hold for all units at once, since the first of the list are the first on these samples; the
    number of units with an effect is that at a false discovery rate, since some would pass a test each by chance.

    Args:
        swept: The drops.
        fdr: Share of false ones that is expected among the units that are said to have an effect, at most.

    Raises:
        ValueError: If `fdr` is not between zero and one.
    """
    if not 0 < fdr < 1:
        raise ValueError(f"fdr={fdr} is outside (0, 1).")
    drops, origin = swept.drop[:, None], dict[str, Any](groups=swept.groups, datasets=swept.datasets)
    (means,), (low,), (high,) = aggregate(drops, datasets=swept.datasets), *simultaneous_interval(drops, **origin)
    rates = false_discovery_rates(mean_p_values(swept.drop, **origin))
    return {
        "model": swept.model,
        "samples": len(swept.samples),
        **swept.choices,
        "false discovery rate": fdr,
        "with an effect": None if bool(rates.isnan().all()) else int((rates <= fdr).sum()),
        "units": [
            {
                "name": swept.units[index].name,
                "heads": str(swept.units[index]),
                "drop": round(float(means[index]), 5),
                "interval": None if low[index].isnan() else [round(float(bound[index]), 5) for bound in (low, high)],
                "q": None if rates[index].isnan() else float(f"{float(rates[index]):.3g}"),
            }
            for index in means.argsort(descending=True, stable=True).tolist()
        ],
        "skipped": swept.skipped,
    }
