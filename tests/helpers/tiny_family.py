"""Tiny models of every family without hooks, so that any decoder will do, and the inputs of their decoders."""

from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image
from torch import nn
from transformers import PreTrainedModel

from corelens.inputs.prepare import PreparedInputs, prepare
from tests.helpers import processors, tiny
from tests.helpers.architectures import ARCHITECTURES

LARGER: dict[str, dict[str, Any]] = {
    "gemma4": dict(vision_config=dict(position_embedding_size=64)),
    "molmo2": dict(vision_config=dict(image_size=[70, 70])),
    "aria": dict(vision_config=dict(image_size=980, patch_size=70), projector_patch_to_query_dict={196: 4}),
    "kosmos-2": dict(latent_query_num=64),
    "phi4_multimodal": dict(
        vision_config=dict(image_size=128, crop_size=128, patch_size=4), max_position_embeddings=2048
    ),
}
"""Towers for larger pictures than the tiny architectures' own, and room for their tokens."""


@dataclass
class TinyFamily:
    """A model and its processor, without hooks."""

    hf_model: PreTrainedModel
    processor: Any

    def prepare(self, images: Any, question: Any = "Which digit is red?") -> PreparedInputs:
        return prepare(self.processor, self.hf_model.config, images, question)


def build(name: str) -> TinyFamily:
    """The model and processor of a family; its tower mixes tokens weakly, so that features tell their pixels."""
    architecture = ARCHITECTURES[name]
    config = dict(architecture.config)
    for key, value in LARGER.get(name, {}).items():
        config[key] = config[key] | value if key.endswith("_config") else value
    with patch.dict(ARCHITECTURES, {name: replace(architecture, config=config)}):
        hf_model = tiny.build(name)
    with torch.no_grad():
        for parameter_name, parameter in hf_model.get_encoder("image").named_parameters():
            if any(part in parameter_name for part in ("out_proj", "attn.proj", "o_proj", "wo.")):
                parameter.mul_(0.05)
    return TinyFamily(hf_model, processors.build(name))


class _StopForward(Exception):
    pass


@torch.no_grad()
def decoder_embeddings(family: TinyFamily, images: list[Image.Image]) -> torch.Tensor:
    """Inputs of the decoder's first layer at every position."""
    embeddings: list[torch.Tensor] = []

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        embeddings.append(hidden[0].flatten(1))  # some decoders have several residual streams
        raise _StopForward

    modules = family.hf_model.get_decoder().named_modules()
    first_layer = next(module for name, module in modules if name.endswith("layers.0"))
    handle = first_layer.register_forward_pre_hook(record, with_kwargs=True)
    try:
        family.hf_model(**family.prepare(images))
    except _StopForward:
        return embeddings[0]
    finally:
        handle.remove()
    raise AssertionError("the decoder did not run")
