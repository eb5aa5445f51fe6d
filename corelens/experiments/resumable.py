"""Long work on many samples in parts, each kept whole or not at all."""

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from os import PathLike
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from corelens.data import Sample, prepare_batch
from corelens.errors import docs_link, without_docs_link
from corelens.experiments.run_folder import RunFolder, Shard
from corelens.inputs.prepare import PreparedInputs
from corelens.model import HookedMLLM
from corelens.progress import progress

Samples = Iterable[Sample] | Mapping[str, Iterable[Sample]]
"""Samples of one data set, or of several by name."""

DatasetSample = Sequence[tuple[str, Sample]]
"""Samples, each with the name of its data set."""


class SampleError(ValueError):
    """Something about a sample itself: a picture that cannot be read, evidence outside it, no answer."""


def flatten_datasets(samples: Samples) -> DatasetSample:
    """Samples one after the other.

    Raises:
        ValueError: If there are none, or a data set has none.
    """
    one: Any = samples  # a type checker cannot know that a mapping is not an iterable of samples
    sets = one if isinstance(samples, Mapping) else {getattr(samples, "name", ""): one}
    if isinstance(one, Sample):
        raise TypeError("this is one sample; give a list of samples, such as [sample].")
    listed = {name: list(own) for name, own in sets.items()}
    if not all(listed.values()) or not listed:
        empty = next((f" of {name}" for name, own in listed.items() if name and not own), "")
        raise ValueError(f"there are no samples{empty}.")
    return [(name, sample) for name, own in listed.items() for sample in own]


def model_fingerprint(model: HookedMLLM) -> dict[str, Any]:
    """What must be the same of a model, and of what runs it, for parts to belong together."""
    return {
        "model": model.cfg.model_name,
        "revision": getattr(model.hf_model.config, "_commit_hash", None),
        "weights": _fingerprint(model),
        "dtype": str(model.hf_model.dtype).removeprefix("torch."),
        "heads": [model.cfg.n_layers, model.cfg.n_heads],
        "versions": {package: version(package) for package in ("corelens", "torch", "transformers")},
    }


def run_resumable(
    work: str,
    samples: DatasetSample,
    size: int,
    model: Mapping[str, Any],
    choices: Mapping[str, Any],
    out: str | PathLike[str] | None,
    do: Callable[[Mapping[int, DatasetSample]], Iterable[tuple[int, Shard]]],
) -> Shard:
    """What all parts found, in order, wherever they are computed.

    Args:
        work: Its name, as the progress bar and the run folder say it.
        samples: What `named` returns.
        size: Samples that are kept or lost together when the work is interrupted.
        model: What `described` returns.
        choices: All others that must be the same for parts to belong together, ready for JSON.
        out: A folder that keeps finished parts, or none.
        do: Takes the samples of the parts that `out` does not hold yet, by number, and yields finished parts with
            their numbers, in any order.

    Raises:
        ValueError: If no sample can be measured, or `out` holds other work; names the difference.
        RuntimeError: If another process is writing to `out`.
    """
    numbered = dict(enumerate(shrinking_batches(samples, size)))
    ids = hashlib.sha256("\n".join(f"{d}\t{s.id}\t{s.question}\t{s.answer}" for d, s in samples).encode())
    manifest = {
        "work": work,
        **model,
        "data sets": list(dict.fromkeys(name for name, _ in samples)),
        "samples": len(samples),
        "samples sha256": ids.hexdigest(),
        "samples a part": size,
        **choices,
    }
    run = nullcontext() if out is None else RunFolder.open(out, manifest)
    with run as kept:
        parts = {number: part for number in numbered if kept and (part := kept.read(number))}
        missing = {number: own for number, own in numbered.items() if number not in parts}
        finished = len(samples) - sum(map(len, missing.values()))
        with progress(len(samples), work, "sample", finished) as advance:
            for number, part in do(missing):
                if kept:
                    kept.write(number, part)
                parts[number] = part
                advance(len(missing[number]))
    whole = Shard.concatenate([parts[number] for number in numbered])
    if whole.skipped:
        first, why = next(iter(whole.skipped.items()))
        rest = " All are in .skipped." if whole.samples else ""
        said = (
            f"{len(whole.skipped)} of {len(samples)} samples cannot be measured; the first, {first}: {without_docs_link(why)}"
            f"{rest} {docs_link('skipped')}"
        )
        if not whole.samples:
            raise ValueError(said)
        warnings.warn(said, stacklevel=4)
    return whole


def run_locally(
    batch_size: int, measure: Callable[[list[Sample]], Mapping[str, Float[Tensor, "batch _unit"]]]
) -> Callable[[Mapping[int, DatasetSample]], Iterator[tuple[int, Shard]]]:
    """What `in_parts` is to do where this process measures all samples itself; see `part_of`."""
    return lambda missing: ((number, evaluate_shard(own, batch_size, measure)) for number, own in missing.items())


def evaluate_shard(
    samples: DatasetSample,
    batch_size: int,
    measure: Callable[[list[Sample]], Mapping[str, Float[Tensor, "batch _unit"]]],
) -> Shard:
    """What is measured of a few samples, in batches that shrink when memory runs out.

    Args:
        samples: Those of one part.
        batch_size: Most samples a batch.
        measure: Measures a batch, or raises `Unmeasurable` if some sample of it cannot be measured.
    """
    # Samples of like length are batched, so that little is computed for padding.
    waiting = shrinking_batches(
        sorted(range(len(samples)), key=lambda index: prompt_length(samples[index][1])), batch_size
    )
    values: dict[int, dict[str, Tensor]] = {}
    skipped: dict[str, str] = {}
    while waiting:
        batch = waiting.pop(0)
        half = -(-len(batch) // 2)
        try:
            found = measure([samples[index][1] for index in batch])
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
            waiting = shrinking_batches(sum(waiting, batch), half)
        except SampleError as cause:
            # Halves, to find which sample it is.
            waiting[:0] = shrinking_batches(batch, half) if len(batch) > 1 else []
            if len(batch) == 1:
                skipped[samples[batch[0]][1].id] = str(cause)
        else:
            for position, index in enumerate(batch):
                values[index] = {name: tensor[position] for name, tensor in found.items()}
    measured = sorted(values)
    names = values[measured[0]] if measured else ()
    return Shard(
        tuple(samples[index][1].id for index in measured),
        tuple(samples[index][0] for index in measured),
        {name: torch.stack([values[index][name] for index in measured]) for name in names},
        skipped,
    )


@contextmanager
def sample_errors() -> Iterator[None]:
    """What goes wrong in here is said of the samples: they are `Unmeasurable`, and the work goes on without them."""
    try:
        yield
    except (ValueError, OSError, IndexError) as cause:
        raise SampleError(str(cause)) from cause


def prepare_samples(model: HookedMLLM, samples: Sequence[Sample]) -> PreparedInputs:
    """The inputs of a few samples together.

    Raises:
        Unmeasurable: If one cannot be prepared.
    """
    with sample_errors():
        return prepare_batch(model, samples)


def shrinking_batches(items: Sequence[Any], size: int) -> list[list[Any]]:
    """Items in order, so many at a time."""
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def _fingerprint(model: HookedMLLM) -> str:
    """Tells models of one name apart: a hash of the first numbers of every weight."""
    digest = hashlib.sha256()
    for _, parameter in model.named_parameters():
        if not parameter.is_meta:  # as offloaded ones are, whose numbers are elsewhere
            digest.update(parameter.detach().flatten()[:4].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def prompt_length(sample: Sample) -> tuple[int, int, int]:
    """What makes a prompt long, as far as it is known before its media are read."""
    pixels = sum(image.width * image.height for image in sample.images if isinstance(image, Image.Image))
    return len(sample.videos), len(sample.images), pixels + len(sample.question)
