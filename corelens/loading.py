"""Models by name: those that come with corelens, local folders, and the Hub."""

from pathlib import Path
from typing import Any

from transformers import AutoModelForImageTextToText, PreTrainedModel

from corelens.processors import load_processor
from corelens.refusals import see

_WEIGHTS = Path(__file__).parent / "toy" / "weights"
SHIPPED = {
    "corelens/toy": _WEIGHTS / "organism",
    "corelens/toy-natural": _WEIGHTS / "natural",
    "corelens/toy-haystack": _WEIGHTS / "haystack",
    "corelens/toy-worlds": _WEIGHTS / "worlds",
    "corelens/toy-worlds-organism": _WEIGHTS / "worlds-organism",
}
"""Models that come with the package and need no network."""


def located(name_or_path: str) -> str:
    """The folder of a shipped or local model; a Hub id as it is.

    Raises:
        FileNotFoundError: If there is no such shipped model, or a local path does not exist.
    """
    if name_or_path.startswith("corelens/") and name_or_path not in SHIPPED and not Path(name_or_path).is_dir():
        raise FileNotFoundError(f"there is no shipped model {name_or_path!r}; there are {', '.join(SHIPPED)}.")
    path = str(SHIPPED.get(name_or_path, name_or_path))
    if path.startswith((".", "/", "~")) and not Path(path).expanduser().is_dir():
        raise FileNotFoundError(f"there is no model folder {path!r}.")
    return str(Path(path).expanduser()) if path.startswith("~") else path


def load(name_or_path: str, trust_remote_code: bool, **kwargs: Any) -> tuple[PreTrainedModel, Any]:
    """A model and its processor; see `HookedMLLM.from_pretrained`."""
    path = located(name_or_path)
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
            f"{see('remote-code')}"
        ) from cause
    return hf_model.eval(), processor
