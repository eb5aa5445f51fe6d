"""From pictures and questions to tensors and a map of their positions, through the model's own processor."""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers import AutoConfig, AutoProcessor, BatchFeature
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils.import_utils import is_torchvision_available

from corelens.grids import Seen, no_boxes, segments
from corelens.tokens import Role, TokenMap, grid_boxes

Picture = Image.Image | str | PathLike
Message = Mapping[str, Any]

_SENTINEL = re.compile("\ue000(\\d+)\ue001")
"""Stands for the n-th text of a chat, to find where the template puts it; private characters no one types."""


class PreparedInputs(BatchFeature):
    """The tensors of a Hugging Face forward pass, as a mapping, and the map of their positions."""

    def __init__(self, tensors: Mapping[str, Any], tokens: TokenMap) -> None:
        super().__init__(dict(tensors))
        self.tokens = tokens

    def to(self, *args: Any, **kwargs: Any) -> "PreparedInputs":
        """Moves tensors and map; floating-point tensors also change dtype, if one is given."""
        super().to(*args, **kwargs)
        self.tokens = self.tokens.to(self["input_ids"].device)
        return self


def load_processor(name_or_path: str, **kwargs: Any) -> Any:
    """The processor of a checkpoint; without torchvision, one that takes pictures but no videos.

    Hugging Face's video processors need torchvision, and the processor of a model that also takes videos does not load
    without them.
    """
    if is_torchvision_available():
        return AutoProcessor.from_pretrained(name_or_path, **kwargs)
    model_type = AutoConfig.from_pretrained(name_or_path, **kwargs).model_type
    family: Any = PROCESSOR_MAPPING.get(CONFIG_MAPPING[model_type], None)
    if family is None or "video_processor" not in family.get_attributes():
        return AutoProcessor.from_pretrained(name_or_path, **kwargs)
    return pictures_only(family).from_pretrained(name_or_path, **kwargs)


def pictures_only(family: Any) -> Any:
    """A processor class without its video processor; of the same name, so that what it saves is the real class's."""
    parts = [part for part in family.get_attributes() if part != "video_processor"]
    return type(family.__name__, (family,), {"get_attributes": classmethod(lambda cls: parts)})


def load_picture(picture: object) -> Image.Image:
    """A picture in RGB, upright, fully decoded.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no picture, is damaged, or is so large that decoding it would exhaust memory.
        TypeError: If it is neither a picture nor a path.
    """
    if isinstance(picture, Image.Image):
        return _decode(picture, "the picture")
    if not isinstance(picture, str | PathLike):
        raise TypeError(f"a picture is a PIL image or a path, not {type(picture).__name__}.")
    path = Path(picture)
    if not path.is_file():
        raise FileNotFoundError(f"there is no picture file {str(path)!r}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            opened = Image.open(path)
    except UnidentifiedImageError as cause:
        raise ValueError(f"{str(path)!r} is not a picture that Pillow can read.") from cause
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as cause:
        raise ValueError(
            f"{str(path)!r} is too large to decode safely: Pillow's limit is {Image.MAX_IMAGE_PIXELS} pixels. Shrink "
            f"it, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it."
        ) from cause
    with opened:
        return _decode(opened, repr(str(path)))


def _decode(picture: Image.Image, name: str) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture).convert("RGB")
    except (OSError, SyntaxError) as cause:
        raise ValueError(f"{name} is damaged and cannot be decoded: {cause}.") from cause


def prepare(
    processor: Any,
    config: Any,
    images: Picture | Sequence[Any] | None,
    question: str | Sequence[Any],
) -> PreparedInputs:
    """Tensors and token map of a batch; see `HookedMLLM.prepare`."""
    chats = [_chat(texts, own) for texts, own in _per_sample(images, question)]
    rendered = [_render(processor, chat) for chat in chats]
    pictures = [[part["image"] for message in chat for part in message["content"] if "image" in part] for chat in chats]
    bos = processor.tokenizer.bos_token
    tensors = processor(
        text=[text for text, _ in rendered],
        images=pictures if any(pictures) else None,
        padding=True,
        padding_side="left",
        add_special_tokens=not (bos and rendered[0][0].startswith(bos)),
        return_offsets_mapping=True,
        return_text_replacement_offsets=True,
        return_tensors="pt",
    )
    mask = tensors["attention_mask"].numpy()
    if not mask[:, -1].all():
        raise ValueError("the processor pads on the right: set processor.tokenizer.padding_side = 'left'.")
    offsets = _padded(tensors.pop("offset_mapping"), mask)
    visual = _visual(processor, config, tensors)
    reported = tensors.pop("text_replacement_offsets", None)
    maps, n_before = [], 0
    for sample, (prompt, spans) in enumerate(rendered):
        sequence = _Sequence(visual[sample], mask[sample], offsets[sample])
        own = pictures[sample]
        replaced = _unreported(processor, prompt, sequence, len(own)) if reported is None else reported[sample]
        runs = _placeholders(sequence, replaced, len(own))
        columns = _roles(sequence, _moved(spans, prompt, sequence, replaced), replaced)
        for media, (picture, placeholders) in enumerate(zip(own, runs, strict=True)):
            seen = Seen(config, processor, tensors, n_before + media, picture.size, len(placeholders), len(own))
            _address(columns, media, placeholders, seen)
        n_before += len(pictures[sample])
        maps.append(columns)
    stacked = {name: torch.from_numpy(np.stack([columns[name] for columns in maps])) for name in maps[0]}
    sizes = tuple(tuple(picture.size for picture in own) for own in pictures)
    return PreparedInputs(tensors, TokenMap(**stacked, sizes=sizes, no_boxes=no_boxes(config.model_type)))


# --- chats -----------------------------------------------------------------------------------------------------------


def _per_sample(images: Any, question: Any) -> list[tuple[Any, list[Any]]]:
    """The question of each sample with its pictures."""
    one = isinstance(question, str) or (len(question) > 0 and isinstance(question[0], Mapping))
    if one:
        question, images = [question], [images]
    if not len(question):
        raise ValueError("there is no question: give a string, a chat, or a list of them.")
    if images is None:
        images = [None] * len(question)
    if isinstance(images, Picture) or len(images) != len(question):
        given = "one picture" if isinstance(images, Picture) else f"pictures for {len(images)}"
        raise ValueError(
            f"{len(question)} questions came with {given}: give one entry per question, each a picture, a list of "
            f"pictures or None."
        )
    return [
        (asked, [] if own is None else [own] if isinstance(own, Picture) else list(own))
        for asked, own in zip(question, images, strict=True)
    ]


def _chat(asked: str | Sequence[Message], images: list[Any]) -> list[dict[str, Any]]:
    """A chat whose contents are lists of parts, each picture loaded and in its place."""
    if isinstance(asked, str):
        asked = [{"role": "user", "content": [*({"type": "image"} for _ in images), {"type": "text", "text": asked}]}]
    chat, waiting = [], list(images)
    for message in asked:
        content = message["content"]
        parts = []
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part["type"] == "text":
                parts.append({"type": "text", "text": part["text"]})
            elif part["type"] == "image":
                source = part.get("image", part.get("path"))
                if source is None and not waiting:
                    raise ValueError(f"the chat names more pictures than the {len(images)} given.")
                parts.append({"type": "image", "image": load_picture(waiting.pop(0) if source is None else source)})
            else:
                raise ValueError(f"a chat part of type {part['type']!r} cannot be prepared; text and image can.")
        chat.append({"role": message["role"], "content": parts})
    if waiting:
        raise ValueError(
            f"{len(waiting)} of {len(images)} pictures have no place in the chat: it needs one "
            f"{{'type': 'image'}} part for each."
        )
    if chat[-1]["role"] != "user":
        raise ValueError(f"the chat ends with a message of the {chat[-1]['role']!r}; it must end with the question.")
    if not any(part["text"].strip() for part in chat[-1]["content"] if part["type"] == "text"):
        raise ValueError("the question is empty: there is no token to measure attention from.")
    return chat


class _Span(NamedTuple):
    """Where a text of the chat stands in the rendered prompt, in characters."""

    start: int
    end: int
    role: Role


def _render(processor: Any, chat: list[dict[str, Any]]) -> tuple[str, list[_Span]]:
    """The prompt as the model's chat template writes it, and where the texts of the chat stand in it.

    The template is rendered a second time with a private mark in place of every text; what stands around the marks is
    the template's own, whatever it looks like.
    """
    if not getattr(processor, "chat_template", None):
        raise ValueError(f"{type(processor).__name__} has no chat template, so a question cannot be put to the model.")
    token = _image_token(processor)
    if token and any(token in part.get("text", "") for message in chat for part in message["content"]):
        raise ValueError(f"the text holds {token!r}, which stands for a picture; pass pictures instead.")

    def render(text_of: Callable[[int, str], str]) -> str:
        texts = iter(range(10**6))
        written = [
            {
                "role": message["role"],
                "content": [
                    {"type": "image"}
                    if "image" in part
                    else {"type": "text", "text": text_of(next(texts), part["text"])}
                    for part in message["content"]
                ],
            }
            for message in chat
        ]
        return processor.apply_chat_template(written, tokenize=False, add_generation_prompt=True)

    prompt = render(lambda index, text: text)
    texts = [(message, part["text"]) for message in chat for part in message["content"] if "text" in part]
    spans, cursor = [], 0
    literal, *rest = _SENTINEL.split(render(lambda index, text: f"\ue000{index}\ue001"))
    for index, after in zip(rest[::2], rest[1::2], strict=True):
        cursor += len(literal)
        message, text = texts[int(index)]
        # Templates may trim.
        written = next((form for form in (text, text.strip()) if prompt.startswith(form + after, cursor)), None)
        if written is None:
            raise ValueError(f"the chat template changes the text {text!r}, so its tokens cannot be told apart.")
        role = {"system": Role.SYSTEM}.get(message["role"], Role.QUESTION if message is chat[-1] else Role.CONTEXT)
        spans.append(_Span(cursor, cursor + len(written), role))
        cursor, literal = cursor + len(written), after
    return prompt, spans


# --- addresses -------------------------------------------------------------------------------------------------------


class _Sequence(NamedTuple):
    visual: np.ndarray
    """Whether it is an image token."""

    attention_mask: np.ndarray
    offsets: np.ndarray
    """First and last character of each token in the prompt, placeholders of pictures expanded."""


def _image_token(processor: Any) -> str:
    return str(getattr(processor, "image_token", ""))


def _visual(processor: Any, config: Any, tensors: Mapping[str, Any]) -> np.ndarray:
    """Where the image tokens are [sample position]."""
    if "image_embeds_position_mask" in tensors:  # by position, and not by id
        return tensors["image_embeds_position_mask"].numpy() == 1
    owner = config if hasattr(config, "image_token_id") else processor
    return tensors["input_ids"].numpy() == owner.image_token_id


def _padded(found: Any, mask: np.ndarray) -> np.ndarray:
    """Offsets [sample position 2]; some processors leave them as they are when they pad."""
    if isinstance(found, torch.Tensor):
        return found.numpy()
    offsets = np.zeros((*mask.shape, 2), np.int64)
    for sample, pairs in enumerate(found):
        offsets[sample, mask[sample] == 1] = pairs
    return offsets


def _unreported(processor: Any, prompt: str, sequence: _Sequence, n_pictures: int) -> list[dict[str, Any]]:
    """What the processor put in place of the prompt's image tokens, where it does not say so itself."""
    token, positions = _image_token(processor), np.flatnonzero(sequence.visual)
    places = [match.span() for match in re.finditer(re.escape(token), prompt)] if token else []
    if not places:
        if n_pictures != bool(len(positions)):
            raise ValueError(
                f"{type(processor).__name__} puts one picture before each prompt, so each question needs exactly one "
                f"picture, not {n_pictures}."
            )
        return []
    starts = [int(sequence.offsets[run[0], 0]) for run in np.split(positions, n_pictures)]
    # Delimiters before the placeholders; the same for all pictures.
    before = starts[0] - places[0][0]
    gained = [start - place - before for start, (place, _) in zip(starts, places, strict=True)]
    gained.append(_text_length(sequence) - len(prompt))
    return [
        {"span": (start, end), "new_span": (start + gained[index], end + gained[index + 1])}
        for index, (start, end) in enumerate(places)
    ]


def _text_length(sequence: _Sequence) -> int:
    """Characters of the prompt with placeholders."""
    return int(sequence.offsets[~sequence.visual].max())


def _gained(replacement: dict[str, Any]) -> int:
    """How many characters the prompt became longer by one replacement."""
    (start, end), (new_start, new_end) = replacement["span"], replacement["new_span"]
    return new_end - new_start - (end - start)


def _moved(spans: list[_Span], prompt: str, sequence: _Sequence, replaced: list[dict[str, Any]]) -> list[_Span]:
    """Where the texts stand if the processor puts something before the prompt, as the start of the text."""
    put_before = max(0, _text_length(sequence) - len(prompt) - sum(map(_gained, replaced)))
    return [_Span(span.start + put_before, span.end + put_before, span.role) for span in spans]


def _roles(sequence: _Sequence, spans: list[_Span], replaced: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """The columns of a token map for one sample, with the roles of its text."""
    n = len(sequence.visual)
    role = np.where(sequence.attention_mask == 1, Role.STRUCTURAL, Role.PADDING).astype(np.int64)
    start, end = sequence.offsets.T
    for span in spans:
        gained = sum(_gained(r) for r in replaced if r["span"][1] <= span.start)
        role[(start < span.end + gained) & (end > span.start + gained) & (end > start)] = span.role
    return {
        "role": role,
        **{name: np.full(n, -1, np.int64) for name in ("media", "view", "row", "column")},
        "overview": np.zeros(n, bool),
        "box": np.full((n, 4), np.nan, np.float32),
        "seconds": np.full((n, 2), np.nan, np.float32),
    }


def _placeholders(sequence: _Sequence, replaced: list[dict[str, Any]], n_pictures: int) -> list[np.ndarray]:
    """The positions that hold the visual tokens of each picture."""
    if not replaced:
        return np.split(np.flatnonzero(sequence.visual), n_pictures) if n_pictures else []
    start, end = sequence.offsets.T
    inside = [(start >= r["new_span"][0]) & (end <= r["new_span"][1]) & (end > start) for r in replaced]
    return [np.flatnonzero(own & sequence.visual) for own in inside]


def _address(columns: dict[str, np.ndarray], media: int, placeholders: np.ndarray, seen: Seen) -> None:
    """Writes the roles and addresses of one picture's tokens."""
    columns["media"][placeholders] = media
    columns["role"][placeholders] = Role.IMAGE
    if no_boxes(seen.config.model_type):
        return
    for view, segment in enumerate(segments(seen)):
        run, placeholders = np.split(placeholders, [segment.rows * (segment.columns + segment.row_end) + segment.end])
        n_cells = segment.rows * (segment.columns + segment.row_end)
        cells = rearrange(run[:n_cells], "(row cell) -> row cell", row=segment.rows)
        tokens = cells[:, : segment.columns].reshape(-1)
        # Row ends hold the place of no pixels.
        columns["role"][run] = Role.STRUCTURAL
        columns["role"][tokens] = Role.IMAGE
        columns["view"][run] = view
        columns["overview"][tokens] = segment.overview
        columns["row"][tokens], columns["column"][tokens] = np.divmod(np.arange(len(tokens)), segment.columns)
        columns["box"][tokens] = grid_boxes(segment.region, segment.rows, segment.columns).numpy()
