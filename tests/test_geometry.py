"""Rectangles of visual tokens, family by family, checked against what the vision tower sees."""

import importlib.util
from typing import Any

import numpy as np
import processors
import pytest
import tiny
import torch
from architectures import ARCHITECTURES
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText

SIZES = [(160, 96), (61, 250), (112, 112), (301, 67)]
NEW = {
    "gemma3_pan_and_scan": "gemma3"
}
TOWER = {
    "vision_config": {"image_size": 112},
}
CONFIGS = {
    "internvl": {"vision_config": {"image_size": [112, 112]}},
    "gemma3": TOWER | {"mm_tokens_per_image": 16},
    "gemma3_pan_and_scan": TOWER | {"mm_tokens_per_image": 16},
    "idefics3": TOWER, "smolvlm": TOWER, "aya_vision": TOWER, "cohere2_vision": TOWER, "llama4": TOWER,
    "mistral3": {"vision_config": {"image_size": 224}},
    "llava_next": {"vision_config": {"image_size": 56}, "image_grid_pinpoints": processors.PINPOINTS},
    "llava_onevision": {"vision_config": {"image_size": 56}, "image_grid_pinpoints": processors.FAMILIES["llava_onevision"].settings["image_grid_pinpoints"]},
}

def build(name):
    a = ARCHITECTURES[NEW.get(name, name)]
    torch.manual_seed(0)
    config = dict(a.config)
    for k, v in CONFIGS.get(name, {}).items():
        config[k] = config[k] | v if isinstance(v, dict) else v
    c = AutoConfig.for_model(a.model_type or NEW.get(name, name), **config)
    model = AutoModelForImageTextToText.from_config(c)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim >= 2:
                spread = p.float().std().item()
                _ = p.mul_(0.15 / spread) if spread else p.normal_(0, 0.15)
        for n, p in model.get_encoder("image").named_parameters():
            if "out_proj" in n or "attn.proj" in n or "o_proj" in n:
                p.mul_(0.03)
    return model.eval()


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    width, height = size
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))

def features(model: Any, inputs) -> torch.Tensor:
    pixels = {k: v for k, v in inputs.items() if k in ("pixel_values", "image_grid_thw", "image_sizes", "batch_num_images", "pixel_attention_mask")}
    found = model.get_image_features(**pixels, return_dict=True).pooler_output
    return found.flatten(0, -2) if isinstance(found, torch.Tensor) else torch.cat([f.flatten(0,-2) for f in found])
