"""Real processors for tiny models, built without a network. Nothing here imports corelens."""

import importlib.util
from dataclasses import dataclass, field, replace
from typing import Any

import tiny
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

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


def template(image: str, turn: str = "{role}: ", end: str = "\n", start: str = "") -> str:
    """A chat template that writes the parts of a message in their order."""
    opened = turn.replace("{role}", "{{ message.role }}")
    return (
        f"{start}{{% for message in messages %}}{opened}{{% for part in message.content %}}"
        f"{{% if part.type == 'image' %}}{image}{{% else %}}{{{{ part.text }}}}{{% endif %}}{{% endfor %}}{end}"
        f"{{% endfor %}}{{% if add_generation_prompt %}}{turn.replace('{role}', 'assistant')}{{% endif %}}"
    )


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


@dataclass(frozen=True)
class Family:
    """A processor and its parts. Sizes are small: a vision tower sees 56 or 112 pixels."""

    processor: str
    images: str
    """The image processor's class; those that end in Pil do not need torchvision."""
    settings: dict[str, Any]
    """The image processor's."""
    chat: str
    special: dict[int, str] = field(default_factory=lambda: {tiny.IMAGE: "<image>"})
    """Special tokens by id."""
    named: dict[str, str] = field(default_factory=dict)
    """Special tokens that the processor looks up by an attribute of the tokenizer."""
    options: dict[str, Any] = field(default_factory=dict)
    """The processor's."""
    pictures: dict[str, Any] = field(default_factory=dict)
    """How the processor sets its image processor, against the latter's own settings."""
    bos: str | None = None
    videos: str = ""
    """The video processor's class, where the processor does nothing without one."""

    @property
    def needs_torchvision(self) -> bool:
        return not self.images.endswith("Pil") or bool(self.videos) or self.processor == "PixtralProcessor"


SQUARE = {"height": 56, "width": 56}
LARGE = {"height": 112, "width": 112}
PINPOINTS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
QWEN = {
    tiny.IMAGE: "<|image_pad|>", tiny.VIDEO: "<|video_pad|>", tiny.VISION_START: "<|vision_start|>",
    tiny.VISION_END: "<|vision_end|>", 504: "<|im_start|>", 505: "<|im_end|>",
}  # fmt: skip
TILE_TAGS = {460 + 6 * row + column: f"<row_{row + 1}_col_{column + 1}>" for row in range(6) for column in range(6)}
IDEFICS = {
    tiny.IMAGE: "<image>", tiny.VIDEO: "<video>", 504: "<fake_token_around_image>", 505: "<end_of_utterance>",
    506: "<global-img>", **TILE_TAGS,
}  # fmt: skip
IDEFICS_SETTINGS = dict(size={"longest_edge": 4 * 112}, max_image_size={"longest_edge": 112})
IDEFICS_CHAT = template("<image>", "<s>{role}: ", "<end_of_utterance>\n")


def qwen(processor: str, patch: int) -> Family:
    settings = dict(patch_size=patch, size={"shortest_edge": 1024, "longest_edge": 10**6})
    return Family(processor, "Qwen2VLImageProcessorPil", settings, QWEN_TEMPLATE, QWEN)


def llava(**options: Any) -> Family:
    default = dict(patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1)
    settings = dict(size={"shortest_edge": 56}, crop_size=SQUARE)
    return Family(
        "LlavaProcessor", "CLIPImageProcessorPil", settings, LLAVA_TEMPLATE, options=default | options, bos="<s>"
    )


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
        pictures,
    )


FAMILIES: dict[str, Family] = {
    "qwen2_vl": qwen("Qwen2VLProcessor", 14),
    **dict.fromkeys(["qwen3_vl", "qwen3_vl_moe"], qwen("Qwen3VLProcessor", 16)),
    "qwen2_5_vl": qwen("Qwen2_5_VLProcessor", 14),
    "llava": llava(),
    "vipllava": llava(),
    "fast_vlm": llava(vision_feature_select_strategy="full", num_additional_image_tokens=0),
    "llava_next": Family(
        "LlavaNextProcessor",
        "LlavaNextImageProcessorPil",
        dict(size={"shortest_edge": 56}, crop_size=SQUARE, image_grid_pinpoints=PINPOINTS),
        LLAVA_TEMPLATE,
        options=dict(patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1),
        bos="<s>",
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
    "idefics3": Family(
        "Idefics3Processor", "Idefics3ImageProcessorPil", IDEFICS_SETTINGS, IDEFICS_CHAT, IDEFICS,
        options=dict(image_seq_len=16),
    ),
    "smolvlm": Family(
        "SmolVLMProcessor", "SmolVLMImageProcessorPil", IDEFICS_SETTINGS, IDEFICS_CHAT, IDEFICS,
        options=dict(image_seq_len=16), videos="SmolVLMVideoProcessor",
    ),
    "mistral3": PIXTRAL,
    "mistral_large4": PIXTRAL,
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
        bos="<s>",
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
        videos="PerceptionLMVideoProcessor",
    ),
}  # fmt: skip


def build(name: str) -> Any:
    """The family's own processor class, for pictures only."""
    family = FAMILIES[name]
    real = getattr(transformers, family.processor)
    if name == "smolvlm" and not importlib.util.find_spec("num2words"):
        # Spells out the number of a video's frames; without it not even a processor of pictures can be made.
        from transformers.models.smolvlm import processing_smolvlm

        processing_smolvlm.num2words = str
    videos = {"video_processor": getattr(transformers, family.videos)() if family.videos else None}
    parts = [part for part in real.get_attributes() if part != "video_processor" or family.videos]
    pictures_only = type(real.__name__, (real,), {"get_attributes": classmethod(lambda cls: parts)})
    built = pictures_only(
        image_processor=getattr(transformers, family.images)(**family.settings),
        tokenizer=tokenizer(
            family.special, **({"bos_token": family.bos} if family.bos else {}), extra_special_tokens=family.named
        ),
        chat_template=family.chat,
        **(videos if "video_processor" in real.get_attributes() else {}),
        **family.options,
    )
    built.images_kwargs = getattr(built, "images_kwargs", {}) | family.pictures
    return built
