"""Scores for every head over many samples, without keeping an activation."""

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from importlib.metadata import version
from os import PathLike
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from corelens.asking import Choices, Unmeasurable, measure_batch
from corelens.data import Sample
from corelens.measuring import DESCRIPTIONS, Measure, name_of
from corelens.metrics import PRESETS, Metric, localization_heads
from corelens.model import HookedMLLM
from corelens.scores import HeadScores
from corelens.store import Part, Run, write_whole
from corelens.tokens import Rule, Views

Samples = Iterable[Sample] | Mapping[str, Iterable[Sample]]
"""Samples of one data set, or of several by name."""

Named = Sequence[tuple[str, Sample]]
"""Samples, each with the name of its data set."""

PART = 32
"""Samples that are kept or lost together when a scan is interrupted."""


def scan(model: HookedMLLM, samples: Samples, metric: Measure = "ram", **options: Any) -> HeadScores:
    """One measure of every head on every sample.

    Args:
        model: The model.
        samples: Questions with media, answers and evidence.
        metric: A `Metric`, or a name that `scan_all` knows.
        options: As for `scan_all`.
    """
    return scan_all(model, samples, [metric], **options)[name_of(metric)]


def scan_all(
    model: HookedMLLM,
    samples: Samples,
    measures: Sequence[Measure] = ("ram", "write_ram"),
    rule: Rule = "overlap",
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
        rule: How evidence in pixels becomes visual tokens; see `TokenMap.inside`.
        views: Which views of a picture hold it; see `TokenMap.inside`.
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
    choices = chosen(measures, rule=rule, views=views, batch_size=batch_size, max_new_tokens=max_new_tokens)
    every = named(samples)

    def here(missing: Mapping[int, Named]) -> Iterator[tuple[int, Part]]:
        for number, own in missing.items():
            yield number, scan_part(model, own, choices)

    return scan_parts(every, measures, choices, described(model), out, here)


def scan_parts(
    samples: Named,
    measures: Sequence[Measure],
    choices: Choices,
    model: Mapping[str, Any],
    out: str | PathLike[str] | None,
    scan: Callable[[Mapping[int, Named]], Iterable[tuple[int, Part]]],
) -> dict[str, HeadScores]:
    """A scan, wherever its parts are computed.

    Args:
        samples: What `named` returns.
        measures: As they were asked for.
        choices: What `chosen` returns.
        model: What `described` returns.
        out: As for `scan_all`.
        scan: Takes the samples of the parts that `out` does not hold yet, by number, and yields finished parts with
            their numbers, in any order.
    """
    numbered = dict(enumerate(_batches(samples, PART)))
    run = nullcontext() if out is None else Run.opened(out, _manifest(model, samples, choices))
    with run as kept, tqdm(total=len(samples), desc="scan", unit="sample") as bar:
        parts = {number: part for number in numbered if kept and (part := kept.read(number))}
        missing = {number: own for number, own in numbered.items() if number not in parts}
        bar.update(len(samples) - sum(map(len, missing.values())))
        for number, part in scan(missing):
            if kept:
                kept.write(number, part)
            parts[number] = part
            bar.update(len(missing[number]))
    found = _collected([parts[number] for number in numbered], measures, choices, model)
    if kept:
        for name, scores in found.items():
            write_whole(kept.folder / f"{name}.safetensors", scores.save)
    return found


def scan_part(model: HookedMLLM, samples: Named, choices: Choices) -> Part:
    """All measures on a few samples."""
    # Samples of like length are batched, so that little is computed for padding.
    waiting = _batches(sorted(range(len(samples)), key=lambda index: _length(samples[index][1])), choices.batch_size)
    values: dict[int, dict[str, Float[Tensor, "layer head"]]] = {}
    skipped: dict[str, str] = {}
    while waiting:
        batch = waiting.pop(0)
        half = -(-len(batch) // 2)
        try:
            found = measure_batch(model, [samples[index][1] for index in batch], choices)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
            waiting = _batches(sum(waiting, batch), half)
        except Unmeasurable as cause:
            # Halves, to find which sample it is.
            waiting[:0] = _batches(batch, half) if len(batch) > 1 else []
            if len(batch) == 1:
                skipped[samples[batch[0]][1].id] = str(cause)
        else:
            for position, index in enumerate(batch):
                values[index] = {name: tensor[position] for name, tensor in found.items()}
    measured = sorted(values)
    nothing = torch.empty(0, model.cfg.n_layers, model.cfg.n_heads)
    return Part(
        tuple(samples[index][1].id for index in measured),
        tuple(samples[index][0] for index in measured),
        {
            name: torch.stack([values[index][name] for index in measured]) if measured else nothing
            for name in map(name_of, choices.measures)
        },
        skipped,
    )


def named(samples: Samples) -> Named:
    """Samples one after the other.

    Raises:
        ValueError: If there are none.
    """
    one: Any = samples  # a type checker cannot know that a mapping is not an iterable of samples
    sets = one if isinstance(samples, Mapping) else {getattr(samples, "name", ""): one}
    every = [(name, sample) for name, own in sets.items() for sample in own]
    if not every:
        raise ValueError("there are no samples.")
    return every


def chosen(measures: Sequence[Measure], **choices: Any) -> Choices:
    """The choices of a scan, checked."""
    made = Choices(_resolved(measures), **choices)
    if made.batch_size < 1:
        raise ValueError(f"batch_size={made.batch_size} is less than one.")
    return made


def described(model: HookedMLLM) -> dict[str, Any]:
    """What must be the same of a model, and of what runs it, for parts of a scan to belong together."""
    return {
        "model": model.cfg.model_name,
        "revision": getattr(model.hf_model.config, "_commit_hash", None),
        "weights": _fingerprint(model),
        "dtype": str(model.hf_model.dtype).removeprefix("torch."),
        "heads": [model.cfg.n_layers, model.cfg.n_heads],
        "versions": {package: version(package) for package in ("corelens", "torch", "transformers")},
    }


def _resolved(measures: Sequence[Measure]) -> tuple[Measure, ...]:
    """Metrics by their names; what `localization` is made of in its place."""
    if not measures:
        raise ValueError("there is no measure; take e.g. 'ram'.")
    found: dict[str, Measure] = {}
    if len(names := [name_of(one) for one in measures]) > len(set(names)):
        raise ValueError(f"measures need different names, and these are called {', '.join(names)}.")
    for one in measures:
        if isinstance(one, Metric) or one in DESCRIPTIONS:
            found[name_of(one)] = one
        elif one in PRESETS:
            found[one] = PRESETS[one]
        elif one == "localization":
            found |= {name: name for name in ("visual_share", "spatial_entropy")}
        else:
            known = ", ".join([*PRESETS, *DESCRIPTIONS, "localization"])
            raise ValueError(f"there is no measure {one!r}; there are {known}.")
    return tuple(found.values())


def _collected(
    parts: Sequence[Part], measures: Sequence[Measure], choices: Choices, model: Mapping[str, Any]
) -> dict[str, HeadScores]:
    """All parts as head scores, one for each measure that was asked for."""
    samples = tuple(sample for part in parts for sample in part.samples)
    datasets = tuple(dataset for part in parts for dataset in part.datasets)
    skipped = {sample: why for part in parts for sample, why in part.skipped.items()}
    if skipped:
        first, why = next(iter(skipped.items()))
        said = f"{len(skipped)} of {len(samples) + len(skipped)} samples cannot be measured; the first, {first}: {why}"
        if not samples:
            raise ValueError(said)
        warnings.warn(f"{said} All are in .skipped.", stacklevel=4)
    values = {name: torch.cat([part.values[name] for part in parts]) for name in map(name_of, choices.measures)}
    if "localization" in measures:
        values["localization"] = localization_heads(values["visual_share"], values["spatial_entropy"]).float()
    metrics = {one.name: one for one in choices.measures if isinstance(one, Metric)}
    shared = {"rule": choices.rule, "views": choices.views}
    return {
        name: HeadScores(
            values[name],
            metrics[name].label or name if name in metrics else name,
            samples,
            model["model"],
            datasets,
            metrics[name].aggregation if name in metrics else "mean",
            shared | (asdict(metrics[name]) if name in metrics else {}),
            skipped,
        )
        for name in map(name_of, measures)
    }


def _manifest(model: Mapping[str, Any], samples: Named, choices: Choices) -> dict[str, Any]:
    """All that must be the same for parts of a scan to belong together."""
    ids = hashlib.sha256("\n".join(f"{d}\t{s.id}\t{s.question}\t{s.answer}" for d, s in samples).encode())
    return {
        **model,
        "data sets": list(dict.fromkeys(name for name, _ in samples)),
        "samples": len(samples),
        "samples sha256": ids.hexdigest(),
        "samples a part": PART,
        **{name: value for name, value in asdict(choices).items() if name != "measures"},
        "measures": [asdict(one) if isinstance(one, Metric) else one for one in choices.measures],
    }


def _fingerprint(model: HookedMLLM) -> str:
    """Tells models of one name apart: a hash of the first numbers of every weight."""
    digest = hashlib.sha256()
    for _, parameter in model.named_parameters():
        if not parameter.is_meta:  # as offloaded ones are, whose numbers are elsewhere
            digest.update(parameter.detach().flatten()[:4].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _batches(items: Sequence[Any], size: int) -> list[list[Any]]:
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def _length(sample: Sample) -> tuple[int, int, int]:
    """What makes a prompt long, as far as it is known before its media are read."""
    pixels = sum(image.width * image.height for image in sample.images if isinstance(image, Image.Image))
    return len(sample.videos), len(sample.images), pixels + len(sample.question)
