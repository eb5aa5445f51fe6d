"""The model's own processor: how it is loaded, called, and heard."""

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
from corelens.inputs.token_geometry import LEARNED_QUERIES


def load_processor(name_or_path: str, **kwargs: Any) -> Any:
    """The processor of a checkpoint; without torchvision, one that takes pictures but no videos.

    Hugging Face's video processors need torchvision, and the processor of a model that also takes videos does not load
    without them, nor from a checkpoint that was saved without them.

    Raises:
        ImportError: If the pictures of this type of model need torchvision, too.
    """
    if is_torchvision_available():
        try:
            return AutoProcessor.from_pretrained(name_or_path, **kwargs)
        except OSError as cause:
            if "video processor" not in str(cause):
                raise
    model_type = AutoConfig.from_pretrained(name_or_path, **kwargs).model_type
    family: Any = PROCESSOR_MAPPING.get(CONFIG_MAPPING[model_type], None)
    if family is None:
        settings, _ = ProcessorMixin.get_processor_dict(name_or_path, **kwargs)
        family = getattr(transformers, settings.get("processor_class") or "", None)
    try:
        if family is None or "video_processor" not in family.get_attributes():
            return AutoProcessor.from_pretrained(name_or_path, **kwargs)
        return pictures_only(family).from_pretrained(name_or_path, **kwargs)
    except (ImportError, ValueError) as cause:
        if is_torchvision_available() or "torchvision" not in str(cause).lower():
            raise
        raise ImportError(
            f"the pictures of {model_type} need torchvision, which is not installed: transformers has no processor "
            f"for them that works without it. pip install 'corelens[video]' {docs_link('torchvision')}"
        ) from cause


def pictures_only(family: Any) -> Any:
    """A processor class without its video processor; of the same name, so that what it saves is the real class's."""
    whole = family.get_attributes()
    parts = [part for part in whole if part != "video_processor"]

    def from_args_and_dict(cls: Any, args: list[Any], *rest: Any, **settings: Any) -> Any:
        given = dict(zip(parts, args, strict=True))
        return super(made, cls).from_args_and_dict([given.get(part) for part in whole], *rest, **settings)

    own: dict[str, Any] = {
        "get_attributes": classmethod(lambda cls: parts),
        "from_args_and_dict": classmethod(from_args_and_dict),
    }
    if family.__name__ == "SmolVLMProcessor":  # its own asks the video processor even where there is no video
        own["apply_chat_template"] = ProcessorMixin.apply_chat_template
    made: Any = type(family.__name__, (family, _WithoutVideos), own)
    return made


class _WithoutVideos(ProcessorMixin):
    """Stands between a family's class and transformers' own, and keeps its missing video processor to itself."""

    def __init__(self, *parts: Any, **named: Any) -> None:
        named.pop("video_processor", None)
        super().__init__(*(part for part in parts if part is not None), **named)


def call_processor(
    processor: Any, prompts: list[Prompt], chats: list[Chat]
) -> tuple[BatchFeature, list[list[dict[str, Any]]]]:
    """What the processor makes of a batch, and what it says it wrote into each prompt; nothing if it says nothing."""
    listening, heard = _listening(processor)
    bos = processor.tokenizer.bos_token
    pictures, clips = [chat.pictures for chat in chats], [clip for chat in chats for clip in chat.clips]
    settings = {}
    if clips:
        settings["videos_kwargs"] = {
            "do_sample_frames": False,  # they are sampled already, so that no others were decoded
            "input_data_format": "channels_last",
            # A copy: Qwen3-VL's processor appends to the list.
            "video_metadata": [
                replace(c.metadata, frames_indices=list(c.metadata.frames_indices or [])) for c in clips
            ],
        }
    try:
        tensors = listening(
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
    return tensors, heard


def _listening(processor: Any) -> tuple[Any, list[list[dict[str, Any]]]]:
    """A copy of a processor that pads on the left, and what it says it writes in place of each picture, and where.

    Listened to, because a processor that is asked to return it fails if the first prompt of a batch has no picture. The
    side of padding is set where a second tokenizer, that of a Q-Former, does not see it.
    """
    listening, heard = copy.copy(processor), []
    listening.tokenizer = copy.copy(processor.tokenizer)
    listening.tokenizer.padding_side = "left"
    listening.tokenizer.init_kwargs = {
        name: value for name, value in processor.tokenizer.init_kwargs.items() if name != "padding_side"
    }

    def listen(*args: Any, **kwargs: Any) -> Any:
        text, replaced = processor.get_text_with_replacements(*args, **kwargs)
        heard.extend(replaced)
        return text, replaced

    listening.get_text_with_replacements = listen
    return listening, heard


class Tokenized(NamedTuple):
    """A prompt in tokens."""

    attention_mask: np.ndarray
    offsets: np.ndarray
    """First and last character of each token in the prompt, with pictures and videos replaced."""

    visual: np.ndarray
    """Whether the token stands for a part of a picture or video."""


class Placeholder(NamedTuple):
    """What stands in place of a picture or video."""

    kind: str
    """`image` or `video`."""

    end: int
    """Where its place in the prompt ends, in characters."""

    n_added: int
    """By how many characters the prompt became longer."""

    tokens: np.ndarray
    """The positions of its visual tokens."""


class TokenizedPrompt(NamedTuple):
    """What became of a prompt."""

    tokens: Tokenized
    tokens_before: int
    """Characters that were put before it, such as the start of the text."""

    placeholders: list[Placeholder]


def encode(
    processor: Any, config: Any, prompts: list[Prompt], chats: list[Chat]
) -> tuple[BatchFeature, list[TokenizedPrompt]]:
    """The tensors of a batch, and what became of each prompt."""
    unsaid = ValueError(
        f"{type(processor).__name__} does not say what it writes in place of a picture, so visual tokens cannot be "
        f"found. Call the processor itself and pass its tensors to the model."
    )
    learned = config.model_type in LEARNED_QUERIES
    if getattr(processor, "image_token", None) is None and not learned:
        raise unsaid
    tensors, said = call_processor(processor, prompts, chats)
    mask = tensors["attention_mask"].numpy()
    offsets, visual = _padded(tensors.pop("offset_mapping"), mask), _visual(tensors, config, processor)
    tokenized = [Tokenized(*arrays) for arrays in zip(mask, offsets, visual, strict=True)]
    silent = any(chat.pictures for chat in chats) and not any(said)
    if silent and not learned:
        raise unsaid
    if silent:
        name = type(processor).__name__
        token = str(getattr(processor, "image_token", ""))
        return tensors, [
            _inferred_expansion(name, token, prompt.template_text, tokens, len(chat.pictures))
            for prompt, tokens, chat in zip(prompts, tokenized, chats, strict=True)
        ]
    said = said or [[] for _ in chats]
    return tensors, [
        _declared_expansion(prompt.template_text, tokens, own)
        for prompt, tokens, own in zip(prompts, tokenized, said, strict=True)
    ]


def _visual(tensors: BatchFeature, config: Any, processor: Any) -> np.ndarray:
    """Where visual tokens are [sample position]."""
    if "image_embeds_position_mask" in tensors:  # Kosmos-2 tells by position, and not by id
        return tensors["image_embeds_position_mask"].numpy() == 1
    # Phi-4's configuration does not say what stands for a picture; its processor does. Some models write the frames of
    # a video with the token of pictures.
    owner = config if getattr(config, "image_token_id", None) is not None else processor
    ids = [getattr(owner, name, None) for name in ("image_token_id", "video_token_id")]
    return np.isin(tensors["input_ids"].numpy(), [number for number in ids if number is not None])


def _padded(found: Any, mask: np.ndarray) -> np.ndarray:
    """Offsets [sample position 2]; some processors leave them as they are when they pad."""
    if isinstance(found, torch.Tensor):
        return found.numpy()
    offsets = np.zeros((*mask.shape, 2), np.int64)
    for sample, pairs in enumerate(found):
        offsets[sample, mask[sample] == 1] = pairs
    return offsets


def _declared_expansion(prompt: str, tokens: Tokenized, said: list[dict[str, Any]]) -> TokenizedPrompt:
    start, end = tokens.offsets.T
    replaced = []
    for one in said:
        (place_start, place_end), (first, last) = one["span"], one["new_span"]
        own = np.flatnonzero((start >= first) & (end <= last) & (end > start) & tokens.visual)
        replaced.append(Placeholder(one["type"], place_end, last - first - (place_end - place_start), own))
    gained = sum(replacement.n_added for replacement in replaced)
    return TokenizedPrompt(tokens, max(0, int(end.max()) - len(prompt) - gained), replaced)


def _inferred_expansion(processor: str, token: str, prompt: str, tokens: Tokenized, n_pictures: int) -> TokenizedPrompt:
    """From where the visual tokens stand: in the places of a token in the prompt, or before it if there are none."""
    visual, length = np.flatnonzero(tokens.visual), int(tokens.offsets[~tokens.visual].max())
    places = [match.span() for match in re.finditer(re.escape(token), prompt)] if token else []
    if not places:
        if n_pictures != bool(len(visual)):
            raise ValueError(
                f"{processor} puts one picture before each prompt, so in a batch with pictures each question needs "
                f"exactly one picture, not {n_pictures}."
            )
        # In one text with the prompt, which is then stripped of space around it, or in a text of its own.
        before = length - len(prompt.rstrip()) if length > len(prompt) else 0
        return TokenizedPrompt(tokens, before, [Placeholder("image", 0, 0, visual)] * n_pictures)
    runs = np.split(visual, len(places))
    # Delimiters come before the tokens, as many characters for every picture.
    starts = [int(tokens.offsets[run[0], 0]) - place for run, (place, _) in zip(runs, places, strict=True)]
    moved = np.diff([*starts, length - len(prompt) + starts[0]]).tolist()
    return TokenizedPrompt(
        tokens, 0, [Placeholder("image", end, n, run) for (_, end), n, run in zip(places, moved, runs, strict=True)]
    )
