"""The model's own processor: loading it, calling it on a batch, and finding the placeholders that it writes."""

import copy
import re
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoProcessor, BatchFeature, ProcessorMixin
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils.import_utils import is_torchvision_available

from corelens.errors import docs_link
from corelens.inputs.chats import Chat, Prompt
from corelens.inputs.token_geometry import WITHOUT_BOXES, no_boxes


def load_processor(name_or_path: str, **kwargs: Any) -> Any:
    """Load the processor of a checkpoint; without torchvision, one that takes pictures but no videos.

    Hugging Face's video processors need torchvision, and the processor of a model that also takes videos does not load
    without them, nor from a checkpoint that was saved without them.

    Raises:
        ImportError: If the pictures of this model type need torchvision, too.
    """
    if is_torchvision_available():
        try:
            return AutoProcessor.from_pretrained(name_or_path, **kwargs)
        except OSError as cause:
            if "video processor" not in str(cause):
                raise
    model_type = AutoConfig.from_pretrained(name_or_path, **kwargs).model_type
    processor_class: Any = PROCESSOR_MAPPING.get(CONFIG_MAPPING[model_type], None)
    if processor_class is None:
        settings, _ = ProcessorMixin.get_processor_dict(name_or_path, **kwargs)
        processor_class = getattr(transformers, settings.get("processor_class") or "", None)
    try:
        if processor_class is None or "video_processor" not in processor_class.get_attributes():
            return AutoProcessor.from_pretrained(name_or_path, **kwargs)
        return pictures_only(processor_class).from_pretrained(name_or_path, **kwargs)
    except (ImportError, ValueError) as cause:
        if is_torchvision_available() or "torchvision" not in str(cause).lower():
            raise
        raise ImportError(
            f"the pictures of {model_type} need torchvision, which is not installed: transformers has no processor "
            f"for them that works without it. pip install 'corelens[video]' {docs_link('torchvision')}"
        ) from cause


def pictures_only(processor_class: Any) -> Any:
    """Derive a processor class without video processor; of the same name, so that what it saves is the real class's."""
    all_parts = processor_class.get_attributes()
    parts = [part for part in all_parts if part != "video_processor"]

    def from_args_and_dict(cls: Any, args: list[Any], *rest: Any, **settings: Any) -> Any:
        arg_of = dict(zip(parts, args, strict=True))
        made = super(derived, cls).from_args_and_dict([arg_of.get(part) for part in all_parts], *rest, **settings)
        vars(made[0] if isinstance(made, tuple) else made).pop("video_processor")
        return made

    methods: dict[str, Any] = {
        "get_attributes": classmethod(lambda cls: parts),
        "from_args_and_dict": classmethod(from_args_and_dict),
    }
    if processor_class.__name__ == "SmolVLMProcessor":  # its own uses the video processor even where there is no video
        methods["apply_chat_template"] = ProcessorMixin.apply_chat_template
    derived: Any = type(processor_class.__name__, (processor_class, _WithoutVideos), methods)
    return derived


class _WithoutVideos(ProcessorMixin):
    """Base between a family's class and transformers' own that drops the argument for the video processor."""

    def __init__(self, *parts: Any, **named: Any) -> None:
        named.pop("video_processor", None)
        super().__init__(*(part for part in parts if part is not None), **named)
        # Until it is made: MiniCPM-V's class reads settings that both have.
        self.video_processor = vars(self).get("image_processor")

    def __reduce__(self) -> tuple[Any, ...]:
        # The class is made while the program runs, and another process has to make it, too.
        return _blank, (type(self).__bases__[0],), self.__dict__.copy()


def _blank(processor_class: Any) -> Any:
    """Processor without parts, which copying and unpickling fill."""
    derived = pictures_only(processor_class)
    return derived.__new__(derived)


class Tokens(NamedTuple):
    """Arrays over the token positions of one prompt."""

    attention_mask: np.ndarray
    offsets: np.ndarray
    """First and last character of each token in the prompt, with pictures and videos replaced."""

    visual: np.ndarray
    """True for tokens that stand for a part of a picture or video."""


class Placeholder(NamedTuple):
    """The text and tokens that the processor writes for a picture or video."""

    kind: str
    """`image` or `video`."""

    end: int
    """End of its placeholder in the prompt before replacement, in characters."""

    n_added: int
    """Number of characters that the replacement adds to the prompt."""

    tokens: np.ndarray
    """Positions of its visual tokens."""


class TokenizedPrompt(NamedTuple):
    """A prompt after the processor's replacement of pictures and videos, and its tokens."""

    tokens: Tokens
    n_prefix: int
    """Number of characters that the processor puts before the prompt, such as the start of the text."""

    placeholders: list[Placeholder]


def encode(
    processor: Any, config: Any, prompts: list[Prompt], chats: list[Chat]
) -> tuple[BatchFeature, list[TokenizedPrompt]]:
    """Run the processor on a batch of prompts, and find the tokens of every picture and video.

    Returns:
        The tensors of the batch, padded on the left, and the tokens of each prompt.

    Raises:
        ValueError: If visual tokens cannot be found, or videos of several lengths cannot be processed together.
    """
    no_replacements = ValueError(
        f"{type(processor).__name__} does not report what it writes in place of a picture, so visual tokens cannot be "
        f"found. Call the processor itself and pass its tensors to the model."
    )
    kind = WITHOUT_BOXES.get(config.model_type)
    if kind == "patches" and any(chat.pictures for chat in chats):
        raise ValueError(no_boxes(config.model_type))
    has_queries = kind == "queries"
    if getattr(processor, "image_token", None) is None and not has_queries:
        raise no_replacements
    tensors, replacements = _call(processor, prompts, chats)
    mask = tensors["attention_mask"].numpy()
    offsets, visual = _pad_offsets(tensors.pop("offset_mapping"), mask), _visual_mask(tensors, config, processor)
    tokens = [Tokens(*arrays) for arrays in zip(mask, offsets, visual, strict=True)]
    is_silent = any(chat.pictures for chat in chats) and not any(replacements)
    if is_silent and not has_queries:
        raise no_replacements
    if is_silent:
        name = type(processor).__name__
        token = str(getattr(processor, "image_token", ""))
        return tensors, [
            _infer_placeholders(name, token, prompt.template_text, prompt_tokens, len(chat.pictures))
            for prompt, prompt_tokens, chat in zip(prompts, tokens, chats, strict=True)
        ]
    replacements = replacements or [[] for _ in chats]
    return tensors, [
        _reported_placeholders(prompt.template_text, prompt_tokens, prompt_replacements)
        for prompt, prompt_tokens, prompt_replacements in zip(prompts, tokens, replacements, strict=True)
    ]


def _call(processor: Any, prompts: list[Prompt], chats: list[Chat]) -> tuple[BatchFeature, list[list[dict[str, Any]]]]:
    """Tensors of a batch, and the replacements that the processor reports for each prompt; empty if it reports none."""
    recorder, replacements = _recording(processor)
    bos = processor.tokenizer.bos_token
    pictures, clips = [chat.pictures for chat in chats], [clip for chat in chats for clip in chat.clips]
    settings = {}
    if clips:
        settings["videos_kwargs"] = {
            "do_sample_frames": False,  # they are sampled already, so that no others were decoded
            "input_data_format": "channels_last",
            # A copy: Qwen3-VL's processor appends to the list.
            "video_metadata": [
                replace(clip.metadata, frames_indices=list(clip.metadata.frames_indices or [])) for clip in clips
            ],
        }
    try:
        tensors = recorder(
            text=[prompt.text for prompt in prompts],
            images=pictures if any(pictures) else None,
            videos=[clip.frames for clip in clips] or None,
            padding=True,
            add_special_tokens=not (bos and prompts[0].text.startswith(bos)),
            return_offsets_mapping=True,
            return_tensors="pt",
            **settings,
        )
    except ValueError as cause:
        lengths = sorted({len(clip.frames) for clip in clips})
        if len(lengths) < 2 or "tensor" not in str(cause):
            raise
        raise ValueError(
            f"{type(processor).__name__} takes only videos of one length together, and {lengths} frames were sampled "
            f"from these: prepare them one by one, or let the processor sample the same number of all "
            f"(model.processor.video_processor.do_sample_frames = True and .num_frames)."
        ) from cause
    tensors.pop("labels", None)  # some processors prepare for training, too
    return tensors, replacements


def _recording(processor: Any) -> tuple[Any, list[list[dict[str, Any]]]]:
    """Copy of a processor that pads on the left, and the list that it records its replacements in when called.

    Recorded, because a processor that is set to return its replacements fails if the first prompt of a batch has no
    picture. The side of padding is set where a second tokenizer, that of a Q-Former, does not read it.
    """
    recorder, replacements = copy.copy(processor), []
    recorder.tokenizer = copy.copy(processor.tokenizer)
    recorder.tokenizer.padding_side = "left"
    recorder.tokenizer.init_kwargs = {
        name: value for name, value in processor.tokenizer.init_kwargs.items() if name != "padding_side"
    }

    def record(*args: Any, **kwargs: Any) -> Any:
        text, text_replacements = processor.get_text_with_replacements(*args, **kwargs)
        replacements.extend(text_replacements)
        return text, text_replacements

    recorder.get_text_with_replacements = record
    return recorder, replacements


def _visual_mask(tensors: BatchFeature, config: Any, processor: Any) -> np.ndarray:
    """Mask of visual tokens [sample position]."""
    if "image_embeds_position_mask" in tensors:  # Kosmos-2 marks positions, and not ids
        return tensors["image_embeds_position_mask"].numpy() == 1
    # Phi-4's configuration has no id of the image token; its processor has. Some models write the frames of a video
    # with the image token.
    owner = config if getattr(config, "image_token_id", None) is not None else processor
    ids = [getattr(owner, name, None) for name in ("image_token_id", "video_token_id")]
    return np.isin(tensors["input_ids"].numpy(), [number for number in ids if number is not None])


def _pad_offsets(offset_mapping: Any, mask: np.ndarray) -> np.ndarray:
    """Offsets [sample position 2]; some processors do not pad them along with the tokens."""
    if isinstance(offset_mapping, torch.Tensor):
        return offset_mapping.numpy()
    offsets = np.zeros((*mask.shape, 2), np.int64)
    for sample, pairs in enumerate(offset_mapping):
        offsets[sample, mask[sample] == 1] = pairs
    return offsets


def _reported_placeholders(prompt: str, tokens: Tokens, replacements: list[dict[str, Any]]) -> TokenizedPrompt:
    """Placeholders from the replacements that the processor reports: spans of characters before and after."""
    start, end = tokens.offsets.T
    placeholders = []
    for replacement in replacements:
        (old_start, old_end), (new_start, new_end) = replacement["span"], replacement["new_span"]
        positions = np.flatnonzero((start >= new_start) & (end <= new_end) & (end > start) & tokens.visual)
        n_added = new_end - new_start - (old_end - old_start)
        placeholders.append(Placeholder(replacement["type"], old_end, n_added, positions))
    n_added = sum(placeholder.n_added for placeholder in placeholders)
    return TokenizedPrompt(tokens, max(0, int(end.max()) - len(prompt) - n_added), placeholders)


def _infer_placeholders(processor: str, token: str, prompt: str, tokens: Tokens, n_pictures: int) -> TokenizedPrompt:
    """Placeholders from the visual tokens: at the image token's places in the prompt, or before it if it has none."""
    visual, length = np.flatnonzero(tokens.visual), int(tokens.offsets[~tokens.visual].max())
    spans = [match.span() for match in re.finditer(re.escape(token), prompt)] if token else []
    if not spans:
        if n_pictures != bool(len(visual)):
            raise ValueError(
                f"{processor} puts one picture before each prompt, so in a batch with pictures each question needs "
                f"exactly one picture, not {n_pictures}."
            )
        # In one text with the prompt, which is then stripped of space around it, or in a text of its own.
        n_prefix = length - len(prompt.rstrip()) if length > len(prompt) else 0
        return TokenizedPrompt(tokens, n_prefix, [Placeholder("image", 0, 0, visual)] * n_pictures)
    runs = np.split(visual, len(spans))
    # Delimiters come before the tokens, as many characters for every picture.
    shifts = [int(tokens.offsets[run[0], 0]) - start for run, (start, _) in zip(runs, spans, strict=True)]
    n_added = np.diff([*shifts, length - len(prompt) + shifts[0]]).tolist()
    return TokenizedPrompt(
        tokens, 0, [Placeholder("image", end, n, run) for (_, end), n, run in zip(spans, n_added, runs, strict=True)]
    )
