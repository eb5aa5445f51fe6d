"""From pictures and questions to tensors and a map of their positions, through the model's own processor."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from transformers import AutoConfig, AutoProcessor, BatchFeature
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils.import_utils import is_torchvision_available

from corelens.grids import Seen, no_boxes, segments
from corelens.media import Clip, Footage, Picture, load_clip, load_picture
from corelens.tokens import Role, TokenMap, grid_boxes

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
    without them, nor from a checkpoint that was saved without them.
    """
    if is_torchvision_available():
        try:
            return AutoProcessor.from_pretrained(name_or_path, **kwargs)
        except OSError as cause:
            if "video processor" not in str(cause):
                raise
    model_type = AutoConfig.from_pretrained(name_or_path, **kwargs).model_type
    family: Any = PROCESSOR_MAPPING.get(CONFIG_MAPPING[model_type], None)
    if family is None or "video_processor" not in family.get_attributes():
        return AutoProcessor.from_pretrained(name_or_path, **kwargs)
    return pictures_only(family).from_pretrained(name_or_path, **kwargs)


def pictures_only(family: Any) -> Any:
    """A processor class without its video processor; of the same name, so that what it saves is the real class's."""
    parts = [part for part in family.get_attributes() if part != "video_processor"]
    return type(family.__name__, (family,), {"get_attributes": classmethod(lambda cls: parts)})


def prepare(
    processor: Any,
    config: Any,
    images: Picture | Sequence[Any] | None,
    question: str | Sequence[Any],
    videos: Footage | Sequence[Any] | None = None,
) -> PreparedInputs:
    """Tensors and token map of a batch; see `HookedMLLM.prepare`."""
    chats = [
        _chat(asked, own, films, processor) for asked, own, films in _per_sample(question, picture=images, video=videos)
    ]
    if getattr(processor, "image_token", None) is None:
        raise ValueError(_unsaid(processor))
    pictures, clips = ([_media(chat, kind) for chat in chats] for kind in ("image", "video"))
    rendered = [_render(processor, chat, own) for chat, own in zip(chats, pictures, strict=True)]
    with _replacements(processor) as replaced:
        tensors = _tensors(
            processor, [text for text, _, _ in rendered], pictures, [clip for own in clips for clip in own]
        )
    replaced = replaced or [[] for _ in chats]
    if any(pictures) and not any(replaced):
        raise ValueError(_unsaid(processor))
    tensors.pop("labels", None)  # some processors prepare for training, too
    offsets = tensors.pop("offset_mapping").numpy()
    # Phi-4's configuration does not say what stands for a picture; its processor does.
    named = config if getattr(config, "image_token_id", None) is not None else processor
    maps, sizes, number = [], [], {"image": count(), "video": count()}
    for sample, (_, n_characters, spans) in enumerate(rendered):
        sequence = _Sequence(
            tensors["input_ids"][sample].numpy(), tensors["attention_mask"][sample].numpy(), offsets[sample]
        )
        columns = _roles(sequence, _moved(spans, n_characters, sequence, replaced[sample]), replaced[sample])
        given = {"image": pictures[sample], "video": clips[sample]}
        # Templates may put pictures before videos, or both before the text, whatever the order of the chat.
        media = _in_order([replacement["type"] for replacement in replaced[sample]], given)
        for index, (medium, replacement) in enumerate(zip(media, replaced[sample], strict=True)):
            placeholders = _placeholders(sequence, replacement, named)
            seen = Seen(
                config, processor, tensors, next(number[replacement["type"]]), medium.size, len(placeholders),
                len(pictures[sample]), getattr(medium, "metadata", None),
            )  # fmt: skip
            _address(columns, index, placeholders, seen)
        sizes.append(tuple(medium.size for medium in media))
        maps.append(columns)
    stacked = {name: torch.from_numpy(np.stack([columns[name] for columns in maps])) for name in maps[0]}
    why = no_boxes(config.model_type) or (no_boxes(config.model_type, "video") if any(clips) else "")
    return PreparedInputs(tensors, TokenMap(**stacked, sizes=tuple(sizes), no_boxes=why))


def _unsaid(processor: Any) -> str:
    return (
        f"{type(processor).__name__} does not say what it writes in place of a picture, so visual tokens cannot be "
        f"found. Call the processor itself and pass its tensors to the model."
    )


def _tensors(processor: Any, prompts: list[str], pictures: list[list[Any]], clips: list[Clip]) -> BatchFeature:
    """What the processor makes of a batch."""
    bos = processor.tokenizer.bos_token
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
        return processor(
            text=prompts,
            images=pictures if any(pictures) else None,
            videos=[clip.frames for clip in clips] or None,
            padding=True,
            padding_side="left",
            add_special_tokens=not (bos and prompts[0].startswith(bos)),
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


@contextmanager
def _replacements(processor: Any) -> Iterator[list[list[dict[str, Any]]]]:
    """What a processor writes in place of each picture of each prompt, and where.

    Listened to, because a processor that is asked to return it fails if the first prompt of a batch has no picture.
    """
    heard = []
    write = processor.get_text_with_replacements

    def listen(*args: Any, **kwargs: Any) -> tuple[Any, list[list[dict[str, Any]]]]:
        text, replaced = write(*args, **kwargs)
        heard.extend(replaced)
        return text, replaced

    processor.get_text_with_replacements = listen
    try:
        yield heard
    finally:
        del processor.get_text_with_replacements


# --- chats -----------------------------------------------------------------------------------------------------------


def _per_sample(question: Any, **media: Any) -> list[tuple[Any, ...]]:
    """The question of each sample with its pictures and its videos."""
    one = isinstance(question, str) or (len(question) > 0 and isinstance(question[0], Mapping))
    if one:
        question, media = [question], {kind: [given] for kind, given in media.items()}
    if not len(question):
        raise ValueError("there is no question: give a string, a chat, or a list of them.")
    columns = []
    for kind, given in media.items():
        given = [None] * len(question) if given is None else given
        if isinstance(given, Picture | Footage) or len(given) != len(question):
            said = f"one {kind}" if isinstance(given, Picture | Footage) else f"{kind}s for {len(given)}"
            raise ValueError(
                f"{len(question)} questions came with {said}: give one entry per question, each a {kind}, a list of "
                f"{kind}s or None."
            )
        columns.append([[] if own is None else list(own) if isinstance(own, list | tuple) else [own] for own in given])
    return list(zip(question, *columns, strict=True))


def _chat(asked: str | Sequence[Message], images: list[Any], videos: list[Any], processor: Any) -> list[dict[str, Any]]:
    """A chat whose contents are lists of parts, each picture and video loaded and in its place."""
    given = {"image": images, "video": videos}
    if isinstance(asked, str):
        places = [{"type": kind} for kind, own in given.items() for _ in own]
        asked = [{"role": "user", "content": [*places, {"type": "text", "text": asked}]}]
    named = {"image": "pictures", "video": "videos"}
    chat, waiting = [], {kind: list(own) for kind, own in given.items()}
    for message in asked:
        content = message["content"]
        parts = []
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            kind = part["type"]
            if kind == "text":
                parts.append({"type": "text", "text": part["text"]})
            elif kind in given:
                source = part.get(kind, part.get("path"))
                if source is None and not waiting[kind]:
                    raise ValueError(f"the chat names more {named[kind]} than the {len(given[kind])} given.")
                source = waiting[kind].pop(0) if source is None else source
                parts.append(
                    {"type": kind, kind: load_picture(source) if kind == "image" else load_clip(source, processor)}
                )
            else:
                raise ValueError(f"a chat part of type {kind!r} cannot be prepared; text, image and video can.")
        chat.append({"role": message["role"], "content": parts})
    for kind, left in waiting.items():
        if left:
            raise ValueError(
                f"{len(left)} of {len(given[kind])} {named[kind]} have no place in the chat: it needs one "
                f"{{'type': {kind!r}}} part for each."
            )
    if chat[-1]["role"] != "user":
        raise ValueError(f"the chat ends with a message of the {chat[-1]['role']!r}; it must end with the question.")
    if not any(part["text"].strip() for part in chat[-1]["content"] if part["type"] == "text"):
        raise ValueError("the question is empty: there is no token to measure attention from.")
    return chat


def _media(chat: list[dict[str, Any]], kind: str) -> list[Any]:
    return [part[kind] for message in chat for part in message["content"] if kind in part]


def _in_order(kinds: list[str], given: dict[str, list[Any]]) -> list[Any]:
    """Pictures and videos in the order of the prompt, which has places of these kinds."""
    if any(kinds.count(kind) != len(own) for kind, own in given.items()):
        places = f"{kinds.count('image')} pictures and {kinds.count('video')} videos"
        raise ValueError(
            f"the model's chat template has places for {places}, and {len(given['image'])} and {len(given['video'])} "
            f"were given."
        )
    waiting = {kind: iter(own) for kind, own in given.items()}
    return [next(waiting[kind]) for kind in kinds]


class _Span(NamedTuple):
    """Where a text of the chat stands in the rendered prompt, in characters."""

    start: int
    end: int
    role: Role


def _render(processor: Any, chat: list[dict[str, Any]], pictures: list[Image.Image]) -> tuple[str, int, list[_Span]]:
    """The prompt as the model's chat template writes it, and where the texts of the chat stand in it.

    The template is rendered a second time with a private mark in place of every text; what stands around the marks is
    the template's own, whatever it looks like. The spans count what the processor itself adds to the prompt, and the
    length returned beside it does.
    """
    if not getattr(processor, "chat_template", None):
        raise ValueError(f"{type(processor).__name__} has no chat template, so a question cannot be put to the model.")
    for kind, token in (("picture", processor.image_token), ("video", getattr(processor, "video_token", None))):
        if token and any(str(token) in part.get("text", "") for message in chat for part in message["content"]):
            raise ValueError(f"the text holds {token!r}, which stands for a {kind}; pass {kind}s instead.")

    def render(text_of: Callable[[int, str], str]) -> str:
        texts = iter(range(10**6))
        written = [
            {
                "role": message["role"],
                "content": [
                    {"type": "text", "text": text_of(next(texts), part["text"])}
                    if part["type"] == "text"
                    else {"type": part["type"]}
                    for part in message["content"]
                ],
            }
            for message in chat
        ]
        return processor.apply_chat_template(written, tokenize=False, add_generation_prompt=True)

    def laid_out(text: str) -> str:
        images = [pictures] if pictures else None
        return processor.prepare_inputs_layout(images=images, text=[text])[1][0]

    written_prompt = render(lambda index, text: text)
    prompt = laid_out(written_prompt)
    texts = [(message, part["text"]) for message in chat for part in message["content"] if "text" in part]
    spans, cursor = [], 0
    literal, *rest = _SENTINEL.split(laid_out(render(lambda index, text: f"\ue000{index}\ue001")))
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
    return written_prompt, len(prompt), spans


# --- addresses -------------------------------------------------------------------------------------------------------


class _Sequence(NamedTuple):
    ids: np.ndarray
    attention_mask: np.ndarray
    offsets: np.ndarray
    """First and last character of each token in the prompt, placeholders of pictures and videos expanded."""


def _roles(sequence: _Sequence, spans: list[_Span], replaced: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """The columns of a token map for one sample, with the roles of its text."""
    n = len(sequence.ids)
    role = np.where(sequence.attention_mask == 1, Role.STRUCTURAL, Role.PADDING).astype(np.int64)
    start, end = sequence.offsets.T
    for span in spans:
        gained = sum(
            r["new_span"][1] - r["new_span"][0] - (r["span"][1] - r["span"][0])
            for r in replaced
            if r["span"][1] <= span.start
        )
        role[(start < span.end + gained) & (end > span.start + gained) & (end > start)] = span.role
    return {
        "role": role,
        **{name: np.full(n, -1, np.int64) for name in ("media", "view", "row", "column")},
        "overview": np.zeros(n, bool),
        "box": np.full((n, 4), np.nan, np.float32),
        "seconds": np.full((n, 2), np.nan, np.float32),
    }


def _moved(spans: list[_Span], n_characters: int, sequence: _Sequence, replaced: list[dict[str, Any]]) -> list[_Span]:
    """Where the texts stand if the processor puts something before the prompt, such as the start of the text."""
    gained = sum(r["new_span"][1] - r["new_span"][0] - (r["span"][1] - r["span"][0]) for r in replaced)
    put_before = max(0, int(sequence.offsets.max()) - n_characters - gained)
    return [_Span(span.start + put_before, span.end + put_before, span.role) for span in spans]


def _placeholders(sequence: _Sequence, replacement: dict[str, Any], owner: Any) -> np.ndarray:
    """The positions that hold the visual tokens of one picture or video."""
    first, last = replacement["new_span"]
    start, end = sequence.offsets.T
    # Some models write the frames of a video with the token of pictures.
    visual = np.isin(sequence.ids, [owner.image_token_id, getattr(owner, "video_token_id", None) or -1])
    return np.flatnonzero((start >= first) & (end <= last) & (end > start) & visual)


def _address(columns: dict[str, np.ndarray], media: int, placeholders: np.ndarray, seen: Seen) -> None:
    """Writes the roles and addresses of the tokens of one picture or video."""
    role = Role.VIDEO if seen.kind == "video" else Role.IMAGE
    columns["media"][placeholders] = media
    columns["role"][placeholders] = role
    if no_boxes(seen.config.model_type, seen.kind):
        return
    for view, segment in enumerate(segments(seen)):
        run, placeholders = np.split(placeholders, [segment.rows * (segment.columns + segment.row_end) + segment.end])
        n_cells = segment.rows * (segment.columns + segment.row_end)
        cells = rearrange(run[:n_cells], "(row cell) -> row cell", row=segment.rows)
        tokens = cells[:, : segment.columns].reshape(-1)
        # Row ends hold the place of no pixels.
        columns["role"][run] = Role.STRUCTURAL
        columns["role"][tokens] = role
        columns["view"][run] = view
        columns["overview"][tokens] = segment.overview
        columns["row"][tokens], columns["column"][tokens] = np.divmod(np.arange(len(tokens)), segment.columns)
        columns["box"][tokens] = grid_boxes(segment.region, segment.rows, segment.columns).numpy()
        columns["seconds"][tokens] = segment.seconds
