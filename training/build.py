"""The untrained model: a small Qwen3-VL with its tokenizer, image processor and chat template."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
)

from corelens.data.synthetic.photographs import SHAPES
from corelens.inputs.processor import pictures_only
from corelens.toy.bars import DAYS
from corelens.toy.pages import COLUMNS, FIELDS, ITEMS
from corelens.toy.scene import COLOURS, DIGITS

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END, IMAGE, VIDEO = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"
SPECIAL = (PAD, START, END, VISION_START, VISION_END, IMAGE, VIDEO)
WORDS = (
    *("<unk>", "system", "user", "assistant", "which", "digit", "is", "what", "colour", "the", "copy", "plus"),
    *("?", "."),
    *DIGITS,
    *COLOURS,
    *("shape", "field", "says", "how", "high", "day"),
    *SHAPES,
    *FIELDS,
    *ITEMS,
    *COLUMNS,
    *DAYS,
)

CHAT_TEMPLATE = (
    "{%- for message in messages -%}{{ '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.content is string -%}{{ message.content }}"
    "{%- else -%}{%- for part in message.content -%}"
    "{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>"
    "{%- elif part.type == 'text' -%}{{ part.text }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{{ '<|im_end|>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)

PATCH, MERGE = 8, 2


@dataclass(frozen=True)
class Size:
    """Size of a model; its vision tower has four layers, as wide as those of its language model."""

    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_head: int


SIZES = {
    "small": Size(d_model=80, n_layers=5, n_heads=10, n_kv_heads=5, d_head=16),
    "middle": Size(d_model=128, n_layers=6, n_heads=16, n_kv_heads=8, d_head=16),
    "large": Size(d_model=256, n_layers=8, n_heads=16, n_kv_heads=8, d_head=32),
}
"""1.2, 3.2 and 14.6 million parameters. The large one is not shipped."""


def tokenizer() -> PreTrainedTokenizerFast:
    """Word-level tokenizer: the special tokens of Qwen3-VL and the words of the toy questions."""
    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *WORDS))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=PAD,
        eos_token=END,
        unk_token="<unk>",
        additional_special_tokens=[*SPECIAL],
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    )


def image_processor() -> Qwen2VLImageProcessorPil:
    """Qwen's image processor: patches of 8 pixels, 2 x 2 of them merged into one visual token."""
    return Qwen2VLImageProcessorPil(
        patch_size=PATCH, merge_size=MERGE, image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5]
    )


def processor() -> Any:
    """Tokenizer, image processor and chat template together, in Qwen3-VL's class without videos."""
    return pictures_only(Qwen3VLProcessor)(
        image_processor=image_processor(), tokenizer=tokenizer(), chat_template=CHAT_TEMPLATE
    )


def save(toy: Any, folder: Path) -> None:
    """Save a checkpoint: weights in float16, which load as float32, and the processor's files."""
    weights = {name: tensor.half().contiguous() for name, tensor in toy.state_dict().items()}
    toy.save_pretrained(folder, state_dict=weights)
    processor().save_pretrained(folder)
    # Written by hand, since building a video processor needs torchvision; where that is installed, AutoProcessor
    # expects one.
    config = json.loads((folder / "processor_config.json").read_text())
    shared_keys = ("patch_size", "merge_size", "temporal_patch_size", "image_mean", "image_std")
    config["video_processor"] = {"video_processor_type": "Qwen3VLVideoProcessor"} | {
        name: config["image_processor"][name] for name in shared_keys
    }
    (folder / "processor_config.json").write_text(json.dumps(config, indent=2))


def model(seed: int, size: Size = SIZES["middle"]) -> Any:
    """Build a randomly initialized model with 64 visual tokens for a picture of 128 x 128 pixels."""
    d_head = size.d_head
    ids = {word: index for index, word in enumerate((*SPECIAL, *WORDS))}
    torch.manual_seed(seed)
    sections = [d_head // 2 - 2 * (d_head // 6), d_head // 6, d_head // 6]
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(ids),
            "hidden_size": size.d_model,
            "intermediate_size": 3 * size.d_model,
            "num_hidden_layers": size.n_layers,
            "num_attention_heads": size.n_heads,
            "num_key_value_heads": size.n_kv_heads,
            "head_dim": d_head,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": sections,
                "mrope_interleaved": True,
            },
            "pad_token_id": ids[PAD],
            "bos_token_id": None,
            "eos_token_id": ids[END],
            "tie_word_embeddings": False,
        },
        vision_config={
            "depth": 4,
            "hidden_size": size.d_model,
            "intermediate_size": 3 * size.d_model,
            "num_heads": 4,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "out_hidden_size": size.d_model,
            "num_position_embeddings": 256,
            "deepstack_visual_indexes": [1, 2],
        },
        image_token_id=ids[IMAGE],
        video_token_id=ids[VIDEO],
        vision_start_token_id=ids[VISION_START],
        vision_end_token_id=ids[VISION_END],
        tie_word_embeddings=False,
    )
    toy = Qwen3VLForConditionalGeneration(config)
    toy.generation_config.eos_token_id = ids[END]
    toy.generation_config.pad_token_id = ids[PAD]
    return toy
