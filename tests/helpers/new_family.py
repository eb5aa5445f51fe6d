"""An architecture that corelens does not know, for docs/adding-a-family.md: wide pictures, and a newline after rows."""

from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaModel,
    LlavaProcessor,
    PreTrainedModel,
)
from transformers.models.llava.modeling_llava import BaseModelOutputWithPooling

from tests.helpers import processors
from tests.helpers.architectures import ARCHITECTURES

ROWS, COLUMNS = 4, 6


class WideConfig(LlavaConfig):
    """Configuration of the new model type."""

    model_type = "wide_vl"


class WideModel(LlavaModel):
    """A model whose pictures are patches row by row, and a learned newline after each row."""

    config_class = WideConfig

    def __init__(self, config: WideConfig) -> None:
        super().__init__(config)
        self.image_newline = torch.nn.Parameter(torch.ones(config.text_config.hidden_size))
        self.patches = torch.nn.Conv2d(3, config.text_config.hidden_size, 14, 14)

    def get_image_features(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        rows = self.patches(pixel_values).movedim(1, -1)
        newlines = self.image_newline.expand(*rows.shape[:2], 1, -1)
        features = torch.cat([rows, newlines], 2).flatten(1, 2)
        return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=list(features))


class WideForConditionalGeneration(LlavaForConditionalGeneration):
    """The model with its head."""

    config_class = WideConfig

    def __init__(self, config: WideConfig) -> None:
        super().__init__(config)
        self.model = WideModel(config)
        self.post_init()


class WideProcessor(LlavaProcessor):
    """A processor that writes a placeholder for each patch and each newline."""

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **_: Any) -> str:
        height, width = image_inputs["pixel_values"][image_idx].shape[-2:]
        return self.image_token * (height // 14 * (width // 14 + 1))


def build() -> tuple[PreTrainedModel, Any]:
    """Build a random model of the family, and its processor."""
    AutoModelForImageTextToText.register(WideConfig, WideForConditionalGeneration, exist_ok=True)
    torch.manual_seed(0)
    hf_model = WideForConditionalGeneration(WideConfig(**ARCHITECTURES["llava"].config)).eval()
    llava = processors.FAMILIES["llava"]
    size = {"height": 14 * ROWS, "width": 14 * COLUMNS}
    images = processors.transformers.CLIPImageProcessorPil(size=size, do_center_crop=False)
    processor = WideProcessor(images, llava.tokenizer, patch_size=14, vision_feature_select_strategy="full")
    processor.chat_template = llava.chat
    return hf_model, processor
