"""The model's own processor: how it is loaded, called, and heard."""

import copy
from dataclasses import replace
from typing import Any

import transformers
from transformers import AutoConfig, AutoProcessor, BatchFeature, ProcessorMixin
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils.import_utils import is_torchvision_available

from corelens.chats import Chat, Prompt
from corelens.refusals import see


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
            f"for them that works without it. pip install 'corelens[video]' {see('torchvision')}"
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


def call(processor: Any, prompts: list[Prompt], chats: list[Chat]) -> tuple[BatchFeature, list[list[dict[str, Any]]]]:
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
