"""From pictures and questions to tensors and a map of their positions, through the model's own processor."""

from collections.abc import Mapping, Sequence
from functools import cache, partial
from itertools import count
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from transformers import BatchFeature

from corelens.inputs.chats import Chat, Prompt, chats, render
from corelens.inputs.media import Footage, Picture
from corelens.inputs.processor import TokenizedPrompt, encode
from corelens.inputs.processor_probe import ProcessorProbe
from corelens.inputs.token_geometry import ProcessedImage, no_boxes, segments
from corelens.tokens import Role, TokenMap, grid_boxes


class PreparedInputs(BatchFeature):
    """The tensors of a Hugging Face forward pass, as a mapping, and the map of their positions."""

    def __init__(self, tensors: Mapping[str, Any], tokens: TokenMap) -> None:
        super().__init__(dict(tensors))
        self.tokens = tokens

    def __repr__(self) -> str:
        return f"PreparedInputs({', '.join(self)}; {self.tokens})"

    @property
    def shape(self) -> torch.Size:
        """Batch and position, as token ids have them: TransformerLens's patching takes inputs in their place."""
        return self["input_ids"].shape

    def to(self, *args: Any, **kwargs: Any) -> "PreparedInputs":
        """Moves tensors and map; floating-point tensors also change dtype, if one is given."""
        super().to(*args, **kwargs)
        self.tokens = self.tokens.to(self["input_ids"].device)
        return self


def prepare(
    processor: Any,
    config: Any,
    images: Picture | Sequence[Any] | None,
    question: str | Sequence[Any],
    videos: Footage | Sequence[Any] | None = None,
) -> PreparedInputs:
    """Tensors and token map of a batch; see `HookedMLLM.prepare`."""
    asked = chats(question, images, videos, processor)
    prompts = [render(chat, processor) for chat in asked]
    tensors, written = encode(processor, config, prompts, asked)
    measured = cache(partial(ProcessorProbe, processor))  # each size once
    maps, sizes, number = [], [], {"image": count(), "video": count()}
    for chat, prompt, own in zip(asked, prompts, written, strict=True):
        columns = _roles(prompt, own)
        media = _media_segments([replacement.kind for replacement in own.placeholders], chat)
        for index, (medium, replacement) in enumerate(zip(media, own.placeholders, strict=True)):
            seen = ProcessedImage(
                config, tensors, next(number[replacement.kind]), measured(medium.size, min(len(chat.pictures), 2)),
                len(replacement.tokens), getattr(medium, "metadata", None),
            )  # fmt: skip
            _address(columns, index, replacement.tokens, seen)
        sizes.append(tuple(medium.size for medium in media))
        maps.append(columns)
    stacked = {name: torch.from_numpy(np.stack([columns[name] for columns in maps])) for name in maps[0]}
    videos_too = any(chat.clips for chat in asked)
    why = no_boxes(config.model_type) or (no_boxes(config.model_type, "video") if videos_too else "")
    return PreparedInputs(tensors, TokenMap(**stacked, sizes=tuple(sizes), no_boxes=why))


def unknown_words(tokenizer: Any, inputs: PreparedInputs) -> str:
    """Says it where questions have words that a small model was never taught; else nothing."""
    if tokenizer.unk_token_id is None or tokenizer.unk_token_id not in inputs["input_ids"][inputs.tokens.question]:
        return ""
    return f"The model does not know all of these words; it reads {tokenizer.unk_token} in their place."


def repeat_inputs(inputs: Mapping[str, Any], times: int) -> dict[str, Any]:
    """One prompt as a batch of several, each with media of its own.

    Raises:
        ValueError: If there are several prompts, whose media cannot be told apart.
    """
    if (n_samples := len(inputs["input_ids"])) != 1:
        raise ValueError(f"times={times} without a prefix needs a batch of one, and this one has {n_samples} samples.")
    return {
        # One row of positions, of however many kinds, stands for all.
        name: torch.cat([value] * times) if isinstance(value, Tensor) and name != "position_ids" else value
        for name, value in inputs.items()
    }


def _media_segments(kinds: list[str], chat: Chat) -> list[Any]:
    """Pictures and videos in the order of the prompt, which has places of these kinds.

    Templates may put pictures before videos, or both before the text, whatever the order of the chat.
    """
    given = {"image": chat.pictures, "video": chat.clips}
    if any(kinds.count(kind) != len(own) for kind, own in given.items()):
        places = f"{kinds.count('image')} pictures and {kinds.count('video')} videos"
        raise ValueError(
            f"the model's chat template has places for {places}, and {len(given['image'])} and {len(given['video'])} "
            f"were given."
        )
    waiting = {kind: iter(own) for kind, own in given.items()}
    return [next(waiting[kind]) for kind in kinds]


def _roles(prompt: Prompt, written: TokenizedPrompt) -> dict[str, np.ndarray]:
    """The columns of a token map for one sample, with the roles of its text."""
    n = len(written.tokens.visual)
    role = np.where(written.tokens.attention_mask == 1, Role.STRUCTURAL, Role.PADDING).astype(np.int64)
    start, end = written.tokens.offsets.T
    for span in prompt.spans:
        moved = written.tokens_before + sum(
            replacement.n_added
            for replacement in written.placeholders
            if replacement.end <= span.start + written.tokens_before
        )
        role[(start < span.end + moved) & (end > span.start + moved) & (end > start)] = span.role
    return {
        "role": role,
        **{name: np.full(n, -1, np.int64) for name in ("media", "view", "row", "column")},
        "overview": np.zeros(n, bool),
        "box": np.full((n, 4), np.nan, np.float32),
        "seconds": np.full((n, 2), np.nan, np.float32),
    }


def _address(columns: dict[str, np.ndarray], media: int, tokens: np.ndarray, seen: ProcessedImage) -> None:
    """Writes the roles and addresses of the tokens of one picture or video."""
    role = Role.VIDEO if seen.kind == "video" else Role.IMAGE
    columns["media"][tokens] = media
    columns["role"][tokens] = role
    if no_boxes(seen.config.model_type, seen.kind):
        return
    for view, segment in enumerate(segments(seen)):
        run, tokens = np.split(tokens, [segment.rows * (segment.columns + segment.row_end) + segment.end])
        n_cells = segment.rows * (segment.columns + segment.row_end)
        cells = rearrange(run[:n_cells], "(row cell) -> row cell", row=segment.rows)
        own = cells[:, : segment.columns].reshape(-1)
        # Row ends hold the place of no pixels.
        columns["role"][run] = Role.STRUCTURAL
        columns["role"][own] = role
        columns["view"][run] = view
        columns["overview"][own] = segment.overview
        columns["row"][own], columns["column"][own] = np.divmod(np.arange(len(own)), segment.columns)
        columns["box"][own] = grid_boxes(segment.region, segment.rows, segment.columns).numpy()
        columns["seconds"][own] = segment.seconds
