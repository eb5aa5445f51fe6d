"""Accuracy of a model without some of its heads, over many samples."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import cache, partial
from os import PathLike
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from corelens.causal import evaluate
from corelens.data import BoxUnit, Sample
from corelens.errors import check_choice
from corelens.experiments.ablation_summary import KINDS, AblationCurve
from corelens.experiments.conditions import BASELINE, ConditionResults
from corelens.experiments.controls import n_writing
from corelens.experiments.passes import finite_passes
from corelens.experiments.remote import AnyModel, Evaluate, checked_fingerprint
from corelens.experiments.resumable import (
    SampleSets,
    check_scoring,
    flatten_datasets,
    prepare_samples,
    run_resumable,
)
from corelens.heads import HeadSet
from corelens.hf.module_outputs import cached_vision
from corelens.hooks.positions import Phase
from corelens.interventions import FwdHooks, ablate, attention_knockout, mean_activations, resample_activations
from corelens.metrics.score_distribution import Amount, plain_amount
from corelens.model import HookedMLLM
from corelens.scores import HeadScores

ReferenceMethod = Literal["zero", "mean", "mean_by_role", "resample"]
"""Replacement of a head's output: zero, its mean over the positions of all samples that are ablated or over those of
one role (picture, question, ...), or its output on a random sample."""

UniformMethod = Literal["uniform", "uniform_all_keys"]
"""Attention to all keys alike: to those that a head may attend to, or, as in the paper, to all of the pass."""

AnswerMethod = Literal[ReferenceMethod, UniformMethod, "blind"]
"""The same, or `blind`: heads keep their outputs, but do not attend to pictures and videos from the question on."""

PUBLISHED_DOSES = (5, 10, 20, 30)
"""Numbers of heads that the paper masks (arXiv 2606.05843, section 4.4)."""


def ablation_curve(
    scores: HeadScores,
    accuracy: Callable[[HeadSet], float],
    doses: Iterable[Amount] = PUBLISHED_DOSES,
    seeds: Sequence[int] = range(5),
) -> AblationCurve:
    """Compute accuracy without a growing number of heads: top, next-ranked, bottom, random, layer-matched random ones.

    Random heads are drawn outside the top ones, so that neither they nor the next-ranked ones exist beyond one half;
    in the layers of the top heads there may be too few earlier.

    Args:
        scores: Scores that rank heads.
        accuracy: Returns the accuracy without some heads: `lambda heads: evaluate(model, batches,
            ablate(heads)).accuracy`. Called once with none.
        doses: Numbers of heads (whole numbers) or shares of all heads (fractions); one kind, not both.
        seeds: Seeds of the random draws.

    Raises:
        ValueError: If there is no dose, one is no number of heads that the model has, or numbers and shares are mixed;
            before anything is computed.

    Source:
        arXiv 2606.05843, section 4.4 and figure 6a: 5, 10, 20 and 30 top, bottom and random heads, these drawn once.
        Several draws outside of the top, next-ranked and layer-matched heads are corelens's own.
    """
    by_dose = _controls_by_dose(scores, doses, seeds)
    heads = {kind: [controls.get(kind, []) for controls in by_dose.values()] for kind in KINDS}
    accuracies: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
    n_sets = sum(len(draws) for controls in by_dose.values() for draws in controls.values())
    with tqdm(total=1 + n_sets, desc="ablate") as bar:
        plain = accuracy(NOTHING)
        bar.update()
        for kind, of_kind in heads.items():
            for draws in of_kind:
                accuracies[kind].append([])
                for head_set in draws:
                    accuracies[kind][-1].append(accuracy(head_set))
                    bar.update()
    return AblationCurve(tuple(by_dose), heads, accuracies, plain)


def dose_conditions(
    scores: HeadScores, doses: Iterable[Amount] = PUBLISHED_DOSES, seeds: Sequence[int] = range(5)
) -> dict[str, list[HeadSet]]:
    """The top heads and their control sets at every dose, as conditions of `run_ablation`.

    Args:
        scores: Scores that rank heads.
        doses: As for `ablation_curve`.
        seeds: Seeds of the random draws.

    Returns:
        Head sets by kind and dose, such as `top 5` and `random, same layers 10`, or `top 5%` for shares; kinds for
        which too few heads lie outside the top are left out.

    Raises:
        ValueError: As for `ablation_curve`.
    """
    return {
        f"{kind} {dose if isinstance(dose, int) else f'{100 * dose:g}%'}": sets
        for dose, controls in _controls_by_dose(scores, doses, seeds).items()
        for kind, sets in controls.items()
    }


def _controls_by_dose(
    scores: HeadScores, doses: Iterable[Amount], seeds: Sequence[int]
) -> dict[float | int, dict[str, list[HeadSet]]]:
    numbers = tuple(map(plain_amount, doses))
    if not numbers or len({isinstance(number, int) for number in numbers}) > 1:
        raise ValueError(f"doses={numbers}: give numbers of heads, such as 5, or shares, such as 0.05, not both.")
    return {number: scores.controls(number, seeds) for number in numbers}


NOTHING = HeadSet((), "nothing removed")
"""The baseline's heads."""

SHARD_SIZE = 16
"""Samples that are kept or lost together when an ablation is interrupted: each is answered under every condition."""


def run_ablation(
    model: AnyModel,
    samples: SampleSets,
    conditions: Mapping[str, Sequence[HeadSet]],
    method: AnswerMethod = "zero",
    phase: Phase = "both",
    batch_size: int = 16,
    max_new_tokens: int = 32,
    box_unit: BoxUnit | None = None,
    chosen_by: str | None = None,
    write_norm: HeadScores | None = None,
    out: str | PathLike[str] | None = None,
) -> ConditionResults[HeadSet]:
    """Answer greedily with nothing ablated and with each set of heads ablated, and score by the data set's rule.

    Args:
        model: The model.
        samples: Questions with media, or without as a control; a mapping if there are several data sets.
        conditions: Sets of heads by condition; several where they are drawn at random, one for each seed.
        method: What head outputs are replaced by, zeros unless told otherwise, which is removing the heads from the
            weights and depends on no samples; reference activations are taken from the samples that have media,
            all of which must then be readable. `blind`: heads do not attend to pictures from the question on.
            `uniform_all_keys` would count padding as keys, so that samples of unequal length run one at a time.
        phase: Ablate in the prompt (`prefill`), while an answer is generated (`decode`) or in both.
        batch_size: Most samples a pass; fewer after running out of memory.
        max_new_tokens: Length at which answers are cut off.
        box_unit: The unit of the boxes that the model answers with, for samples that ask for one.
        chosen_by: Name of the scores that chose the heads, for the manifest of `out`.
        write_norm: Length of what each head writes (`question_write_norm`), by which results say how many heads of
            each set write anything. A control of heads that write nothing shows nothing.
        out: A folder that keeps finished shards. The same ablation into the same folder resumes it.

    Raises:
        ValueError: If a head does not exist, a choice is not known, there is no sample, every sample is skipped, one
            has no rule that can score it, or `out` holds another run; the message names the difference.
        RuntimeError: If another process is writing to `out`.
    """
    check_choice("method", method, AnswerMethod)
    ablate([], phase=phase)
    listed = flatten_datasets(samples)
    check_scoring(listed, box_unit)
    head_sets = {BASELINE: [NOTHING]} | {name: list(sets) for name, sets in conditions.items()}
    fingerprint, _ = checked_fingerprint(model, out is not None, partial(_check_heads, head_sets=head_sets))
    with_media = [sample for _, sample in listed if sample.images or sample.videos]
    evaluator = partial(
        _answer_batches,
        head_sets=head_sets,
        method=method,
        phase=phase,
        max_new_tokens=max_new_tokens,
        box_unit=box_unit,
        sources=with_media if needs_reference(method) else [],
    )
    writing = {
        name: [n_writing(heads, write_norm) for heads in sets]
        for name, sets in conditions.items()
        if write_norm is not None
    }
    choices = {
        "how": method,
        "phase": phase,
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "box_unit": box_unit,
        "chosen_by": chosen_by,
        "conditions": {name: [str(heads) for heads in sets] for name, sets in head_sets.items()},
    } | ({"heads that write": writing} if writing else {})
    results = run_resumable("ablate", model, listed, evaluator, fingerprint, choices, SHARD_SIZE, batch_size, out)
    return ConditionResults(
        head_sets,
        results.values,
        results.samples,
        results.datasets,
        results.skipped,
        groups=results.groups,
        n_writing=writing,
    )


def _check_heads(model: HookedMLLM, head_sets: Mapping[str, Sequence[HeadSet]]) -> None:
    model.check_heads(head for sets in head_sets.values() for heads in sets for head in heads)


def _answer_batches(
    model: HookedMLLM,
    head_sets: Mapping[str, Sequence[HeadSet]],
    method: AnswerMethod,
    phase: Phase,
    max_new_tokens: int,
    box_unit: BoxUnit | None,
    sources: Sequence[Sample],
) -> Evaluate:
    """Evaluation of answers with each set of heads ablated; reference activations are taken from `sources`."""
    hooks = partial(_blind, phase=phase) if method == "blind" else lazy_ablation(method, model, sources, phase=phase)

    def answer_batch(batch: list[Sample]) -> dict[str, Float[Tensor, "batch _draw"]]:
        batches = [(batch, prepare_samples(model, batch))]
        if method == "uniform_all_keys" and batches[0][1].tokens.padding.any():
            batches = [([sample], prepare_samples(model, [sample])) for sample in batch]

        def scores(heads: HeadSet) -> Float[Tensor, "batch"]:
            ablated = hooks(heads)  # may run passes of the samples that a mean is of
            with finite_passes(model, batches[0][1]) if heads == NOTHING and len(batches) == 1 else nullcontext():
                evaluation = evaluate(model, batches, ablated, max_new_tokens, box_unit=box_unit)
            return evaluation.scores.masked_fill(~evaluation.parsed, torch.nan)

        with cached_vision(model.hf_model):
            return {name: torch.stack([scores(heads) for heads in sets], 1) for name, sets in head_sets.items()}

    return answer_batch


def needs_reference(method: AnswerMethod) -> bool:
    """True if heads are replaced by activations of samples."""
    return method in ("mean", "mean_by_role", "resample")


def lazy_ablation(
    method: ReferenceMethod | UniformMethod, model: HookedMLLM, samples: Iterable[Sample], **options: Any
) -> Callable[[HeadSet], FwdHooks]:
    """Return `ablate` with reference activations that are computed on first use.

    They cost a pass over all samples, which a run that is resumed after its last shard does not need.

    Args:
        method: What head outputs are replaced by, or the keys that heads attend to alike.
        model: The model.
        samples: The samples that reference activations are taken from.
        options: Other arguments of `ablate`; means are over its `positions`, which is a name.
    """
    means = partial(mean_activations, positions=options.get("positions"))
    computations: dict[str, tuple[Any, Any]] = {
        "mean": ("mean", means),
        "mean_by_role": ("mean", partial(means, by_role=True)),
        "resample": ("resample", resample_activations),
    }
    operation, compute = computations.get(method, (method, None))

    @cache
    def reference() -> Any:
        return compute and compute(model, samples)

    return lambda heads: ablate(heads, method=operation, reference=reference(), **options)


def _blind(heads: HeadSet, phase: Phase) -> FwdHooks:
    """Hooks that mask pictures and videos from the attention of heads, from the question on."""
    return [
        hook for keys in ("image", "video") for hook in attention_knockout(heads, "from_question", keys, phase=phase)
    ]
