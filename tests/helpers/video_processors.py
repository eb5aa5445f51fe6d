"""Real processors that also take videos, and tiny models for them. Building processors needs torchvision."""

from dataclasses import replace
from typing import Any

import torch
from transformers import (
    GotOcr2ImageProcessorPil,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedModel,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from tests.helpers import processors, tiny
from tests.helpers.architectures import ARCHITECTURES

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision", "internvl")
QWEN_TEMPLATE = processors.QWEN_TEMPLATE.replace(
    "{% elif part.type == 'text' %}",
    "{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% elif part.type == 'text' %}",
)
CHATML = "{% for message in messages %}<|im_start|>{{ message.role }}\n"
CHATML_END = "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
INTERNVL_TEMPLATE = (
    CHATML + "{% for part in message.content %}{% if part.type == 'image' %}<IMG_CONTEXT>\n"
    "{% elif part.type == 'video' %}<video>\n{% else %}{{ part.text }}{% endif %}{% endfor %}" + CHATML_END
)
ONEVISION_TEMPLATE = (  # as the published one: pictures first, then videos, then text
    CHATML
    + "{% for part in message.content if part.type == 'image' %}<image>\n{% endfor %}"
    + "{% for part in message.content if part.type == 'video' %}<video>\n{% endfor %}"
    + "{% for part in message.content if part.type == 'text' %}{{ part.text }}{% endfor %}"
    + CHATML_END
)
DELIMITERS = {504: "<|im_start|>", 505: "<|im_end|>"}


def build(family: str, **sampling: Any) -> Any:
    """Build a family's own processor with its video processor, which takes `sampling`."""
    if family == "internvl":
        names = {tiny.IMAGE: "<IMG_CONTEXT>", tiny.VISION_START: "<img>", tiny.VISION_END: "</img>"}
        names |= {tiny.VIDEO: "<video>"}
        named_tokens: Any = {
            "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        }  # fmt: skip
        tokenizer = processors.tokenizer(names | DELIMITERS, extra_special_tokens=named_tokens)
        size = {"height": 56, "width": 56}
        return InternVLProcessor(
            GotOcr2ImageProcessorPil(size=size), tokenizer, InternVLVideoProcessor(size=size, **sampling),
            image_seq_length=4, chat_template=INTERNVL_TEMPLATE,
        )  # fmt: skip
    if family == "llava_onevision":
        size = {"height": 70, "width": 70}
        return LlavaOnevisionProcessor(
            LlavaOnevisionImageProcessorPil(size=size, image_grid_pinpoints=[[70, 70], [70, 140], [140, 70]]),
            processors.tokenizer({tiny.IMAGE: "<image>", tiny.VIDEO: "<video>"} | DELIMITERS),
            LlavaOnevisionVideoProcessor(size=size, **sampling),
            num_image_tokens=25,
            vision_feature_select_strategy="full",
            chat_template=ONEVISION_TEMPLATE,
        )
    names = {
        tiny.IMAGE: "<|image_pad|>", tiny.VIDEO: "<|video_pad|>", tiny.VISION_START: "<|vision_start|>",
        tiny.VISION_END: "<|vision_end|>",
    }  # fmt: skip
    patch, processor_class, video_class = {
        "qwen2_vl": (14, Qwen2VLProcessor, Qwen2VLVideoProcessor),
        "qwen2_5_vl": (14, Qwen2_5_VLProcessor, Qwen2VLVideoProcessor),
        "qwen3_vl": (16, Qwen3VLProcessor, Qwen3VLVideoProcessor),
    }[family]
    size = {"shortest_edge": 1024, "longest_edge": 10**6}
    return processor_class(
        Qwen2VLImageProcessorPil(patch_size=patch, size=size),
        processors.tokenizer(names | DELIMITERS),
        video_class(patch_size=patch, size=size, cap_pixels_per_frame=False, **sampling),
        chat_template=QWEN_TEMPLATE,
    )


def model(family: str) -> PreTrainedModel:
    """A random model whose vision tower mixes tokens weakly, so that a feature tells which pixels it comes from."""
    if family == "llava_onevision" and "llava_onevision_70" not in ARCHITECTURES:
        # Five by five patches, so that pooling has an odd number to halve.
        architecture = ARCHITECTURES[family]
        vision = architecture.config["vision_config"] | dict(image_size=70)
        config = architecture.config | dict(vision_config=vision, image_grid_pinpoints=[[70, 70], [70, 140], [140, 70]])
        ARCHITECTURES["llava_onevision_70"] = replace(architecture, config=config, model_type=family)
    hf_model = tiny.build("llava_onevision_70" if family == "llava_onevision" else family)
    with torch.no_grad():
        for name, parameter in hf_model.get_encoder("image").named_parameters():
            if any(end in name for end in ("out_proj", "attn.proj", "projection_layer")):
                parameter.mul_(0.1)
    return hf_model
