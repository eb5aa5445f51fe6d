"""Real processors for tiny models, built without a network. Nothing here imports corelens."""

from typing import Any

import tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessorPil,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
    Qwen3VLProcessor,
)

TEXT = ["Which digit is red?", "What colour is the 7?", "You are a helpful assistant.", "USER: ASSISTANT: user\n"]
QWEN_TEMPLATE = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAVA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message.role | upper }}: "
    "{% for part in message.content %}{% if part.type == 'image' %}<image>\n{% endif %}{% endfor %}"
    "{% for part in message.content %}{% if part.type == 'text' %}{{ part.text | trim }}{% endif %}{% endfor %} "
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def tokenizer(special: dict[int, str], **tokens: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE whose special tokens have the ids that the tiny configurations expect."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    first = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=first, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    bpe.train_from_iterator(TEXT * 4, trainer)
    filler = [f"<unused{index}>" for index in range(bpe.get_vocab_size(), min(special))]
    names = [special.get(index, f"<unused{index}>") for index in range(min(special), max(special) + 1)]
    bpe.add_special_tokens([*filler, *names])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", eos_token="</s>", **tokens)


def build(family: str) -> Any:
    """The family's own processor class, for pictures only."""
    if family == "llava":
        words = tokenizer({tiny.IMAGE: "<image>"}, bos_token="<s>")
        pictures = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
        return LlavaProcessor(
            pictures, words, patch_size=14, vision_feature_select_strategy="default", chat_template=LLAVA_TEMPLATE,
            num_additional_image_tokens=1,
        )  # fmt: skip
    names = {
        tiny.IMAGE: "<|image_pad|>", tiny.VIDEO: "<|video_pad|>", tiny.VISION_START: "<|vision_start|>",
        tiny.VISION_END: "<|vision_end|>", 504: "<|im_start|>", 505: "<|im_end|>",
    }  # fmt: skip
    real = {"qwen3_vl": Qwen3VLProcessor, "qwen2_5_vl": Qwen2_5_VLProcessor}[family]
    parts = ["image_processor", "tokenizer"]  # videos need torchvision
    pictures_only = type(real.__name__, (real,), {"get_attributes": classmethod(lambda cls: parts)})
    patch = {"qwen3_vl": 16, "qwen2_5_vl": 14}[family]
    return pictures_only(
        image_processor=Qwen2VLImageProcessorPil(patch_size=patch, size={"shortest_edge": 1024, "longest_edge": 10**6}),
        tokenizer=tokenizer(names),
        chat_template=QWEN_TEMPLATE,
    )
