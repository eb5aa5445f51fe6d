"""Fingerprints: all that must be the same for the parts of a run folder to belong to one run."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import torch
from PIL import Image

from corelens.data import Sample
from corelens.data.readers.base import StoredPicture
from corelens.errors import docs_link
from corelens.model import HookedMLLM

WHOLE_FILE = 2**24
"""Bytes up to which files are read whole; of longer ones, which are videos, size, beginning and end."""


def model_fingerprint(model: HookedMLLM, whole: bool) -> dict[str, Any]:
    """Fingerprint of model and software; shards with different ones are not mixed.

    Args:
        model: The model.
        whole: Include what only a run folder needs to know, and what takes time: weights, settings and processor.

    Raises:
        ValueError: If it is to be whole and hooks act on the model, which no file can describe.
        RuntimeError: If each pass gives other numbers, since the model is in training mode with dropout.
    """
    model.check_repeatable()
    fingerprint = {
        "model": model.cfg.model_name,
        "revision": getattr(model.hf_model.config, "_commit_hash", None),
        "dtype": str(model.hf_model.dtype).removeprefix("torch."),
        "heads": [model.cfg.n_layers, model.cfg.n_heads],
        "versions": {package: version(package) for package in ("corelens", "torch", "transformers")},
    }
    if not whole:
        return fingerprint
    if any(point.has_hooks() for point in model.hook_points()):
        raise ValueError(
            f"hooks act on the model, and a run folder cannot tell them from those of another run: run this without a "
            f"folder, or without hooks. {docs_link('other-run')}"
        )
    processor, config = model.processor, model.hf_model.config
    settings = [config.to_dict(), model.hf_model.generation_config]
    return fingerprint | {
        "weights": _weights_hash(model),
        "settings": _json_hash([settings, config.get_text_config()._attn_implementation]),
        "processor": processor and _json_hash([processor.to_dict(), processor.tokenizer.get_vocab()]),
        "chat template": _json_hash(getattr(processor, "chat_template", None)),
    }


def samples_hash(samples: Sequence[tuple[str, Sample]]) -> str:
    """Hash of samples with the names of their data sets: of all that they hold, pictures and videos included.

    Functions that return pictures are not called; they count by their names and by what they hold.
    """
    digest = hashlib.sha256()
    for dataset, sample in samples:
        digest.update(dataset.encode())
        for field in fields(sample):
            for content in _contents(getattr(sample, field.name)):
                digest.update(content)
    return digest.hexdigest()


def _contents(value: Any) -> Iterator[bytes]:
    """Bytes that are the same if and only if a value is, whatever process it is in."""
    yield type(value).__name__.encode()
    try:
        if isinstance(value, StoredPicture):
            yield value.encoded()
        elif isinstance(value, Image.Image):
            yield f"{value.mode} {value.size} {value.getexif()}".encode()
            yield value.tobytes()
        elif isinstance(value, np.ndarray):
            yield f"{value.dtype} {value.shape}".encode()
            yield value.tobytes()
        elif isinstance(value, str | PathLike):
            yield str(value).encode()
            yield from _file(Path(value)) if len(str(value)) < 1000 else ()
        elif isinstance(value, partial):
            yield _name(value.func)
            yield from _each([*value.args, value.keywords])
        elif is_dataclass(value):
            yield from _each([getattr(value, field.name) for field in fields(value) if field.compare])
        elif isinstance(value, FunctionType):
            # Not called: it may download or draw, and does so when the run comes to its sample.
            yield _name(value)
            held = [cell.cell_contents for cell in value.__closure__ or ()]
            # A function may hold itself.
            yield from _each([_name(item) if isinstance(item, FunctionType) else item for item in held])
        elif isinstance(value, Mapping):
            yield from _each([part for item in value.items() for part in item])
        elif isinstance(value, list | tuple):
            yield from _each(value)
        elif value is None or isinstance(value, float | int | bytes):
            yield repr(value).encode()
    except (ValueError, OSError) as cause:
        yield str(cause).encode()  # a picture that cannot be read; the run says so


def _name(function: Any) -> bytes:
    """Name of a function, or of the class of another object that can be called."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}".encode()


def _each(values: Sequence[Any]) -> Iterator[bytes]:
    yield str(len(values)).encode()
    for value in values:
        yield from _contents(value)


def _file(path: Path) -> Iterator[bytes]:
    if not path.is_file():
        return
    size = path.stat().st_size
    yield str(size).encode()
    with path.open("rb") as file:
        if size <= WHOLE_FILE:
            yield file.read()
            return
        yield file.read(WHOLE_FILE // 2)
        file.seek(-WHOLE_FILE // 2, 2)
        yield file.read()


def _weights_hash(model: HookedMLLM) -> str:
    """Hash of every weight, which tells models of one name apart."""
    digest = hashlib.sha256()
    for _, weight in model.named_parameters():
        if not weight.is_meta:  # offloaded: its numbers are elsewhere
            digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _json_hash(value: Any) -> str:
    """Hash of settings: all but the place that they were loaded from."""

    def plain(value: Any) -> Any:
        if hasattr(value, "to_dict"):
            return plain(value.to_dict())
        if isinstance(value, Mapping):
            return {
                str(name): plain(item) for name, item in value.items() if name not in ("_name_or_path", "_commit_hash")
            }
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return value

    text = json.dumps(plain(value), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
