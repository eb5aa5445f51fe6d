"""Fingerprints: all that must be the same for the parts of a run folder to belong to one run."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from PIL import Image

from corelens.data import Sample
from corelens.data.readers.base import StoredPicture
from corelens.errors import docs_link
from corelens.files import parse_json
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
    if any(point.has_hooks() for point in model.hook_points()) or _has_other_hooks(model):
        raise ValueError(
            f"hooks act on the model, and a run folder cannot tell them from those of another run: run this without a "
            f"folder, or without hooks. {docs_link('other-run')}"
        )
    processor, config = model.processor, model.hf_model.config
    autocast = [torch.is_autocast_enabled(kind) and str(torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")]
    settings = [
        config.to_dict(),
        *_adapters(model),
        model.hf_model.generation_config,
        autocast,
        torch.get_float32_matmul_precision(),
    ]
    return fingerprint | {
        "weights": _weights_hash(model),
        "settings": _json_hash([settings, config.get_text_config()._attn_implementation]),
        "processor": processor and _json_hash([processor.to_dict(), *_tokenizer(processor.tokenizer)]),
        "chat template": _json_hash(getattr(processor, "chat_template", None)),
    }


def _has_other_hooks(model: HookedMLLM) -> bool:
    """True if somebody hooks modules by PyTorch itself, and not a library that places or adapts weights."""
    hooks = (
        hook
        for module in model.hf_model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    )
    libraries = ("torch.", "transformers.", "accelerate.", "peft.", "corelens.")
    return any(not _name(hook).decode().startswith(libraries) for hook in hooks)


def _tokenizer(tokenizer: Any) -> list[Any]:
    """All by which a tokenizer turns text into tokens."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    saved = {} if fast is None else parse_json(fast.to_str())
    # These two are those of the last call.
    return [
        tokenizer.get_vocab(),
        {name: part for name, part in saved.items() if name not in ("padding", "truncation")},
    ]


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
            yield from _code(value.func)
            yield from _each([*value.args, value.keywords])
        elif is_dataclass(value):
            yield from _each([getattr(value, field.name) for field in fields(value) if field.compare])
        elif isinstance(value, FunctionType):
            # Not called: it may download or draw, and does so when the run comes to its sample.
            yield _name(value)
            yield from _code(value)
            held = [*(cell.cell_contents for cell in value.__closure__ or ()), *(value.__defaults__ or ())]
            held += (value.__kwdefaults__ or {}).values()
            # A function may hold itself.
            yield from _each([_name(item) if isinstance(item, FunctionType) else item for item in held])
        elif isinstance(value, MethodType):
            yield _name(value.__func__)
            yield from _object(value.__self__)
        elif isinstance(value, Mapping):
            yield from _each([part for item in value.items() for part in item])
        elif isinstance(value, list | tuple):
            yield from _each(value)
        elif isinstance(value, np.generic | torch.Tensor):
            yield from _contents(np.asarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value))
        elif isinstance(value, set | frozenset):
            yield from sorted(b"".join(_contents(item)) for item in value)
        elif value is None or isinstance(value, float | int | bytes):
            yield repr(value).encode()
        else:
            yield from _object(value)
    except (ValueError, OSError) as cause:
        yield str(cause).encode()  # a picture that cannot be read; the run says so


def _object(value: Any) -> Iterator[bytes]:
    """Class of an object, and its attributes that are no objects of this kind, which may hold it in turn."""
    yield _name(value)
    plain = (str, PathLike, Image.Image, np.ndarray, torch.Tensor, bytes, int, float, list, tuple, Mapping)
    held = getattr(value, "__dict__", {})
    yield from _each([part for name, item in held.items() if isinstance(item, plain) for part in (name, item)])


def _code(function: Any) -> Iterator[bytes]:
    """Compiled code of a function, since functions of one name may differ; none of corelens's, which has a version."""
    code = getattr(function, "__code__", function)
    if not isinstance(code, CodeType) or getattr(function, "__module__", "").startswith("corelens."):
        return
    yield code.co_code
    yield " ".join(code.co_names).encode()
    for constant in code.co_consts:
        ordered = sorted(constant, key=repr) if isinstance(constant, frozenset) else constant
        yield from _code(constant) if isinstance(constant, CodeType) else (repr(ordered).encode(),)


def _name(function: Any) -> bytes:
    """Name of a function, or of the class of another object that can be called."""
    # Some objects, such as generators, have a name but no module.
    named = function if hasattr(function, "__qualname__") and hasattr(function, "__module__") else type(function)
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
    # Buffers count where they are saved with the weights, such as what quantised layers hold.
    for path, weight in model.state_dict().items():
        if not isinstance(weight, torch.Tensor):  # of a layer's own kind
            digest.update(repr(weight).encode())
            continue
        weight = _offloaded(model, path) if weight.is_meta else weight.detach().cpu()
        digest.update(weight.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _offloaded(model: HookedMLLM, path: str) -> torch.Tensor:
    """Weight that accelerate keeps in memory or on disk until its module runs."""
    from accelerate.utils import align_module_device

    module_path, _, name = path.rpartition(".")
    module = model.hf_model.get_submodule(module_path)
    with align_module_device(module, torch.device("cpu")):
        return getattr(module, name).detach().cpu().clone()


def _adapters(model: HookedMLLM) -> list[list[Any]]:
    """Modules that PEFT adapts, each with its adapters that act, and their scales: no weight tells these."""
    return [
        [path, module.active_adapters, module.disable_adapters, module.scaling]
        for path, module in model.hf_model.named_modules()
        if isinstance(getattr(module, "disable_adapters", None), bool)
    ]


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
