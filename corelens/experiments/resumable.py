"""Resumable evaluation of many samples: every experiment is a function of a batch, and this module runs it.

An experiment (`scan_metrics`, `run_sweep`, `run_ablation`, `run_sparse_eval`) passes `run_resumable` its samples and a
function of the model that returns `evaluate`, which turns a batch into named tensors. Samples are cut into shards; a
shard is the unit of disk writes, so that a run that is killed loses no more than the shards it was working on, and
resumes to the same bytes.

    samples  --shard_size-->  shards  --batch_size, by prompt length-->  batches
                                |                                           | evaluate(batch)
                                |                                           v
    Shard.concatenate  <--  RunFolder.write  <--  evaluate_shard  <--  {name: (batch, *units)}

A batch that runs out of memory is halved and so are all after it; a batch that raises another error is halved until
the sample that raises it is alone, and this is recorded as skipped. An error that no sample of a shard survives is not
a sample's, and ends the run. Shards are evaluated where the model is: in this process, or on a Ray cluster
(`corelens.experiments.ray`).

See `run_folder` for the files, and `scan` for the simplest experiment.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from os import PathLike
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from corelens.data import BoxUnit, Sample, prepare_batch, score
from corelens.errors import docs_link, without_docs_link
from corelens.experiments.fingerprint import samples_hash
from corelens.experiments.remote import AnyModel, DatasetSamples, Evaluate, Evaluator, map_shards
from corelens.experiments.run_folder import RunFolder, Shard
from corelens.inputs.prepare import PreparedInputs
from corelens.metrics import join_groups
from corelens.model import HookedMLLM
from corelens.progress import progress

Element = TypeVar("Element")

SampleSets = Iterable[Sample] | Mapping[str, Iterable[Sample]]
"""Samples of one data set, or of several by name."""


class SampleError(ValueError):
    """An error of a sample itself: a picture that cannot be read, evidence outside it, no answer."""


OF_NO_SAMPLE = (MemoryError, ImportError, torch.AcceleratorError)
"""Errors that no sample is to blame for: a lack of memory or of a package, and a device that has failed."""


def run_resumable(
    work: str,
    model: AnyModel,
    samples: DatasetSamples,
    evaluator: Evaluator,
    fingerprint: Mapping[str, Any],
    choices: Mapping[str, Any],
    shard_size: int,
    batch_size: int,
    out: str | PathLike[str] | None,
) -> Shard:
    """Evaluate all samples, except those of shards that a run folder already holds.

    Args:
        work: Name of the experiment, for the progress bar and the run folder.
        model: The model, or one that other processes hold.
        samples: As returned by `flatten_datasets`.
        evaluator: Returns the function that evaluates one batch.
        fingerprint: As returned by `checked_fingerprint`.
        choices: All other settings that must be the same for shards to belong together, ready for JSON.
        shard_size: Samples that are kept or lost together when the run is interrupted.
        batch_size: Most samples of a batch; without a folder, batches may be larger than shards.
        out: The run folder, or none.

    Returns:
        The results of all samples, in order.

    Raises:
        ValueError: If every sample is skipped, or `out` holds another run; the message names the difference.
        RuntimeError: If another process is writing to `out`.
    """
    shard_samples = dict(enumerate(split(samples, max(shard_size, batch_size) if out is None else shard_size)))
    manifest = {
        "work": work,
        **fingerprint,
        "data sets": list(dict.fromkeys(name for name, _ in samples)),
        "samples": len(samples),
        "samples sha256": "" if out is None else samples_hash(samples),
        "samples a part": shard_size,
        **choices,
    }
    with nullcontext() if out is None else RunFolder.open(out, manifest) as folder:
        shards = {number: shard for number in shard_samples if folder and (shard := folder.read(number))}
        missing = {number: batch for number, batch in shard_samples.items() if number not in shards}
        n_finished = len(samples) - sum(len(batch) for batch in missing.values())
        whole = len(shard_samples) == 1
        function = partial(evaluate_shard, batch_size=batch_size, whole=whole)
        with progress(len(samples), work, "sample", n_finished) as advance:
            for number, shard in map_shards(model, evaluator, function, missing, fingerprint):
                if folder:
                    folder.write(number, shard)
                shards[number] = shard
                advance(len(missing[number]))
    results = Shard.concatenate([shards[number] for number in shard_samples])
    _report_skipped(results, len(samples))
    return results


def evaluate_shard(samples: DatasetSamples, evaluate: Evaluate, batch_size: int, whole: bool = True) -> Shard:
    """Evaluate the samples of one shard, in batches that shrink when memory runs out.

    Args:
        samples: The samples.
        evaluate: Evaluates one batch.
        batch_size: Most samples of a batch.
        whole: True if the run has no other shard. Then an error of its only sample is raised, too.

    Raises:
        Exception: What `evaluate` raises, if no sample survives it.
    """
    # Prompts of similar length share a batch, which keeps padding short.
    order = sorted(range(len(samples)), key=lambda index: prompt_length(samples[index][1]))
    batches = split(order, batch_size)
    values: dict[int, dict[str, Tensor]] = {}
    skipped: dict[str, str] = {}
    unexpected: dict[str, Exception] = {}
    while batches:
        if not (batch := batches.pop(0)):
            continue
        half = -(-len(batch) // 2)
        try:
            # Results are kept on the host, wherever the model is.
            results = {name: tensor.cpu() for name, tensor in evaluate([samples[i][1] for i in batch]).items()}
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
            batches = split(sum(batches, batch), half)
        except OF_NO_SAMPLE:
            raise
        except Exception as error:
            sample = samples[batch[0]][1].id
            if len(batch) > 1:
                # Halves, to find which sample it is.
                batches[:0] = split(batch, half)
            elif isinstance(error, SampleError):
                skipped[sample] = str(error)
            else:
                unexpected[sample] = error
                if not values and len(unexpected) > 1:
                    break
                if not values and batches:
                    # Whether it is the sample's is known soonest from the sample that is least like it: the longest.
                    batches.insert(0, [batches[-1].pop()])
        else:
            for row, index in enumerate(batch):
                values[index] = {name: tensor[row].flatten() for name, tensor in results.items()}
    if unexpected and not values and (whole or len(samples) > 1):
        raise next(iter(unexpected.values()))
    skipped |= {sample: _reason(error) for sample, error in unexpected.items()}
    evaluated = sorted(values)
    names = values[evaluated[0]] if evaluated else ()
    return Shard(
        tuple(samples[index][1].id for index in evaluated),
        tuple(samples[index][0] for index in evaluated),
        {name: torch.stack([values[index][name] for index in evaluated]) for name in names},
        skipped,
        join_groups([([samples[i][1].id for i in evaluated], [samples[i][1].group for i in evaluated])]),
    )


def _report_skipped(results: Shard, n_samples: int) -> None:
    """Warn of skipped samples, or raise a ValueError if none is left."""
    if not results.skipped:
        return
    sample, reason = next(iter(results.skipped.items()))
    rest = " All are in .skipped." if results.samples else ""
    message = (
        f"{n_samples - len(results.samples)} of {n_samples} samples cannot be measured; the first, {sample}: "
        f"{without_docs_link(reason).rstrip('.')}.{rest} {docs_link('skipped')}"
    )
    if not results.samples:
        raise ValueError(message)
    warnings.warn(message, stacklevel=4)


def flatten_datasets(samples: SampleSets) -> DatasetSamples:
    """List the samples of all data sets, one data set after the other.

    Raises:
        ValueError: If there are none, or a data set has none.
    """
    given: Any = samples  # a type checker cannot know that a mapping is not an iterable of samples
    datasets = given if isinstance(samples, Mapping) else {getattr(samples, "name", ""): given}
    if isinstance(given, Sample):
        raise TypeError("this is one sample; give a list of samples, such as [sample].")
    lists = {name: list(dataset) for name, dataset in datasets.items()}
    if not all(lists.values()) or not lists:
        empty = next((f" of {name}" for name, dataset in lists.items() if name and not dataset), "")
        raise ValueError(f"there are no samples{empty}. {docs_link('no-samples')}")
    return [(name, sample) for name, dataset in lists.items() for sample in dataset]


@contextmanager
def sample_errors() -> Iterator[None]:
    """Re-raise errors as `SampleError`, so that the sample is skipped and the run continues.

    Whatever they are, since pictures come from functions and files of others; but for those of no sample.
    """
    try:
        yield
    except (SampleError, torch.OutOfMemoryError, *OF_NO_SAMPLE):
        raise
    except Exception as cause:
        raise SampleError(_reason(cause)) from cause


def _reason(error: Exception) -> str:
    """Text of an error; with its kind, if it is one whose text may not explain itself."""
    return str(error) if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error}"


def check_scoring(samples: DatasetSamples, box_unit: BoxUnit | None) -> None:
    """Raise a ValueError if no answer to a data set can be scored; a run skips single ones when their turn comes."""
    errors: dict[str, list[ValueError | None]] = {}
    for dataset, sample in samples:
        try:
            if sample.scoring != "box" or box_unit is None:  # scoring a box reads its picture
                score(sample, "")
            errors.setdefault(dataset, []).append(None)
        except ValueError as cause:
            errors.setdefault(dataset, []).append(cause)
    for of_dataset in errors.values():
        if all(of_dataset):
            raise next(cause for cause in of_dataset if cause)


def prepare_samples(model: HookedMLLM, samples: Sequence[Sample]) -> PreparedInputs:
    """Prepare a batch of samples.

    Raises:
        SampleError: If one cannot be prepared.
    """
    with sample_errors():
        return prepare_batch(model, samples)


def split(items: Sequence[Element], size: int) -> list[list[Element]]:
    """Split into lists of `size` items, in order; the last may be shorter."""
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def prompt_length(sample: Sample) -> tuple[int, int, int]:
    """Sort key for prompt length, from what is known before media are read."""
    pixels = sum(image.width * image.height for image in sample.images if isinstance(image, Image.Image))
    return len(sample.videos), len(sample.images), pixels + len(sample.question)
