"""Real architectures, tiny and random, and batches for their forward pass. Nothing here imports corelens."""

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from architectures import (
    ARCHITECTURES as _ARCHITECTURES,
)
from architectures import IMAGE, PAD, TEXT, VIDEO, VISION_END, VISION_START
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

__all__ = ["IMAGE", "PAD", "TEXT", "VIDEO", "VISION_END", "VISION_START"]

FAMILIES = ("qwen3_vl", "qwen2_5_vl", "llava", "gemma3", "internvl")
"""The families that are checked in depth."""

ARCHITECTURES = tuple(_ARCHITECTURES)


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
    """A random model with weights large enough that its attention is far from even."""
    architecture = _ARCHITECTURES[name]
    torch.manual_seed(seed)
    config = AutoConfig.for_model(architecture.model_type or name, **architecture.config)
    auto = AutoModelForCausalLM if name == "phi4_multimodal" else AutoModelForImageTextToText
    with patch.object(AutoModel, "from_config", partial(tower_or_model, AutoModel.from_config)):
        model = auto.from_config(config, attn_implementation=attention, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                spread = parameter.float().std().item()
                if spread:
                    parameter.mul_(0.15 / spread)
                elif not parameter.any():
                    parameter.normal_(0, 0.15)
            elif not parameter.any() and parameter.numel() == 1:  # a gate that would close a whole layer
                parameter.fill_(0.5)
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


REFUSED = {"exaone4_5": "mm_token_type_ids", "hyperclovax_vision_v2": "mm_token_type_ids"}
NO_GENERATION: dict[str, str] = {}
NOT_BUILT: dict[str, str] = {}


def generation_inputs(name: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """What of a batch `generate` takes."""
    return {key: value for key, value in inputs.items() if key != REFUSED.get(name)}
