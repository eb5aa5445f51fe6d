"""Real processors for tiny models, built without a network."""

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.models.smolvlm import processing_smolvlm

from corelens.inputs.processor import pictures_only
from tests.helpers import tiny

TORCHVISION = importlib.util.find_spec("torchvision") is not None
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


def template(image: str, turn: str = "{role}: ", end: str = "\n", start: str = "") -> str:
    """Build a chat template that writes the parts of a message in their order."""
    opening = turn.replace("{role}", "{{ message.role }}")
    return (
        f"{start}{{% for message in messages %}}{opening}{{% for part in message.content %}}"
        f"{{% if part.type == 'image' %}}{image}{{% else %}}{{{{ part.text }}}}{{% endif %}}{{% endfor %}}{end}"
        f"{{% endfor %}}{{% if add_generation_prompt %}}{turn.replace('{role}', 'assistant')}{{% endif %}}"
    )


def chatml(picture: str) -> str:
    """Qwen's chat template with another placeholder for pictures."""
    return QWEN_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", picture)


def tokenizer(special: dict[int, str], **tokens: Any) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE whose special tokens have the ids that the tiny configurations expect."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    basic_tokens = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=basic_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(TEXT * 4, trainer)
    filler = [f"<unused{index}>" for index in range(bpe.get_vocab_size(), min(special))]
    names = [special.get(index, f"<unused{index}>") for index in range(min(special), max(special) + 1)]
    bpe.add_special_tokens([*filler, *names])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, **dict(pad_token="<pad>", bos_token="<s>", eos_token="</s>") | tokens
    )


@dataclass(frozen=True)
class Family:
    """Classes and settings of a processor. Sizes are small: most vision towers take 56 or 112 pixels."""

    processor: str
    """The processor's class."""

    images: str
    """The image processor's class; those that end in Pil do not need torchvision."""

    settings: dict[str, Any]
    """Settings of the image processor."""

    chat: str
    """Chat template."""

    special: dict[int, str] = field(default_factory=lambda: {tiny.IMAGE: "<image>"})
    """Special tokens by their id in the tiny configurations."""

    named: dict[str, str] = field(default_factory=dict)
    """Special tokens that the processor looks up by an attribute of the tokenizer."""

    options: dict[str, Any] = field(default_factory=dict)
    """Options of the processor."""

    parts: dict[str, str] = field(default_factory=dict)
    """Classes of further parts."""

    pictures: dict[str, Any] = field(default_factory=dict)
    """Settings that the processor passes to its image processor in every call."""

    words: dict[str, Any] = field(default_factory=dict)
    """Options of the tokenizer."""

    @property
    def needs_torchvision(self) -> bool:
        return not self.images.endswith("Pil") or self.processor == "PixtralProcessor"

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        return tokenizer(self.special, extra_special_tokens=self.named, **self.words)


SQUARE = {"height": 56, "width": 56}
LARGE = {"height": 112, "width": 112}
PINPOINTS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
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
TILE_TAGS = {460 + 6 * row + column: f"<row_{row + 1}_col_{column + 1}>" for row in range(6) for column in range(6)}
IDEFICS = {
    tiny.IMAGE: "<image>", tiny.VIDEO: "<video>", 504: "<fake_token_around_image>", 505: "<end_of_utterance>",
    506: "<global-img>", **TILE_TAGS,
}  # fmt: skip
IDEFICS_SETTINGS = dict(size={"longest_edge": 4 * 112}, max_image_size={"longest_edge": 112})
IDEFICS_CHAT = template("<image>", "<s>{role}: ", "<end_of_utterance>\n")


KOSMOS = {400: "<unk>"} | {
    480 + index: token for index, token in enumerate(
        ["</doc>", "<image>", "</image>", "</chunk>", "</line>", "<phrase>", "</phrase>", "<object>", "</object>",
         "</delimiter_of_multi_objects/>", "<grounding>", *(f"<patch_index_{index:04}>" for index in range(4))]
    )
}  # fmt: skip


def patches(processor: str, patch: int = 14, images: str = "Qwen2VLImageProcessorPil", chat: str = "") -> Family:
    """A family that cuts pictures of any size into patches."""
    settings = dict(patch_size=patch, size={"shortest_edge": 1024, "longest_edge": 10**6})
    special = GLM if processor.startswith("Glm") else QWEN
    return Family(processor, images, settings, chat or (GLM_TEMPLATE if special is GLM else QWEN_TEMPLATE), special)


def omni(processor: str, patch: int) -> Family:
    """A family that also hears and speaks."""
    audio = {504: "<|AUDIO|>", 505: "<|audio_bos|>", 506: "<|audio_eos|>"}
    special = QWEN | audio | {507: "<|im_start|>", 508: "<|im_end|>"}
    names = ("image_token", "video_token", "vision_bos_token", "vision_eos_token")
    named = dict(zip(names, list(QWEN.values())[:4], strict=True))
    named |= dict(audio_token="<|AUDIO|>", audio_bos_token="<|audio_bos|>", audio_eos_token="<|audio_eos|>")
    parts = {"feature_extractor": "WhisperFeatureExtractor"}
    return replace(patches(processor, patch), special=special, named=named, parts=parts)


def llava(**options: Any) -> Family:
    defaults = dict(patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1)
    settings = dict(size={"shortest_edge": 56}, crop_size=SQUARE)
    return Family("LlavaProcessor", "CLIPImageProcessorPil", settings, LLAVA_TEMPLATE, options=defaults | options)


PIXTRAL = Family(
    "PixtralProcessor",
    "PixtralImageProcessor",
    dict(size={"longest_edge": 224}, patch_size={"height": 28, "width": 28}),
    template("[IMG]", "[INST]", "[/INST]", "<s>"),
    {tiny.IMAGE: "[IMG]", 504: "[IMG_BREAK]", 505: "[IMG_END]", 506: "[INST]", 507: "[/INST]"},
    options=dict(patch_size=14, spatial_merge_size=2),
)


def gemma3(**pictures: Any) -> Family:
    special = {
        tiny.IMAGE: "<image_soft_token>",
        tiny.VISION_START: "<start_of_image>",
        tiny.VISION_END: "<end_of_image>",
    }
    return Family(
        "Gemma3Processor",
        "Gemma3ImageProcessorPil",
        dict(size=LARGE),
        template("<start_of_image>", "<s>{role}\n"),
        special,
        dict(zip(("image_token", "boi_token", "eoi_token"), special.values(), strict=True)),
        dict(image_seq_length=16),
        pictures=pictures,
    )


def minicpm(processor: str) -> Family:
    named = dict(
        image_token="<|image_pad|>", video_token="<|video_pad|>", image_start_token="<image>",
        image_end_token="</image>", slice_start_token="<slice>", slice_end_token="</slice>",
        image_id_start_token="<image_id>", image_id_end_token="</image_id>",
    )  # fmt: skip
    return Family(
        processor,
        "MiniCPMV4_6ImageProcessorPil",
        dict(scale_resolution=112, max_slice_nums=6),
        chatml("<|image_pad|>"),
        QWEN | dict(enumerate(list(named.values())[2:], 490)),
        named,
    )


FAMILIES: dict[str, Family] = {
    **dict.fromkeys(
        ["qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "qwen4_exp", "cosmos3_omni"],
        patches("Qwen3VLProcessor", 16),
    ),
    "qwen2_vl": patches("Qwen2VLProcessor"),
    "qwen2_5_vl": patches("Qwen2_5_VLProcessor"),
    "exaone4_5": patches("Exaone4_5_Processor"),
    "hyperclovax_vision_v2": patches("HyperCLOVAXVisionV2Processor"),
    "lfm3_vl": patches("Lfm3VlProcessor", 16),
    "qwen2_5_omni_thinker": omni("Qwen2_5OmniProcessor", 14),
    "qwen3_omni_moe_thinker": omni("Qwen3OmniMoeProcessor", 16),
    "video_llama_3": patches(
        "VideoLlama3Processor", images="VideoLlama3ImageProcessorPil", chat=chatml("<|image_pad|>")
    ),
    "paddleocr_vl": replace(
        patches("PaddleOCRVLProcessor", images="PaddleOCRVLImageProcessorPil"), named={"image_token": "<|image_pad|>"}
    ),
    **dict.fromkeys(["glm4v", "glm4v_moe"], patches("Glm4vProcessor", images="Glm4vImageProcessorPil")),
    **dict.fromkeys(["glm46v", "glm_ocr"], patches("Glm46VProcessor", images="Glm46VImageProcessorPil")),
    "glm5_next": patches("Glm5NextProcessor", images="Glm46VImageProcessorPil"),
    "glmga": patches("Glm46VProcessor", images="GlmgaImageProcessorPil"),
    "llava": llava(),
    "vipllava": llava(),
    "fast_vlm": llava(vision_feature_select_strategy="full", num_additional_image_tokens=0),
    "llava_next": Family(
        "LlavaNextProcessor",
        "LlavaNextImageProcessorPil",
        dict(size={"shortest_edge": 56}, crop_size=SQUARE, image_grid_pinpoints=PINPOINTS),
        LLAVA_TEMPLATE,
        options=dict(patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1),
    ),
    "llava_onevision": Family(
        "LlavaOnevisionProcessor",
        "LlavaOnevisionImageProcessorPil",
        dict(size=SQUARE, image_grid_pinpoints=[[56 * y, 56 * x] for y in range(1, 7) for x in range(1, 7)]),
        template("<image>", "<s>{role}\n"),
        {tiny.IMAGE: "<image>", tiny.VIDEO: "<video>"},
        options=dict(num_image_tokens=16, vision_feature_select_strategy="full", vision_aspect_ratio="anyres_max_9"),
    ),
    "internvl": Family(
        "InternVLProcessor",
        "GotOcr2ImageProcessorPil",
        dict(size=LARGE, max_patches=6),
        template("<IMG_CONTEXT>\n", "<s>{role}\n"),
        {tiny.IMAGE: "<IMG_CONTEXT>", tiny.VIDEO: "<video>", tiny.VISION_START: "<img>", tiny.VISION_END: "</img>"},
        dict(
            start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>",
            video_token="<video>",
        ),
        dict(image_seq_length=16),
    ),
    "gemma3": gemma3(),
    "gemma3_pan_and_scan": gemma3(
        do_pan_and_scan=True, pan_and_scan_min_crop_size=40, pan_and_scan_max_num_crops=4,
        pan_and_scan_min_ratio_to_activate=1.2,
    ),
    "gemma3n": Family(
        "Gemma3nProcessor",
        "SiglipImageProcessorPil",
        dict(size=SQUARE),
        template("<image_soft_token>", "<s>{role}\n"),
        {tiny.IMAGE: "<image_soft_token>", tiny.VISION_START: "<start_of_image>", tiny.VISION_END: "<end_of_image>",
         504: "<audio_soft_token>", 505: "<start_of_audio>", 506: "<end_of_audio>"},
        dict(image_token="<image_soft_token>", boi_token="<start_of_image>", eoi_token="<end_of_image>",
             audio_token="<audio_soft_token>", boa_token="<start_of_audio>", eoa_token="<end_of_audio>"),
        dict(image_seq_length=16),
        parts={"feature_extractor": "Gemma3nAudioFeatureExtractor"},
    ),
    "idefics3": Family(
        "Idefics3Processor", "Idefics3ImageProcessorPil", IDEFICS_SETTINGS, IDEFICS_CHAT, IDEFICS,
        options=dict(image_seq_len=16),
    ),
    "smolvlm": Family(
        "SmolVLMProcessor", "SmolVLMImageProcessorPil", IDEFICS_SETTINGS, IDEFICS_CHAT, IDEFICS,
        options=dict(image_seq_len=16),
    ),
    "mistral3": PIXTRAL,
    "mistral_large4": PIXTRAL,
    "llava_pixtral": replace(PIXTRAL, options=dict(patch_size=14, spatial_merge_size=1)),
    "lighton_ocr": replace(
        PIXTRAL,
        processor="LightOnOcrProcessor",
        images="PixtralImageProcessorPil",
        named=dict(image_token="[IMG]", image_break_token="[IMG_BREAK]", image_end_token="[IMG_END]"),
    ),
    "deepseek_vl": Family(
        "DeepseekVLProcessor",
        "DeepseekVLImageProcessorPil",
        dict(size=SQUARE),
        template("<image>", "<s>{role}: "),
        named=dict(image_token="<image>"),
        options=dict(num_image_tokens=16),
    ),
    "janus": Family(
        "JanusProcessor",
        "JanusImageProcessorPil",
        dict(size=SQUARE),
        template("<image>", "<s>{role}: "),
        {tiny.IMAGE: "<image>", tiny.VISION_START: "<boi>", tiny.VISION_END: "<eoi>"},
        dict(image_token="<image>", boi_token="<boi>", eoi_token="<eoi>"),
        dict(num_image_tokens=16),
    ),
    "paligemma": Family(
        "PaliGemmaProcessor",
        "SiglipImageProcessorPil",
        dict(size=SQUARE, image_seq_length=16),
        "{% for message in messages %}{% for part in message.content %}{% if part.type == 'image' %}<image>"
        "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}",
    ),
    "aya_vision": Family(
        "AyaVisionProcessor",
        "GotOcr2ImageProcessorPil",
        dict(size=LARGE, max_patches=6),
        template("<image>", "<s>{role}: "),
        {
            tiny.IMAGE: "<|IMG_PATCH|>", 504: "<image>", 505: "<|START_OF_IMG|>", 506: "<|END_OF_IMG|>",
            507: "<|IMG_LINE_BREAK|>", 508: "TILE", 509: "TILE_GLOBAL",
        },
        options=dict(patch_size=14, img_size=112, downsample_factor=2),
    ),
    "cohere2_vision": Family(
        "Cohere2VisionProcessor",
        "Cohere2VisionImageProcessor",
        dict(size=LARGE, max_patches=6, patch_size=4),
        template("<image>", "<s>{role}: "),
        {tiny.IMAGE: "<image>", 504: "<boi>", 505: "<eoi>", 506: "<break>"},
        dict(image_token="<image>", boi_token="<boi>", eoi_token="<eoi>", img_line_break_token="<break>"),
    ),
    "llama4": Family(
        "Llama4Processor",
        "Llama4ImageProcessor",
        dict(size=LARGE, max_patches=6),
        template("<|image|>", "<|header_start|>{role}<|header_end|>\n\n", "<|eot|>", "<s>"),
        {
            tiny.IMAGE: "<|patch|>", tiny.VISION_START: "<|image_start|>", tiny.VISION_END: "<|image_end|>",
            504: "<|image|>", 505: "<|tile_x_separator|>", 506: "<|tile_y_separator|>", 507: "<|header_start|>",
            508: "<|header_end|>", 509: "<|eot|>",
        },
        options=dict(patch_size=14, pixel_shuffle_ratio=0.5),
    ),
    "perception_lm": Family(
        "PerceptionLMProcessor",
        "PerceptionLMImageProcessor",
        dict(tile_size=112, max_num_tiles=6),
        template("<image>", "<s>{role}\n"),
        {tiny.IMAGE: "<image>", tiny.VIDEO: "<video>"},
        dict(image_token="<image>", video_token="<video>"),
        dict(patch_size=14, pooling_ratio=2),
    ),
    "ernie4_5_vl_moe": Family(
        "Ernie4_5_VLMoeProcessor", "Ernie4_5_VLMoeImageProcessorPil", SMALL, ERNIE_TEMPLATE, ERNIE,
        named={
            "image_token": ERNIE[tiny.IMAGE], "image_start_token": ERNIE[tiny.VISION_START],
            "image_end_token": ERNIE[tiny.VISION_END], "video_token": ERNIE[tiny.VIDEO],
            "video_start_token": ERNIE[496], "video_end_token": ERNIE[497],
        },
    ),
    "cohere_compass": Family(
        "CohereCompassProcessor", "CohereCompassImageProcessorPil", SMALL | dict(patch_size=16),
        chatml("<|VISION_START|><|IMAGE_PAD|><|VISION_END|>"),
        QWEN | {tiny.IMAGE: "<|IMAGE_PAD|>", tiny.VIDEO: "<|VIDEO_PAD|>", tiny.VISION_START: "<|VISION_START|>",
                tiny.VISION_END: "<|VISION_END|>"},
    ),
    "ovis2": Family(
        "Ovis2Processor", "Ovis2ImageProcessorPil",
        dict(size=SQUARE, crop_to_patches=True, max_patches=6),
        chatml("<image>\n"),
        {404: "<image>", 405: "<IMG_START>", 406: "<IMG_GRID>", 407: "<IMG_COL>", 408: "<IMG_ROW>", 409: "<IMG_END>",
         tiny.IMAGE: "<IMG_ATOM>", 505: "<|im_start|>", 506: "<|im_end|>"}, options=dict(image_seq_length=4),
    ),
    "gemma4": Family(
        "Gemma4Processor", "Gemma4ImageProcessorPil", dict(patch_size=8, pooling_kernel_size=2, max_soft_tokens=70),
        GEMMA4_TEMPLATE, GEMMA4,
        {name: GEMMA4[index] for name, index in dict(
            image_token=tiny.IMAGE, boi_token=tiny.VISION_START, eoi_token=tiny.VISION_END, audio_token=504,
            boa_token=505, eoa_token=506).items()},
        parts={"feature_extractor": "Gemma4AudioFeatureExtractor"},
    ),
    "lfm2_vl": Family(
        "Lfm2VlProcessor", "Lfm2VlImageProcessor",
        dict(tile_size=56, encoder_patch_size=14, min_image_tokens=2, max_image_tokens=8, max_tiles=4),
        "{{ bos_token }}" + chatml("<image>"),
        {tiny.IMAGE: "<image>", tiny.VISION_START: "<|image_start|>", tiny.VISION_END: "<|image_end|>",
         504: "<|im_start|>", 505: "<|im_end|>", 506: "<|img_thumbnail|>"}
        | {481 + 4 * row + column: f"<|img_row_{row + 1}_col_{column + 1}|>"
           for row in range(4) for column in range(4)},
    ),
    "minicpmv4_6": minicpm("MiniCPMV4_6Processor"),
    "minicpmv4_7": minicpm("MiniCPMV4_7Processor"),
    "kimi_k25": Family(
        "Kimi_K25Processor", "Kimi_K25ImageProcessor", dict(max_patches=48),
        chatml("<|media_begin|><|media_pad|><|media_end|>"),
        {498: "<|media_begin|>", 499: "<|media_end|>", tiny.IMAGE: "<|media_pad|>",
         tiny.VIDEO: "<|kimi_k25_video_placeholder|>", 504: "<|im_start|>", 505: "<|im_end|>"},
    ),
    "minimax_m3_vl": Family(
        "MiniMaxM3VLProcessor", "MiniMaxM3VLImageProcessor", SMALL,
        chatml("]<]image[>["),
        {tiny.IMAGE: "]<]image[>[", tiny.VIDEO: "]<]video[>[", tiny.VISION_START: "]<]start of image[>[",
         tiny.VISION_END: "]<]end of image[>[", 504: "<|im_start|>", 505: "<|im_end|>"},
    ),
    "molmo2": Family(
        "Molmo2Processor", "Molmo2ImageProcessor",
        dict(size={"height": 70, "width": 70}, overlap_margins=[1, 1], max_crops=4),
        chatml("<|image|>"),
        {492: "<im_start>", 493: "<im_end>", 494: "<low_res_im_start>", 495: "<im_col>", 496: "<frame_start>",
         497: "<frame_end>", 498: "<im_low>", 499: "<|image|>", tiny.IMAGE: "<im_patch>", tiny.VIDEO: "<|video|>",
         504: "<|im_start|>", 505: "<|im_end|>"},
    ),
    "phi4_multimodal": Family(
        "Phi4MultimodalProcessor", "Phi4MultimodalImageProcessor",
        dict(size={"height": 128, "width": 128}, patch_size=4, dynamic_hd=4),  # 16 x 16 tokens a crop, as always
        PHI4_TEMPLATE,
        {tiny.IMAGE: "<|image|>", 504: "<|audio|>", 505: "<|user|>", 506: "<|assistant|>", 507: "<|end|>",
         508: "<|system|>"}, {"image_token": "<|image|>", "audio_token": "<|audio|>"},
        parts={"audio_processor": "Phi4MultimodalFeatureExtractor"},
    ),
}  # fmt: skip

QUERIES = {
    "aria": Family(
        "AriaProcessor", "AriaImageProcessorPil", {}, chatml("<|img|>"),
        {tiny.IMAGE: "<|img|>", 504: "<|im_start|>", 505: "<|im_end|>"}, {"image_token": "<|img|>"},
        options=dict(size_conversion={980: 4}),
    ),
    "blip-2": Family(
        "Blip2Processor", "BlipImageProcessorPil", dict(size=SQUARE), BLIP_TEMPLATE, {tiny.IMAGE: "<image>"},
        options=dict(num_query_tokens=4),
    ),
    "idefics2": Family(
        "Idefics2Processor", "Idefics2ImageProcessorPil",
        dict(do_image_splitting=False, size={"shortest_edge": 28, "longest_edge": 56}),
        IDEFICS_TEMPLATE, {498: "<fake_token_around_image>", tiny.IMAGE: "<image>", 504: "<end_of_utterance>"},
        options=dict(image_seq_len=4),
    ),
    "instructblip": Family(
        "InstructBlipProcessor", "BlipImageProcessorPil", dict(size=SQUARE), BLIP_TEMPLATE, {tiny.IMAGE: "<image>"},
        options=dict(num_query_tokens=4, qformer_tokenizer=tokenizer({tiny.IMAGE: "<image>"})),
    ),
    "kosmos-2": Family(
        "Kosmos2Processor", "CLIPImageProcessorPil",
        dict(size={"shortest_edge": 56}, crop_size=SQUARE),
        BLIP_TEMPLATE, KOSMOS, options=dict(num_patch_index_tokens=4),
        words=dict(unk_token="<unk>", padding_side="left"),
    ),
}  # fmt: skip
"""Families whose visual tokens are learned queries."""

OTHERS = {
    "chameleon": Family(
        "ChameleonProcessor", "ChameleonImageProcessorPil", dict(size={"shortest_edge": 16}, crop_size=16),
        template("<image>"), {tiny.IMAGE: "<image>", 502: "<racm3:break>", 503: "<eoss>"},
        options=dict(image_seq_length=16),
    ),
    "mllama": Family(
        "MllamaProcessor", "MllamaImageProcessorPil", dict(size={"height": 28, "width": 28}, max_image_tiles=2),
        template("<|image|>"), {tiny.IMAGE: "<|image|>"},
    ),
}  # fmt: skip
"""Families whose pictures are codes, or are not among the tokens."""


def families(names: Iterable[str]) -> list[Any]:
    """Parameters of a test; those whose processor needs torchvision are skipped where it is not installed."""
    needs_torchvision = pytest.mark.skipif(
        not TORCHVISION, reason="this family's Hugging Face processor needs torchvision"
    )
    return [pytest.param(name, marks=needs_torchvision if FAMILIES[name].needs_torchvision else ()) for name in names]


def build(name: str) -> Any:
    """Build a family's own processor, for pictures only."""
    family = (FAMILIES | QUERIES | OTHERS)[name]
    processor_class = getattr(transformers, family.processor)
    if name == "smolvlm" and not importlib.util.find_spec("num2words"):
        # It spells out the number of a video's frames; without it, not even a processor of pictures can be built.
        processing_smolvlm.num2words = str
    processor = pictures_only(processor_class)(
        image_processor=getattr(transformers, family.images)(**family.settings),
        tokenizer=family.tokenizer,
        **({"video_processor": None} if "video_processor" in processor_class.get_attributes() else {}),
        **{part: getattr(transformers, name)() for part, name in family.parts.items()},
        **family.options,
    )
    vars(processor).pop("video_processor", None)  # as loading does
    processor.chat_template = family.chat  # some processors do not take it
    processor.images_kwargs = getattr(processor, "images_kwargs", {}) | family.pictures
    return processor
