"""Preparation of pictures and questions: tensors from the model's own processor, and the map of their positions."""

from collections.abc import Mapping, Sequence
from functools import cache, partial
from hashlib import blake2b
from itertools import count
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from transformers import BatchFeature

from corelens.errors import docs_link
from corelens.inputs.chats import Chat, Prompt, build_chats, render
from corelens.inputs.media import Footage, Picture
from corelens.inputs.processor import TokenizedPrompt, encode
from corelens.inputs.processor_probe import ProcessorProbe
from corelens.inputs.token_geometry import ProcessedImage, merged_patches, no_boxes, segments
from corelens.tokens import Role, TokenMap, grid_boxes


class PreparedInputs(BatchFeature):
    """The tensors of a Hugging Face forward pass, as a mapping, and the map of their positions."""

    def __init__(self, tensors: Mapping[str, Any], tokens: TokenMap) -> None:
        super().__init__(dict(tensors))
        self.tokens = tokens

    def __repr__(self) -> str:
        return f"PreparedInputs({', '.join(self)}; {self.tokens})"

    # BatchFeature copies, pickles and merges its tensors alone.

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __or__(self, other: Any) -> "PreparedInputs":
        return PreparedInputs({**self, **other}, self._map_with(other))

    def __ror__(self, other: Any) -> "PreparedInputs":
        return PreparedInputs({**other, **self}, self.tokens)

    def __ior__(self, other: Any) -> "PreparedInputs":
        self.tokens = self._map_with(other)
        self.update(other)
        return self

    def _map_with(self, other: Mapping[str, Any]) -> TokenMap:
        """The map of these inputs with those of `other` in their places.

        Raises:
            ValueError: If the token ids are those of another prompt, whose map is not known.
        """
        ids = other.get("input_ids", self["input_ids"])
        if isinstance(other, PreparedInputs) and "input_ids" in other:
            return other.tokens
        if ids.shape != self.shape:
            raise ValueError(
                f"`input_ids` of shape {tuple(ids.shape)} are another prompt than these inputs of {tuple(self.shape)}, "
                f"and come without a token map: prepare that prompt, or pass the tensors as a plain dict."
            )
        return self.tokens

    @property
    def shape(self) -> torch.Size:
        """Batch and position, as of token ids, because TransformerLens's patching takes inputs in place of these."""
        return self["input_ids"].shape

    def to(self, *args: Any, **kwargs: Any) -> "PreparedInputs":
        """Move tensors and map to a device; floating-point tensors also change dtype, if one is given."""
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
    """Prepare the tensors and the token map of a batch; see `HookedMLLM.prepare`."""
    chats = build_chats(question, images, videos, processor)
    prompts = [render(chat, processor) for chat in chats]
    tensors, tokenized = encode(processor, config, prompts, chats)
    check_context(config, tensors["attention_mask"])
    probe_of = cache(partial(ProcessorProbe, processor))  # each size once
    samples, sizes, numbers = [], [], {"image": count(), "video": count()}
    for chat, prompt, tokenized_prompt in zip(chats, prompts, tokenized, strict=True):
        columns = _roles(prompt, tokenized_prompt)
        placeholders = tokenized_prompt.placeholders
        media = _media_in_order([placeholder.kind for placeholder in placeholders], chat)
        for index, (medium, placeholder) in enumerate(zip(media, placeholders, strict=True)):
            image = ProcessedImage(
                config, tensors, next(numbers[placeholder.kind]), probe_of(medium.size, min(len(chat.pictures), 2)),
                len(placeholder.tokens), getattr(medium, "metadata", None),
            )  # fmt: skip
            _write_addresses(columns, index, placeholder.tokens, image)
        sizes.append(tuple(medium.size for medium in media))
        samples.append(columns)
    position_tensors = {name: torch.from_numpy(np.stack([columns[name] for columns in samples])) for name in samples[0]}
    has_videos = any(chat.clips for chat in chats)
    reason = no_boxes(config.model_type) or (no_boxes(config.model_type, "video") if has_videos else "")
    merge = merged_patches(config.model_type, processor)
    digests = tuple(_digest(prompt, chat) for prompt, chat in zip(prompts, chats, strict=True))
    tokens = TokenMap(**position_tensors, sizes=tuple(sizes), no_boxes=reason, merge=merge, prompts=digests)
    return PreparedInputs(tensors, tokens)


def _digest(prompt: Prompt, chat: Chat) -> str:
    """Digest of the text and of all pixels of a prompt."""
    digest = blake2b(prompt.text.encode(), digest_size=8)
    for pixels in [*chat.pictures, *(clip.frames for clip in chat.clips)]:
        digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def check_context(config: Any, attention_mask: Tensor) -> None:
    """Raise a ValueError if a sequence has more tokens than the model was made for.

    Args:
        config: The model's configuration.
        attention_mask: Mask of the tokens of each sequence, padding excluded.
    """
    text: Any = config.get_text_config() if hasattr(config, "get_text_config") else config
    longest, most = int(attention_mask.sum(-1).max()), getattr(text, "max_position_embeddings", None)
    if most is None or longest <= most:
        return
    rope = getattr(text, "rope_parameters", None) or {}
    for scaling in (rope, *(part for part in rope.values() if isinstance(part, Mapping))):
        # Rotary positions that are scaled reach farther.
        original = scaling.get("original_max_position_embeddings") or most
        most = max(most, int(original * (scaling.get("factor") or 1)))
    if longest > most:
        raise ValueError(
            f"the prompt has {longest} tokens, and the model was made for {most} (max_position_embeddings of its "
            f"text configuration): give fewer or smaller pictures. {docs_link('too-long')}"
        )


def unknown_words(tokenizer: Any, inputs: PreparedInputs) -> str:
    """Return a note if questions have words that are not in a small model's vocabulary, else an empty string."""
    if tokenizer.unk_token_id is None or tokenizer.unk_token_id not in inputs["input_ids"][inputs.tokens.question]:
        return ""
    return f"The model does not know all of these words; it reads {tokenizer.unk_token} in their place."


def repeat_inputs(inputs: Mapping[str, Any], times: int) -> dict[str, Any]:
    """Repeat one prompt with its media as a batch of `times` rows.

    Raises:
        ValueError: If there are several prompts, whose media cannot be told apart.
    """
    if (n_samples := len(inputs["input_ids"])) != 1:
        raise ValueError(f"times={times} without a prefix needs a batch of one, and this one has {n_samples} samples.")
    return {
        # One row of position ids, of however many kinds, stands for all.
        name: torch.cat([value] * times) if isinstance(value, Tensor) and name != "position_ids" else value
        for name, value in inputs.items()
    }


def _media_in_order(kinds: list[str], chat: Chat) -> list[Any]:
    """Pictures and videos of a chat in the order of the prompt, whose placeholders are of these kinds.

    Templates may put pictures before videos, or both before the text, whatever the order of the chat.
    """
    media = {"image": chat.pictures, "video": chat.clips}
    if any(kinds.count(kind) != len(items) for kind, items in media.items()):
        places = f"{kinds.count('image')} pictures and {kinds.count('video')} videos"
        raise ValueError(
            f"the model's chat template has places for {places}, and {len(media['image'])} and {len(media['video'])} "
            f"were given."
        )
    iterators = {kind: iter(items) for kind, items in media.items()}
    return [next(iterators[kind]) for kind in kinds]


def _roles(prompt: Prompt, tokenized: TokenizedPrompt) -> dict[str, np.ndarray]:
    """Columns of a token map for one sample, with the roles of its text."""
    n_positions = len(tokenized.tokens.visual)
    role = np.where(tokenized.tokens.attention_mask == 1, Role.STRUCTURAL, Role.PADDING).astype(np.int64)
    start, end = tokenized.tokens.offsets.T
    for span in prompt.spans:
        shift = tokenized.n_prefix + sum(
            placeholder.n_added
            for placeholder in tokenized.placeholders
            if placeholder.end <= span.start + tokenized.n_prefix
        )
        role[(start < span.end + shift) & (end > span.start + shift) & (end > start)] = span.role
    return {
        "role": role,
        **{name: np.full(n_positions, -1, np.int64) for name in ("media", "view", "row", "column")},
        "overview": np.zeros(n_positions, bool),
        "box": np.full((n_positions, 4), np.nan, np.float32),
        "seconds": np.full((n_positions, 2), np.nan, np.float32),
    }


def _write_addresses(columns: dict[str, np.ndarray], media: int, tokens: np.ndarray, image: ProcessedImage) -> None:
    """Write the roles and addresses of the tokens of one picture or video into the columns."""
    role = Role.VIDEO if image.kind == "video" else Role.IMAGE
    columns["media"][tokens] = media
    columns["role"][tokens] = role
    if no_boxes(image.config.model_type, image.kind):
        return
    for view, segment in enumerate(segments(image)):
        n_cells = segment.rows * (segment.columns + segment.row_end)
        run, tokens = np.split(tokens, [n_cells + segment.end])
        cells = rearrange(run[:n_cells], "(row cell) -> row cell", row=segment.rows)
        visual = cells[:, : segment.columns].reshape(-1)
        # Placeholders at the ends of rows stand for no pixels.
        columns["role"][run] = Role.STRUCTURAL
        columns["role"][visual] = role
        columns["view"][run] = view
        columns["overview"][visual] = segment.overview
        columns["row"][visual], columns["column"][visual] = np.divmod(np.arange(len(visual)), segment.columns)
        columns["box"][visual] = grid_boxes(segment.region, segment.rows, segment.columns).numpy()
        columns["seconds"][visual] = segment.seconds
