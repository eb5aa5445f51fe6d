"""Real processors for tiny models, built without a network. Nothing here imports corelens."""

import importlib.util
from dataclasses import dataclass, field
from typing import Any

import pytest
import tiny
import transformers
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

GLM_TEMPLATE = (
    "[gMASK]<sop>\n{% for message in messages %}<|{{ message.role }}|>\n"
    "{% for part in message.content %}{% if part.type == 'image' %}<|begin_of_image|><|image|><|end_of_image|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
ERNIE_TEMPLATE = (
    "<s>{% set pictures = namespace(n=0) %}{% for message in messages %}"
    "{% if message.role == 'user' %}User: {% elif message.role == 'assistant' %}Assistant: {% endif %}"
    "{% for part in message.content %}{% if part.type == 'image' %}{% set pictures.n = pictures.n + 1 %}"
    "Picture {{ pictures.n }}:<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant: {% endif %}"
)

needs_torchvision = pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None, reason="the family's image processor needs torchvision"
)


@dataclass(frozen=True)
class Recipe:
    """What a family's processor is made of."""

    processor: str
    pictures: str
    sizes: dict[str, Any]
    """Options of the image processor: small pictures."""

    special: dict[int, str]
    """Special tokens by their id in the tiny configurations."""

    template: str
    named: dict[str, str] = field(default_factory=dict)
    """Special tokens that the tokenizer knows by name."""

    parts: dict[str, str] = field(default_factory=dict)
    """Classes of further parts that the processor insists on."""

    options: dict[str, Any] = field(default_factory=dict)
    """Options of the processor."""

    words: dict[str, Any] = field(default_factory=dict)
    """Options of the tokenizer."""


def chatml(picture: str) -> str:
    """Qwen's chat template with another form of pictures."""
    return QWEN_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", picture)


def tokenizer(special: dict[int, str], **tokens: Any) -> PreTrainedTokenizerFast:
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


SMALL = dict(size={"shortest_edge": 1024, "longest_edge": 10**6})
QWEN = {
    tiny.IMAGE: "<|image_pad|>", tiny.VIDEO: "<|video_pad|>", tiny.VISION_START: "<|vision_start|>",
    tiny.VISION_END: "<|vision_end|>", 504: "<|im_start|>", 505: "<|im_end|>",
}  # fmt: skip
GLM = {
    496: "<|begin_of_video|>", 497: "<|end_of_video|>", tiny.IMAGE: "<|image|>", tiny.VIDEO: "<|video|>",
    tiny.VISION_START: "<|begin_of_image|>", tiny.VISION_END: "<|end_of_image|>", 504: "[gMASK]", 505: "<sop>",
    506: "<|system|>", 507: "<|user|>", 508: "<|assistant|>",
}  # fmt: skip
ERNIE = {
    496: "<|VIDEO_START|>", 497: "<|VIDEO_END|>", tiny.IMAGE: "<|IMAGE_PLACEHOLDER|>",
    tiny.VIDEO: "<|VIDEO_PLACEHOLDER|>", tiny.VISION_START: "<|IMAGE_START|>", tiny.VISION_END: "<|IMAGE_END|>",
}  # fmt: skip
GEMMA4 = {
    tiny.IMAGE: "<|image|>", tiny.VIDEO: "<|video|>", tiny.VISION_START: "<|image>", tiny.VISION_END: "<image|>",
    504: "<|audio|>", 505: "<|audio>", 506: "<audio|>", 507: "<|turn>", 508: "<turn|>",
}  # fmt: skip
GEMMA4_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|turn>{{ message.role }}\n"
    "{% for part in message.content %}{% if part.type == 'image' %}\n\n<|image|>\n\n"
    "{% else %}{{ part.text | trim }}{% endif %}{% endfor %}<turn|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn>model\n{% endif %}"
)
PHI4_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{% for part in message.content %}"
    "{% if part.type == 'image' %}<|image|>{% else %}{{ part.text }}{% endif %}{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SQUARE = dict(size={"height": 56, "width": 56})
BLIP_TEMPLATE = (
    "{% for message in messages %}{{ 'Question: ' if message.role == 'user' else 'Answer: ' }}"
    "{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}Answer:{% endif %}"
)
IDEFICS_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message.role | capitalize }}:"
    "{% for part in message.content %}{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
KOSMOS = {400: "<unk>"} | {
    480 + index: token for index, token in enumerate(
        ["</doc>", "<image>", "</image>", "</chunk>", "</line>", "<phrase>", "</phrase>", "<object>", "</object>",
         "</delimiter_of_multi_objects/>", "<grounding>", *(f"<patch_index_{index:04}>" for index in range(4))]
    )
}  # fmt: skip

RECIPES = {
    **dict.fromkeys(
        ["qwen3_5", "qwen3_5_moe"],
        Recipe("Qwen3VLProcessor", "Qwen2VLImageProcessorPil", SMALL | dict(patch_size=16), QWEN, QWEN_TEMPLATE),
    ),
    **dict.fromkeys(
        ["glm4v", "glm4v_moe"], Recipe("Glm4vProcessor", "Glm4vImageProcessorPil", SMALL, GLM, GLM_TEMPLATE)
    ),
    **dict.fromkeys(
        ["glm46v", "glm_ocr"], Recipe("Glm46VProcessor", "Glm46VImageProcessorPil", SMALL, GLM, GLM_TEMPLATE)
    ),
    "ernie4_5_vl_moe": Recipe(
        "Ernie4_5_VLMoeProcessor", "Ernie4_5_VLMoeImageProcessorPil", SMALL, ERNIE, ERNIE_TEMPLATE,
        named={
            "image_token": ERNIE[tiny.IMAGE], "image_start_token": ERNIE[tiny.VISION_START],
            "image_end_token": ERNIE[tiny.VISION_END], "video_token": ERNIE[tiny.VIDEO],
            "video_start_token": ERNIE[496], "video_end_token": ERNIE[497],
        },
    ),
    "exaone4_5": Recipe("Exaone4_5_Processor", "Qwen2VLImageProcessorPil", SMALL, QWEN, QWEN_TEMPLATE),
    "hyperclovax_vision_v2": Recipe(
        "HyperCLOVAXVisionV2Processor", "Qwen2VLImageProcessorPil", SMALL, QWEN, QWEN_TEMPLATE
    ),
    **dict.fromkeys(
        ["cosmos3_omni", "qwen4_exp"],
        Recipe("Qwen3VLProcessor", "Qwen2VLImageProcessorPil", SMALL | dict(patch_size=16), QWEN, QWEN_TEMPLATE),
    ),
    "glm5_next": Recipe("Glm5NextProcessor", "Glm46VImageProcessorPil", SMALL, GLM, GLM_TEMPLATE),
    "glmga": Recipe("Glm46VProcessor", "GlmgaImageProcessorPil", SMALL, GLM, GLM_TEMPLATE),
    "cohere_compass": Recipe(
        "CohereCompassProcessor", "CohereCompassImageProcessorPil", SMALL | dict(patch_size=16),
        QWEN | {tiny.IMAGE: "<|IMAGE_PAD|>", tiny.VIDEO: "<|VIDEO_PAD|>", tiny.VISION_START: "<|VISION_START|>",
                tiny.VISION_END: "<|VISION_END|>"},
        chatml("<|VISION_START|><|IMAGE_PAD|><|VISION_END|>"),
    ),
    "lfm3_vl": Recipe("Lfm3VlProcessor", "Qwen2VLImageProcessorPil", SMALL | dict(patch_size=16), QWEN, QWEN_TEMPLATE),
    "video_llama_3": Recipe(
        "VideoLlama3Processor", "VideoLlama3ImageProcessorPil", SMALL, QWEN, chatml("<|image_pad|>")
    ),
    "paddleocr_vl": Recipe(
        "PaddleOCRVLProcessor", "PaddleOCRVLImageProcessorPil", SMALL, QWEN, QWEN_TEMPLATE,
        {"image_token": "<|image_pad|>"},
    ),
    "ovis2": Recipe(
        "Ovis2Processor", "Ovis2ImageProcessorPil",
        dict(size={"height": 56, "width": 56}, crop_to_patches=True, max_patches=6),
        {404: "<image>", 405: "<IMG_START>", 406: "<IMG_GRID>", 407: "<IMG_COL>", 408: "<IMG_ROW>", 409: "<IMG_END>",
         tiny.IMAGE: "<IMG_ATOM>", 505: "<|im_start|>", 506: "<|im_end|>"},
        chatml("<image>\n"), options=dict(image_seq_length=4),
    ),
    "gemma4": Recipe(
        "Gemma4Processor", "Gemma4ImageProcessorPil", dict(patch_size=8, pooling_kernel_size=2, max_soft_tokens=70),
        GEMMA4, GEMMA4_TEMPLATE,
        {name: GEMMA4[index] for name, index in dict(
            image_token=tiny.IMAGE, boi_token=tiny.VISION_START, eoi_token=tiny.VISION_END, audio_token=504,
            boa_token=505, eoa_token=506).items()},
        {"feature_extractor": "Gemma4AudioFeatureExtractor", "video_processor": "Gemma4VideoProcessor"},
    ),
    "lfm2_vl": Recipe(
        "Lfm2VlProcessor", "Lfm2VlImageProcessor",
        dict(tile_size=56, encoder_patch_size=14, min_image_tokens=2, max_image_tokens=8, max_tiles=4),
        {tiny.IMAGE: "<image>", tiny.VISION_START: "<|image_start|>", tiny.VISION_END: "<|image_end|>",
         504: "<|im_start|>", 505: "<|im_end|>", 506: "<|img_thumbnail|>"}
        | {481 + 4 * row + column: f"<|img_row_{row + 1}_col_{column + 1}|>"
           for row in range(4) for column in range(4)},
        "{{ bos_token }}" + chatml("<image>"),
    ),
    "kimi_k25": Recipe(
        "Kimi_K25Processor", "Kimi_K25ImageProcessor", dict(max_patches=48),
        {498: "<|media_begin|>", 499: "<|media_end|>", tiny.IMAGE: "<|media_pad|>",
         tiny.VIDEO: "<|kimi_k25_video_placeholder|>", 504: "<|im_start|>", 505: "<|im_end|>"},
        chatml("<|media_begin|><|media_pad|><|media_end|>"),
    ),
    "minimax_m3_vl": Recipe(
        "MiniMaxM3VLProcessor", "MiniMaxM3VLImageProcessor", SMALL,
        {tiny.IMAGE: "]<]image[>[", tiny.VIDEO: "]<]video[>[", tiny.VISION_START: "]<]start of image[>[",
         tiny.VISION_END: "]<]end of image[>[", 504: "<|im_start|>", 505: "<|im_end|>"},
        chatml("]<]image[>["),
    ),
    "molmo2": Recipe(
        "Molmo2Processor", "Molmo2ImageProcessor",
        dict(size={"height": 70, "width": 70}, overlap_margins=[1, 1], max_crops=4),
        {492: "<im_start>", 493: "<im_end>", 494: "<low_res_im_start>", 495: "<im_col>", 496: "<frame_start>",
         497: "<frame_end>", 498: "<im_low>", 499: "<|image|>", tiny.IMAGE: "<im_patch>", tiny.VIDEO: "<|video|>",
         504: "<|im_start|>", 505: "<|im_end|>"},
        chatml("<|image|>"), parts={"video_processor": "Molmo2VideoProcessor"},
    ),
    "phi4_multimodal": Recipe(
        "Phi4MultimodalProcessor", "Phi4MultimodalImageProcessor",
        dict(size={"height": 128, "width": 128}, patch_size=4, dynamic_hd=4),  # 16 x 16 tokens a crop, as always
        {tiny.IMAGE: "<|image|>", 504: "<|audio|>", 505: "<|user|>", 506: "<|assistant|>", 507: "<|end|>",
         508: "<|system|>"},
        PHI4_TEMPLATE, {"image_token": "<|image|>", "audio_token": "<|audio|>"},
        {"audio_processor": "Phi4MultimodalFeatureExtractor"},
    ),
}  # fmt: skip

QUERIES = {
    "aria": Recipe(
        "AriaProcessor", "AriaImageProcessorPil", {}, {tiny.IMAGE: "<|img|>", 504: "<|im_start|>", 505: "<|im_end|>"},
        chatml("<|img|>"), {"image_token": "<|img|>"}, options=dict(size_conversion={980: 4}),
    ),
    "blip-2": Recipe(
        "Blip2Processor", "BlipImageProcessorPil", SQUARE, {tiny.IMAGE: "<image>"}, BLIP_TEMPLATE,
        options=dict(num_query_tokens=4),
    ),
    "idefics2": Recipe(
        "Idefics2Processor", "Idefics2ImageProcessorPil",
        dict(do_image_splitting=False, size={"shortest_edge": 28, "longest_edge": 56}),
        {498: "<fake_token_around_image>", tiny.IMAGE: "<image>", 504: "<end_of_utterance>"}, IDEFICS_TEMPLATE,
        options=dict(image_seq_len=4),
    ),
    "instructblip": Recipe(
        "InstructBlipProcessor", "BlipImageProcessorPil", SQUARE, {tiny.IMAGE: "<image>"}, BLIP_TEMPLATE,
        options=dict(num_query_tokens=4, qformer_tokenizer=tokenizer({tiny.IMAGE: "<image>"})),
    ),
    "kosmos-2": Recipe(
        "Kosmos2Processor", "CLIPImageProcessorPil",
        dict(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}),
        KOSMOS, BLIP_TEMPLATE, options=dict(num_patch_index_tokens=4),
        words=dict(unk_token="<unk>", padding_side="left"),
    ),
}  # fmt: skip
"""Families whose visual tokens are learned queries."""

TORCHVISION = {"gemma4", "kimi_k25", "lfm2_vl", "minimax_m3_vl", "molmo2", "phi4_multimodal"}
"""Families whose processor does not work without torchvision."""


def cook(recipe: Recipe) -> Any:
    real = getattr(transformers, recipe.processor)
    # Videos need torchvision, and sounds are not for prompts of pictures.
    parts = [
        part
        for part in real.get_attributes()
        if part in {"image_processor", "tokenizer"} | {*recipe.parts, *recipe.options}
    ]
    pictures_only = type(real.__name__, (real,), {"get_attributes": classmethod(lambda cls: parts)})
    built = pictures_only(
        image_processor=getattr(transformers, recipe.pictures)(**recipe.sizes),
        tokenizer=tokenizer(recipe.special, bos_token="<s>", extra_special_tokens=recipe.named, **recipe.words),
        **{part: getattr(transformers, name)() for part, name in recipe.parts.items()},
        **recipe.options,
    )
    built.chat_template = recipe.template  # some processors do not take it
    return built


def build(family: str) -> Any:
    """The family's own processor class, for pictures only."""
    if family in RECIPES | QUERIES:
        return cook((RECIPES | QUERIES)[family])
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
