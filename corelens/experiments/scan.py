"""Scores of every head over many samples, without keeping an activation."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from os import PathLike
from typing import Any

from corelens.errors import check_choice, docs_link
from corelens.experiments.head_metrics import WHOLE, ScanConfig, score_batch
from corelens.experiments.layer_scores import DESCRIPTIVE_METRICS, AnyMetric, check_can_score, metric_name
from corelens.experiments.remote import AnyModel, Evaluate, checked_fingerprint
from corelens.experiments.resumable import SampleSets, flatten_datasets, run_resumable
from corelens.experiments.run_folder import Shard, write_scores
from corelens.metrics import (
    PRESETS,
    Metric,
    localization_heads,
)
from corelens.model import HookedMLLM
from corelens.scores import HeadScores
from corelens.tokens import BoxRule, Views

SHARD_SIZE = 32
"""Samples that are kept or lost together when a scan is interrupted."""


def scan(model: AnyModel, samples: SampleSets, metric: AnyMetric = "ram", **options: Any) -> HeadScores:
    """Score every head by one metric on every sample.

    Args:
        model: The model.
        samples: Questions with media, answers and evidence.
        metric: A `Metric`, or a name that `scan_metrics` knows.
        options: As for `scan_metrics`.
    """
    return scan_metrics(model, samples, [metric], **options)[metric_name(metric)]


def scan_metrics(
    model: AnyModel,
    samples: SampleSets,
    metrics: Sequence[AnyMetric] = ("ram", "ram_last"),
    rule: BoxRule = "overlap",
    views: Views = "all",
    batch_size: int = 16,
    max_new_tokens: int = 32,
    out: str | PathLike[str] | None = None,
) -> dict[str, HeadScores]:
    """Score every head by several metrics on every sample, from the same passes.

    Attention itself runs fused; only the rows of the query tokens are recomputed, and each layer keeps one number per
    head before the next layer runs. All metrics share a pass over prompt and answer, except those of the model's own
    answer and those that compare with another question, which need passes of their own.

    Args:
        model: The model.
        samples: Questions with media, answers and evidence; a mapping if there are several data sets.
        metrics: Metrics; or names: of `corelens.metrics.PRESETS`; of metrics that need no evidence
            (`vision_heads`, `question_entropy`, `question_spatial_entropy`, `question_write_norm`, by the question's
            tokens; `entropy`, `concentration`, `distance`, `visual_share`, `sink_share`, `spatial_entropy`,
            `write_norm`, by the last prompt token); or `localization`.
        rule: Rule by which evidence in pixels becomes visual tokens; see `TokenMap.in_box`.
        views: Views of a picture that hold evidence; see `TokenMap.in_box`.
        batch_size: Most samples a pass; fewer after running out of memory.
        max_new_tokens: Length at which the model's own answers are cut off, for metrics that need them.
        out: A folder that keeps finished shards, and in the end the scores by each metric, for `HeadScores.load`. The
            same scan into the same folder resumes it.

    Returns:
        Scores by metric name. Samples that cannot be scored, because a picture is missing, say, are skipped:
        `HeadScores.skipped` has the reason of each, and a warning their number. So are those whose evidence is all of
        their visual tokens, if a metric compares it with the others; if none does, a warning counts them.

    Raises:
        ValueError: If a metric is not known or needs a W_O that the model lacks, there is no sample, every sample is
            skipped, or `out` holds another scan; the message names the difference.
        RuntimeError: If another process is writing to `out`.
    """
    config = ScanConfig(resolve_metrics(metrics), rule, views, batch_size, max_new_tokens)
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} is less than one.")
    check_choice("rule", rule, BoxRule)
    check_choice("views", views, Views)
    listed = flatten_datasets(samples)
    check = partial(check_can_score, metrics=config.metrics)
    fingerprint, _ = checked_fingerprint(model, out is not None, check)
    choices = {name: value for name, value in asdict(config).items() if name != "metrics"}
    choices["measures"] = {
        metric_name(metric): _axes(metric) if isinstance(metric, Metric) else {} for metric in config.metrics
    }
    evaluator = partial(_score_batches, config=config)
    shards = run_resumable("scan", model, listed, evaluator, fingerprint, choices, SHARD_SIZE, batch_size, out)
    scores = _head_scores(shards, metrics, config, fingerprint)
    if WHOLE in shards.values and (n_whole := int(shards.values[WHOLE].sum())):
        warnings.warn(
            f"the evidence of {n_whole} of {len(shards.samples)} samples is all of their visual tokens: there, "
            f"attention on the evidence is attention on the picture, whatever a head retrieves. {docs_link('whole')}",
            stacklevel=2,
        )
    if out is not None:
        for name, of_metric in scores.items():
            write_scores(out, name, of_metric)
    return scores


def _score_batches(model: HookedMLLM, config: ScanConfig) -> Evaluate:
    return partial(score_batch, model, config=config)


def resolve_metrics(metrics: Sequence[AnyMetric]) -> tuple[AnyMetric, ...]:
    """Look metrics up by their names; `localization` becomes the two metrics that it is computed from."""
    if not metrics:
        raise ValueError("there is no metric; take e.g. 'ram'.")
    resolved: dict[str, AnyMetric] = {}
    if len(names := [metric_name(metric) for metric in metrics]) > len(set(names)):
        raise ValueError(f"metrics need different names, and these are called {', '.join(names)}.")
    for metric in metrics:
        if isinstance(metric, Metric) or metric in DESCRIPTIVE_METRICS:
            resolved[metric_name(metric)] = metric
        elif metric in PRESETS:
            resolved[metric] = PRESETS[metric]
        elif metric == "localization":
            resolved |= {name: name for name in ("visual_share", "spatial_entropy")}
        else:
            known = ", ".join([*PRESETS, *DESCRIPTIVE_METRICS, "localization"])
            raise ValueError(f"there is no metric {metric!r}; there are {known}.")
    return tuple(resolved.values())


def _axes(metric: Metric) -> dict[str, str]:
    """The settings that shape a metric's numbers, without its names and source."""
    return {name: value for name, value in asdict(metric).items() if name not in ("name", "label", "source")}


def _head_scores(
    shards: Shard, metrics: Sequence[AnyMetric], config: ScanConfig, fingerprint: Mapping[str, Any]
) -> dict[str, HeadScores]:
    """Head scores by the name of each requested metric."""
    values = {name: units.unflatten(1, fingerprint["heads"]) for name, units in shards.values.items() if name != WHOLE}
    if "localization" in metrics:
        values["localization"] = localization_heads(values["visual_share"], values["spatial_entropy"]).float()
    by_name = {metric.name: metric for metric in config.metrics if isinstance(metric, Metric)}
    shared = {"rule": config.rule, "views": config.views}
    return {
        name: HeadScores(
            values[name],
            by_name[name].label or name if name in by_name else name,
            shards.samples,
            fingerprint["model"],
            shards.datasets,
            by_name[name].aggregation if name in by_name else "mean",
            shared | (asdict(by_name[name]) if name in by_name else {}),
            shards.skipped,
            shards.groups,
        )
        for name in [metric_name(metric) for metric in metrics]
    }
