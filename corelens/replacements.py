"""What a processor wrote in place of pictures and videos: as it says itself, or as the visual tokens stand."""

import re
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import BatchFeature

from corelens.chats import Chat, Prompt
from corelens.grids import LEARNED_QUERIES
from corelens.processors import call


class Tokenized(NamedTuple):
    """A prompt in tokens."""

    attention_mask: np.ndarray
    offsets: np.ndarray
    """First and last character of each token in the prompt, with pictures and videos replaced."""

    visual: np.ndarray
    """Whether the token stands for a part of a picture or video."""


class Replacement(NamedTuple):
    """What stands in place of a picture or video."""

    kind: str
    """`image` or `video`."""

    end: int
    """Where its place in the prompt ends, in characters."""

    gained: int
    """By how many characters the prompt became longer."""

    tokens: np.ndarray
    """The positions of its visual tokens."""


class Written(NamedTuple):
    """What became of a prompt."""

    tokens: Tokenized
    before: int
    """Characters that were put before it, such as the start of the text."""

    replaced: list[Replacement]


def encode(processor: Any, config: Any, prompts: list[Prompt], chats: list[Chat]) -> tuple[BatchFeature, list[Written]]:
    """The tensors of a batch, and what became of each prompt."""
    unsaid = ValueError(
        f"{type(processor).__name__} does not say what it writes in place of a picture, so visual tokens cannot be "
        f"found. Call the processor itself and pass its tensors to the model."
    )
    learned = config.model_type in LEARNED_QUERIES
    if getattr(processor, "image_token", None) is None and not learned:
        raise unsaid
    tensors, said = call(processor, prompts, chats)
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
            _inferred(name, token, prompt.laid_out, tokens, len(chat.pictures))
            for prompt, tokens, chat in zip(prompts, tokenized, chats, strict=True)
        ]
    said = said or [[] for _ in chats]
    return tensors, [
        _said(prompt.laid_out, tokens, own) for prompt, tokens, own in zip(prompts, tokenized, said, strict=True)
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


def _said(prompt: str, tokens: Tokenized, said: list[dict[str, Any]]) -> Written:
    start, end = tokens.offsets.T
    replaced = []
    for one in said:
        (place_start, place_end), (first, last) = one["span"], one["new_span"]
        own = np.flatnonzero((start >= first) & (end <= last) & (end > start) & tokens.visual)
        replaced.append(Replacement(one["type"], place_end, last - first - (place_end - place_start), own))
    gained = sum(replacement.gained for replacement in replaced)
    return Written(tokens, max(0, int(end.max()) - len(prompt) - gained), replaced)


def _inferred(processor: str, token: str, prompt: str, tokens: Tokenized, n_pictures: int) -> Written:
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
        return Written(tokens, before, [Replacement("image", 0, 0, visual)] * n_pictures)
    runs = np.split(visual, len(places))
    # Delimiters come before the tokens, as many characters for every picture.
    starts = [int(tokens.offsets[run[0], 0]) - place for run, (place, _) in zip(runs, places, strict=True)]
    moved = np.diff([*starts, length - len(prompt) + starts[0]]).tolist()
    return Written(
        tokens, 0, [Replacement("image", end, n, run) for (_, end), n, run in zip(places, moved, runs, strict=True)]
    )
