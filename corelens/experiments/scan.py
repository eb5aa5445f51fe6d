"""Scores for every head over many samples, without keeping an activation."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from corelens.causal.answers import answer_positions, answer_targets, append_answers, greedy_answers
from corelens.data import Sample, evidence_tokens
from corelens.experiments.head_metrics import DESCRIPTIVE_METRICS, AnyMetric, ScoringInputs, metric_name, score_heads
from corelens.experiments.resumable import (
    DatasetSample,
    Samples,
    evaluate_shard,
    flatten_datasets,
    model_fingerprint,
    prepare_samples,
    run_resumable,
    sample_errors,
)
from corelens.experiments.run_folder import Shard, atomic_write
from corelens.inputs.prepare import PreparedInputs
from corelens.metrics import PRESETS, Metric, bootstrap_interval, localization_heads, rho, stability_curve
from corelens.model import HookedMLLM
from corelens.scores import HeadScores
from corelens.tokens import BoxRule, Views

OTHER_QUESTIONS = {"minus_null": "N/A", "over_generic": "Describe the image."}
"""What is asked instead, by baseline."""


@dataclass(frozen=True)
class ScanConfig:
    """Every choice of a scan that shapes its numbers."""

    metrics: tuple[AnyMetric, ...]
    rule: BoxRule = "overlap"
    views: Views = "all"
    batch_size: int = 16
    max_new_tokens: int = 32


def score_batch(
    model: HookedMLLM, samples: Sequence[Sample], choices: ScanConfig
) -> dict[str, Float[Tensor, "batch layer head"]]:
    """All measures on one batch.

    Raises:
        Unmeasurable: If some sample cannot be measured.
    """
    groups: dict[str, list[AnyMetric]] = {}
    for one in choices.metrics:
        groups.setdefault(_sequence(one), []).append(one)
    if len(groups) > 1 and (of_prompt := groups.pop("prompt", [])):
        # Attention of the prompt does not change with what follows it: one pass serves both.
        next(iter(groups.values())).extend(of_prompt)
    found = {}
    for sequence, own in groups.items():
        inputs, asked = _scoring_inputs(model, samples, sequence, own, choices)
        found |= score_heads(model, inputs, asked, own)
    # Metrics that compare with another question, after their own: the same pass about the other question.
    for baseline in OTHER_QUESTIONS:
        if own := [one for one in choices.metrics if isinstance(one, Metric) and one.baseline == baseline]:
            inputs, asked = _scoring_inputs(model, _query_mask(samples, baseline), "prompt", own, choices)
            for name, score in score_heads(model, inputs, asked, own).items():
                found[name] = found[name] - score if baseline == "minus_null" else found[name] / score
    return found


def _sequence(one: AnyMetric) -> str:
    """What is passed through the model: the prompt, or the prompt and an answer."""
    if isinstance(one, Metric):
        if one.queries in ("generated", "uncertain"):
            return "generated"
        if one.queries == "answer" or one.contribution == "write_answer":
            return "answer"
    return "prompt"


def _scoring_inputs(
    model: HookedMLLM, samples: Sequence[Sample], sequence: str, measures: Sequence[AnyMetric], choices: ScanConfig
) -> tuple[PreparedInputs, ScoringInputs]:
    """The tensors of a pass and what to measure it with."""
    inputs = prepare_samples(model, samples)
    tokens = inputs.tokens
    n = tokens.role.shape[1]
    needs_evidence = any(isinstance(one, Metric) for one in measures)
    with sample_errors():
        evidence = evidence_tokens(samples, tokens, choices.rule, choices.views) if needs_evidence else tokens.visual
    queries = {"last": tokens.last, "question": tokens.question}
    if sequence != "prompt":
        own = sequence == "generated"
        answers = greedy_answers(model, inputs, choices.max_new_tokens) if own else [one.answer for one in samples]
        with sample_errors():
            inputs = append_answers(model, inputs, answers)
        behind = (0, inputs.tokens.role.shape[1] - n)
        evidence = pad(evidence, behind)
        queries = {name: pad(mask, behind) for name, mask in queries.items()} | {
            sequence: answer_positions(inputs.tokens)
        }
        if any(isinstance(one, Metric) and one.queries == "uncertain" for one in measures):
            queries["uncertain"] = _most_uncertain(model, inputs)
    asked = {one.queries if isinstance(one, Metric) else "last" for one in measures}
    return inputs, ScoringInputs(
        inputs.tokens, evidence, {name: queries[name] for name in asked}, answer_targets(inputs)
    )


def _query_mask(samples: Sequence[Sample], baseline: str) -> list[Sample]:
    """The same samples with another question."""
    other = OTHER_QUESTIONS[baseline]
    return [
        replace(
            sample,
            question=other,
            prompt=tuple(
                part.replace(sample.question, other) if isinstance(part, str) else part for part in sample.prompt
            ),
        )
        for sample in samples
    ]


@torch.no_grad()
def _most_uncertain(model: HookedMLLM, inputs: PreparedInputs) -> Bool[Tensor, "batch position"]:
    """Of the positions that say the answer, the one whose next-token distribution has the highest entropy."""
    asked = answer_positions(inputs.tokens)
    entropy = torch.distributions.Categorical(logits=model(inputs).float()).entropy()
    chosen = entropy.masked_fill(~asked, -torch.inf).argmax(-1, keepdim=True)
    return torch.zeros_like(asked).scatter_(-1, chosen, True)


SHARD_SIZE = 32
"""Samples that are kept or lost together when a scan is interrupted."""


def scan(model: HookedMLLM, samples: Samples, metric: AnyMetric = "ram", **options: Any) -> HeadScores:
    """One measure of every head on every sample.

    Args:
        model: The model.
        samples: Questions with media, answers and evidence.
        metric: A `Metric`, or a name that `scan_metrics` knows.
        options: As for `scan_metrics`.
    """
    return scan_metrics(model, samples, [metric], **options)[metric_name(metric)]


def scan_metrics(
    model: HookedMLLM,
    samples: Samples,
    metrics: Sequence[AnyMetric] = ("ram", "write_ram"),
    rule: BoxRule = "overlap",
    views: Views = "all",
    batch_size: int = 16,
    max_new_tokens: int = 32,
    out: str | PathLike[str] | None = None,
) -> dict[str, HeadScores]:
    """Several measures of every head on every sample, from the same passes.

    Attention itself runs fused; only the rows of the query tokens are recomputed, and each layer keeps one number per
    head before the next layer runs. All measures share a pass over prompt and answer, except those of the model's own
    answer and those that compare with another question, which need passes of their own.

    Args:
        model: The model.
        samples: Questions with media, answers and evidence; a mapping if there are several data sets.
        measures: Metrics; or names: of `corelens.metrics.PRESETS`, of descriptions that need no evidence (`entropy`,
            `concentration`, `distance`, `visual_share`, `sink_share`, `spatial_entropy`, all by the last prompt token),
            or `localization`.
        rule: How evidence in pixels becomes visual tokens; see `TokenMap.in_box`.
        views: Which views of a picture hold it; see `TokenMap.in_box`.
        batch_size: Most samples a pass; fewer after running out of memory.
        max_new_tokens: Where the model's own answers are cut off, for metrics that need them.
        out: A folder that keeps finished parts, and in the end the scores of each measure, for `HeadScores.load`. The
            same scan into the same folder goes on where it was interrupted.

    Returns:
        By name. Samples that cannot be measured, since a picture is missing, say, are left out: `HeadScores.skipped`
        says which and why, and a warning how many.

    Raises:
        ValueError: If a measure is not known, there is no sample, none can be measured, or `out` holds another scan;
            names the difference.
        RuntimeError: If another process is writing to `out`.
    """
    choices = scan_config(metrics, rule=rule, views=views, batch_size=batch_size, max_new_tokens=max_new_tokens)
    every = flatten_datasets(samples)

    def here(missing: Mapping[int, DatasetSample]) -> Iterator[tuple[int, Shard]]:
        for number, own in missing.items():
            yield number, scan_part(model, own, choices)

    return scan_parts(every, metrics, choices, model_fingerprint(model), out, here)


def summary(scores: HeadScores) -> dict[str, Any]:
    """What a scan found, in a few numbers."""
    top = scores.top()
    low, high = bootstrap_interval(scores.values)
    found: dict[str, Any] = {
        "samples": len(scores.samples),
        "heads": scores.n_heads,
        "top": [
            {
                "head": str(head),
                "score": round(float(scores.per_head[head]), 5),
                "interval": [round(float(bound[head]), 5) for bound in (low, high)],
            }
            for head in top
        ],
    }
    if len(scores.samples) > 1:
        stability = stability_curve(scores.values)
        found["split-half overlap"] = round(float(stability.mean[-1]), 3)
    if float(scores.per_head.nan_to_num().max()) > 0:
        found["rho_0.5"] = round(rho(scores.per_head), 4)
    return found


def scan_parts(
    samples: DatasetSample,
    measures: Sequence[AnyMetric],
    choices: ScanConfig,
    model: Mapping[str, Any],
    out: str | PathLike[str] | None,
    scan: Callable[[Mapping[int, DatasetSample]], Iterable[tuple[int, Shard]]],
) -> dict[str, HeadScores]:
    """A scan, wherever its parts are computed.

    Args:
        samples: What `named` returns.
        measures: As they were asked for.
        choices: What `chosen` returns.
        model: What `described` returns.
        out: As for `scan_metrics`.
        scan: Takes the samples of the parts that `out` does not hold yet, by number, and yields finished parts with
            their numbers, in any order.
    """
    made = {name: value for name, value in asdict(choices).items() if name != "metrics"}
    made["measures"] = {metric_name(one): _axes(one) if isinstance(one, Metric) else {} for one in choices.metrics}
    found = _scores(run_resumable("scan", samples, SHARD_SIZE, model, made, out, scan), measures, choices, model)
    if out is not None:
        for name, scores in found.items():
            atomic_write(Path(out) / f"{name}.safetensors", scores.save)
    return found


def scan_part(model: HookedMLLM, samples: DatasetSample, choices: ScanConfig) -> Shard:
    """All measures on a few samples."""

    def measure(batch: list[Sample]) -> dict[str, Float[Tensor, "batch _unit"]]:
        return {name: values.flatten(1) for name, values in score_batch(model, batch, choices).items()}

    return evaluate_shard(samples, choices.batch_size, measure)


def scan_config(measures: Sequence[AnyMetric], **choices: Any) -> ScanConfig:
    """The choices of a scan, checked."""
    made = ScanConfig(resolve_metrics(measures), **choices)
    if made.batch_size < 1:
        raise ValueError(f"batch_size={made.batch_size} is less than one.")
    for name, value, known in (("rule", made.rule, BoxRule), ("views", made.views, Views)):
        if value not in get_args(known):
            raise ValueError(f"{name}={value!r} is not known; it is one of {', '.join(get_args(known))}.")
    return made


def _axes(metric: Metric) -> dict[str, str]:
    """The choices that shape a metric's numbers, without what is said of it."""
    return {name: value for name, value in asdict(metric).items() if name not in ("name", "label", "source")}


def resolve_metrics(measures: Sequence[AnyMetric]) -> tuple[AnyMetric, ...]:
    """Metrics by their names; what `localization` is made of in its place."""
    if not measures:
        raise ValueError("there is no measure; take e.g. 'ram'.")
    found: dict[str, AnyMetric] = {}
    if len(names := [metric_name(one) for one in measures]) > len(set(names)):
        raise ValueError(f"measures need different names, and these are called {', '.join(names)}.")
    for one in measures:
        if isinstance(one, Metric) or one in DESCRIPTIVE_METRICS:
            found[metric_name(one)] = one
        elif one in PRESETS:
            found[one] = PRESETS[one]
        elif one == "localization":
            found |= {name: name for name in ("visual_share", "spatial_entropy")}
        else:
            known = ", ".join([*PRESETS, *DESCRIPTIVE_METRICS, "localization"])
            raise ValueError(f"there is no measure {one!r}; there are {known}.")
    return tuple(found.values())


def _scores(
    whole: Shard, measures: Sequence[AnyMetric], choices: ScanConfig, model: Mapping[str, Any]
) -> dict[str, HeadScores]:
    """Head scores, one for each measure that was asked for."""
    values = {name: of_units.unflatten(1, model["heads"]) for name, of_units in whole.values.items()}
    if "localization" in measures:
        values["localization"] = localization_heads(values["visual_share"], values["spatial_entropy"]).float()
    metrics = {one.name: one for one in choices.metrics if isinstance(one, Metric)}
    shared = {"rule": choices.rule, "views": choices.views}
    return {
        name: HeadScores(
            values[name],
            metrics[name].label or name if name in metrics else name,
            whole.samples,
            model["model"],
            whole.datasets,
            metrics[name].aggregation if name in metrics else "mean",
            shared | (asdict(metrics[name]) if name in metrics else {}),
            whole.skipped,
        )
        for name in map(metric_name, measures)
    }
