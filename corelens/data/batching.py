"""Samples in batches, ready for a model."""

from collections.abc import Iterable, Iterator, Sequence

from tqdm.auto import tqdm

from corelens.data.sample import Sample
from corelens.inputs.prepare import PreparedInputs
from corelens.model import HookedMLLM
from corelens.progress import nested_progress


def prepare_batches(
    model: HookedMLLM, samples: Iterable[Sample], batch_size: int, description: str
) -> Iterator[tuple[tuple[Sample, ...], PreparedInputs]]:
    """Prepare samples batch by batch, with a progress bar.

    Args:
        model: The model.
        samples: At least one sample.
        batch_size: Samples per batch.
        description: Text of the progress bar.

    Raises:
        ValueError: If there is no sample, or one cannot be prepared; names its batch.
    """
    samples = list(samples)
    if not samples:
        raise ValueError("there are no samples.")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} is less than one.")
    with tqdm(total=len(samples), desc=description, unit="sample", disable=nested_progress()) as bar:
        for start in range(0, len(samples), batch_size):
            batch = tuple(samples[start : start + batch_size])
            try:
                inputs = prepare_batch(model, batch)
            except (ValueError, OSError, ImportError) as cause:
                raise type(cause)(f"samples {batch[0].id} to {batch[-1].id}: {cause}") from cause
            yield batch, inputs
            bar.update(len(batch))


def prepare_batch(model: HookedMLLM, samples: Sequence[Sample]) -> PreparedInputs:
    """Prepare a few samples as one batch."""
    return model.prepare(
        [list(sample.images) for sample in samples],
        [sample.chat for sample in samples],
        [list(sample.videos) for sample in samples] if any(sample.videos for sample in samples) else None,
    )
