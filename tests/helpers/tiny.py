"""Real architectures, tiny and random, and batches for their forward pass. Nothing here imports corelens."""

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from corelens.hf.architecture import KNOWN_BUGS
from tests.helpers.architectures import ARCHITECTURES as _ARCHITECTURES
from tests.helpers.architectures import IMAGE, PAD, TEXT, VIDEO, VISION_END, VISION_START

__all__ = ["IMAGE", "PAD", "TEXT", "VIDEO", "VISION_END", "VISION_START"]

CLASSES = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES | {"phi4_multimodal": "Phi4MultimodalForCausalLM"}

FAMILIES = ("qwen3_vl", "qwen2_5_vl", "llava", "gemma3", "internvl")
"""The families that are checked in depth."""

ARCHITECTURES = tuple(name for name, built in _ARCHITECTURES.items() if (built.model_type or name) in CLASSES)
"""All that can be built: every image-text-to-text architecture of the installed transformers, and some variants."""

NOT_HOOKED = ("blip", "git", "inkling2_loop")
"""Those that cannot be wrapped."""

TYPES_REFUSED = {
    "dots3_note", "exaone4_5", "hyperclovax_vision_v2", "kimi_k25", "lfm3_vl", "minimax_m3_vl", "muse_glimmer",
    "muse_spark", "qwen2_5_omni_thinker", "qwen3_omni_moe_thinker", "video_llama_3",
}  # fmt: skip
"""Their forward pass takes and ignores `mm_token_type_ids`, but `generate` does not take it."""

NO_GENERATION: dict[str, str] = {
    "diffusion_gemma": "block diffusion: `generate` samples whole blocks and takes no `decoder_input_ids`",
    "pi0": "a robot's policy: no `generate`, and its logits are the velocity of its actions",
}
CANNOT_RUN = {name: fault for name, fault in KNOWN_BUGS.items() if "cannot run" in fault}
"""Those that the installed transformers cannot run."""

NOT_BUILT: dict[str, str] = {}

VISUAL_TOKENS = {name: architecture.tokens.count(IMAGE) for name, architecture in _ARCHITECTURES.items()}
"""Number of image tokens of a picture."""


class Tower(nn.Module):
    """Stands for the vision towers that need timm."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.config = config
        self.patches = nn.Conv2d(3, config.hidden_size, 14, 14)

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        features = self.patches(pixel_values)
        if getattr(self.config, "model_args", None):  # perception_lm: a sequence whose first token is cut off
            features = nn.functional.pad(features.flatten(2).mT, (0, 0, 1, 0))
        return BaseModelOutputWithPooling(last_hidden_state=features)


def tower_or_model(from_config: Callable[..., nn.Module], config: PreTrainedConfig, **options: Any) -> nn.Module:
    timm = config.model_type in ("timm_wrapper", "gemma3n_vision")
    return Tower(config) if timm else from_config(config, **options)


def build(
    name: str, seed: int = 0, attention: str | None = None, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """A random model whose attention is far from even, and where every parameter matters.

    Skips the test if this transformers cannot run the model; `.ci/run` also tests with another.
    """
    if name in CANNOT_RUN:
        pytest.skip(CANNOT_RUN[name])
    architecture = _ARCHITECTURES[name]
    torch.manual_seed(seed)
    model_type = architecture.model_type or name
    config = AutoConfig.for_model(model_type, **architecture.config)
    model_class = getattr(transformers, CLASSES[model_type])  # AutoModelForImageTextToText does not find Evolla's
    with patch.object(AutoModel, "from_config", partial(tower_or_model, AutoModel.from_config)):
        model = model_class._from_config(config, attn_implementation=attention, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = parameter.float().std().item() if parameter.ndim >= 2 else 0
            if spread:
                parameter.mul_(0.15 / spread)
            elif parameter.numel() == 1 and not parameter.any():  # a gate that would close a whole layer
                parameter.fill_(0.5)
            else:  # norms, biases and what starts at zero
                parameter.add_(torch.randn_like(parameter), alpha=0.15)
    return model.eval()


def batch(name: str, padded: bool = True, seed: int = 3) -> dict[str, Tensor]:
    """Two samples with a picture each; with `padded`, the second starts with three padding tokens."""
    architecture = _ARCHITECTURES[name]
    generator = torch.Generator().manual_seed(seed)
    rows, masks = [], []
    for sample in range(2):
        pad = 3 * (padded and sample == 1)
        text = torch.randint(3, 400, (14 - pad,), generator=generator).tolist()
        rows.append([PAD] * pad + [1, *text[:3], VISION_START, *architecture.tokens, VISION_END, *text[3:]])
        masks.append([0] * pad + [1] * (len(rows[-1]) - pad))
    ids = torch.tensor(rows)
    inputs = {"input_ids": ids, "attention_mask": torch.tensor(masks)}
    if architecture.pixels:
        inputs[architecture.pixels_name] = torch.randn(*architecture.pixels, generator=generator)
    inputs |= {key: torch.as_tensor(value) for key, value in architecture.constants.items()}
    if architecture.types:
        inputs[architecture.types] = (ids == IMAGE).long()
    return architecture.finish(inputs, generator) if architecture.finish else inputs


def generation_inputs(name: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the tensors of a batch that `generate` takes; some models write into them."""
    refused = "mm_token_type_ids" if name in TYPES_REFUSED else None
    return {key: value.clone() for key, value in inputs.items() if key != refused}
