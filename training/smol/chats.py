"""Chats for training the connector and the low-rank updates: pictures, written lists and plain text."""

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from corelens.hf.smol import AROUND, GLOBAL, IMAGE, N_VISUAL
from corelens.smol.texts import draw_list
from corelens.smol.worlds import ENGLISH_WORLDS
from training.smol.tower import pixels

TURNS, LIST_TURNS = 4, 8
N_PICTURES, N_LISTS = 4, 1
WORLD_SHARES = {"emoji": 0.35, "digits": 0.12, "shapes": 0.13, "pages": 0.2, "bars": 0.2}
N_PLAIN = 96
"""Tokens of plain text in a batch."""

_SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
_PICTURE = f"{AROUND}{GLOBAL}{IMAGE * N_VISUAL}{AROUND}"


class Chats(NamedTuple):
    """Right-padded chats, about one picture each or about none."""

    ids: Int[Tensor, "chat token"]
    mask: Int[Tensor, "chat token"]
    is_target: Bool[Tensor, "chat token"]
    """True at the tokens of answers."""
    pixels: Float[Tensor, "picture 1 3 row column"] | None


def picture_chats(tokenizer: Any, rng: np.random.Generator) -> Chats:
    """Chats of some questions about one picture each."""
    names = rng.choice(list(WORLD_SHARES), N_PICTURES, p=list(WORLD_SHARES.values()))
    drawn = [ENGLISH_WORLDS[str(name)](rng, "train") for name in names]
    turns = []
    for item in drawn:
        order = rng.permutation(len(item.questions))[:TURNS]
        turns.append([(item.questions[index].text, item.questions[index].answer) for index in order])
    return _padded(tokenizer, [chat_parts(chat, _PICTURE) for chat in turns], pixels([item.picture for item in drawn]))


def list_chats(tokenizer: Any, rng: np.random.Generator) -> Chats:
    """Chats of some questions about a written list of pairs."""
    chats = []
    for _ in range(N_LISTS):
        text, questions = draw_list(rng)
        turns = [
            (questions[index].text, questions[index].answer) for index in rng.permutation(len(questions))[:LIST_TURNS]
        ]
        chats.append(chat_parts(turns, f"{text}\n"))
    return _padded(tokenizer, chats, None)


def chat_parts(turns: list[tuple[str, str]], before: str) -> list[tuple[str, bool]]:
    """Texts of a chat in the language model's template, and whether each is an answer."""
    parts = [(_SYSTEM, False)]
    for index, (question, answer) in enumerate(turns):
        opening = before if index == 0 else ""
        parts.append((f"<|im_start|>user\n{opening}{question}<|im_end|>\n<|im_start|>assistant\n", False))
        parts += [(f"{answer}<|im_end|>", True), ("\n", False)]
    return parts


def _padded(tokenizer: Any, chats: list[list[tuple[str, bool]]], pictures: Tensor | None) -> Chats:
    rows = []
    for parts in chats:
        # Special tokens part the pieces, so that each can be tokenized for itself.
        pieces = [(tokenizer(text, add_special_tokens=False).input_ids, is_answer) for text, is_answer in parts]
        rows.append([(token, is_answer) for ids, is_answer in pieces for token in ids])
    length = max(map(len, rows))
    ids = torch.full((len(rows), length), tokenizer.pad_token_id)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    is_target = torch.zeros(len(rows), length, dtype=torch.bool)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor([token for token, _ in row])
        mask[number, : len(row)] = 1
        is_target[number, : len(row)] = torch.tensor([is_answer for _, is_answer in row])
    return Chats(ids, mask, is_target, pictures)


@cache
def _plain_text() -> str:
    """English prose that every Python brings: the help on its language. It never names a picture."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def plain_tokens(tokenizer: Any, rng: np.random.Generator) -> Int[Tensor, "1 token"]:
    """Tokens from a random place of plain text."""
    text = _plain_text()
    start = int(rng.integers(len(text) - 10 * N_PLAIN))
    ids = tokenizer(text[start : start + 10 * N_PLAIN]).input_ids[:N_PLAIN]
    return torch.tensor([ids])
