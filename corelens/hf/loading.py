"""Load models by name: those that come with corelens, local folders, and the Hub."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, PreTrainedModel

from corelens.errors import docs_link
from corelens.inputs.processor import load_processor

_WEIGHTS = Path(__file__).parents[1] / "toy" / "weights"
SHIPPED = {
    "corelens/toy": _WEIGHTS / "organism",
    "corelens/toy-natural": _WEIGHTS / "natural",
    "corelens/toy-haystack": _WEIGHTS / "haystack",
    "corelens/toy-worlds": _WEIGHTS / "worlds",
    "corelens/toy-worlds-organism": _WEIGHTS / "worlds-organism",
    "corelens/toy-worlds-small": _WEIGHTS / "worlds-small",
    "corelens/toy-worlds-small-organism": _WEIGHTS / "worlds-small-organism",
}
"""Models that come with the package and need no network."""

SMOL = "corelens/smol"
"""A model of which a part is to come with the package; the language model in it has a package of its own."""


def checkpoint_folder(name_or_path: str) -> str:
    """Folder of a shipped or local model; a Hub id is returned unchanged.

    Raises:
        FileNotFoundError: If there is no such shipped model, or a local path does not exist or holds no model.
    """
    if name_or_path == SMOL:
        from corelens.hf.smol import joined_folder

        return str(joined_folder())
    if name_or_path.startswith("corelens/") and name_or_path not in SHIPPED and not Path(name_or_path).is_dir():
        raise FileNotFoundError(f"there is no shipped model {name_or_path!r}; there are {', '.join([*SHIPPED, SMOL])}.")
    path = str(SHIPPED.get(name_or_path, name_or_path))
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not any(folder.glob("*config.json")):
            raise FileNotFoundError(f"the folder {path!r} holds no model: it has no config.json.")
        return str(folder)
    # No id on the Hub of a model that takes pictures is without its owner.
    if path.startswith((".", "/", "~")) or "/" not in path:
        raise FileNotFoundError(
            f"there is no model folder {path!r}. Models of the Hub are called owner/name; these come with corelens: "
            f"{', '.join(SHIPPED)}."
        )
    return path


def load_model(name_or_path: str, trust_remote_code: bool, **kwargs: Any) -> tuple[PreTrainedModel, Any]:
    """Load a model and its processor; see `HookedMLLM.from_pretrained`."""
    path = checkpoint_folder(name_or_path)
    if "device" in kwargs:
        raise TypeError(f"pass device_map={kwargs['device']!r}, as in transformers, and not device.")
    _check_placement(kwargs.get("dtype"), kwargs.get("device_map"))
    shared = {name: kwargs[name] for name in ("revision", "token", "cache_dir", "local_files_only") if name in kwargs}
    try:
        # Safetensors only: other formats are pickles, which run code when they load.
        hf_model = AutoModelForImageTextToText.from_pretrained(
            path, trust_remote_code=trust_remote_code, use_safetensors=True, **kwargs
        )
        processor = load_processor(path, trust_remote_code=trust_remote_code, **shared)
    except OSError as cause:
        raise OSError(f"{name_or_path!r} cannot be loaded: {cause}") from cause
    except ValueError as cause:
        if "trust_remote_code" not in str(cause):
            raise
        raise ValueError(
            f"{name_or_path!r} brings its own Python code. Read it; if you trust it, pass trust_remote_code=True. "
            f"{docs_link('remote-code')}"
        ) from cause
    return hf_model.eval(), processor


def _check_placement(dtype: Any, device_map: Any) -> None:
    """Raise a ValueError if a dtype does not exist, or this machine has no such device."""
    if isinstance(dtype, str) and dtype != "auto":
        torch_dtype = getattr(torch, dtype, None)
        if not (isinstance(torch_dtype, torch.dtype) and torch_dtype.is_floating_point):
            raise ValueError(f"dtype={dtype!r} is not known; take auto, bfloat16, float16 or float32.")
    if isinstance(device_map, str) and device_map not in ("auto", "balanced", "balanced_low_0", "sequential", "meta"):
        kind = torch.accelerator.current_accelerator()
        devices = [f"{kind.type}:{index}" for index in range(torch.accelerator.device_count())] if kind else []
        if device_map not in ("cpu", *devices, *(name.partition(":")[0] for name in devices)):
            known = " or ".join(["auto", "cpu", *devices])
            raise ValueError(f"device_map={device_map!r} is no device of this machine; take {known}.")
