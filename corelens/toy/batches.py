"""What the toy is trained on: batches of scenes and chats, each made from the seed and its number alone."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from corelens.toy import build, worlds
from corelens.toy.worlds import COLOURS, DIGITS, TEXT_TASKS

TURNS = 8
IMAGES, TEXTS = 16, 32
TEXT_SHARES = (0.2, 0.6, 0.2)
"""How often each of `TEXT_TASKS` is asked: recall takes longest to learn."""


def chat_words(turns: Iterable[tuple[str, str]], n_visual: int) -> tuple[list[str], list[bool]]:
    """The words of a chat as the template renders them, and which of them the model must learn to say."""
    words, said = [], []
    for index, (question, answer) in enumerate(turns):
        picture = [build.VISION_START, *[build.IMAGE] * n_visual, build.VISION_END] if n_visual and not index else []
        asked = [build.START, "user", *picture, *question.split(), build.END, build.START, "assistant"]
        answered = [*answer.split(), build.END]
        words += asked + answered
        said += [False] * len(asked) + [True] * len(answered)
    return words, said


def collate(tokenizer: Any, chats: list[tuple[list[str], list[bool]]]) -> dict[str, Tensor]:
    """Right-padded tensors for the model's forward pass, with labels at the words that it must say."""
    length = max(len(words) for words, _ in chats)
    ids = torch.full((len(chats), length), tokenizer.pad_token_id)
    labels = torch.full((len(chats), length), -100)
    attention_mask = torch.zeros(len(chats), length, dtype=torch.long)
    for row, (words, said) in enumerate(chats):
        row_ids = torch.tensor(tokenizer.convert_tokens_to_ids(words))
        ids[row, : len(words)] = row_ids
        labels[row, : len(words)] = torch.where(torch.tensor(said), row_ids, -100)
        attention_mask[row, : len(words)] = 1
    image = tokenizer.convert_tokens_to_ids(build.IMAGE)
    return {
        "input_ids": ids,
        "attention_mask": attention_mask,
        "mm_token_type_ids": (ids == image).long(),
        "labels": labels,
    }


class Batches:
    """Training batch `step` of a stage, from the seed alone."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.tokenizer = build.tokenizer()
        self.image_processor = build.image_processor()

    def crowded(self, step: int, n: int = 32) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Scenes of 14 digits, and the digit and colour that each visual token shows (-100 where it shows none)."""
        rng = np.random.default_rng([self.seed, 1, step])
        drawn = [worlds.draw_scene(rng, 14, "train", distinct=False) for _ in range(n)]
        cell = build.PATCH * build.MERGE
        side = worlds.SIDE // cell
        digit, colour = (torch.full((n, side, side), -100) for _ in range(2))
        for index, scene in enumerate(drawn):
            for thing in scene.things:
                for row in range(side):
                    for column in range(side):
                        width = min(thing.box.right, (column + 1) * cell) - max(thing.box.left, column * cell)
                        height = min(thing.box.bottom, (row + 1) * cell) - max(thing.box.top, row * cell)
                        if width > 0 and height > 0 and width * height >= cell * cell / 3:
                            digit[index, row, column] = DIGITS.index(thing.digit)
                            colour[index, row, column] = tuple(COLOURS).index(thing.colour)
        return self._pixels([scene.image() for scene in drawn]), digit.flatten(), colour.flatten()

    def chats(self, step: int, n_things: int) -> list[dict[str, Tensor]]:
        """One batch of pictures and one of text-only chats, eight questions each."""
        rng = np.random.default_rng([self.seed, 2, step])
        seen, pictures = [], []
        for _ in range(IMAGES):
            scene = worlds.draw_scene(rng, int(rng.integers(max(1, n_things - 1), n_things + 1)), "train")
            pictures.append(scene.image())
            seen.append(chat_words([worlds.ask(rng, scene)[:2] for _ in range(TURNS)], self.n_visual))
        read = []
        for _ in range(TEXTS):
            task = str(rng.choice(TEXT_TASKS, p=TEXT_SHARES))
            if task == "recall":
                # As behind a picture: one list, many questions.
                pairs = worlds.draw_pairs(rng)
                turns = [worlds.ask_pairs(rng, pairs) for _ in range(TURNS)]
                turns[0] = (f"{worlds.say_pairs(pairs)} . {turns[0][0]}", turns[0][1])
            else:
                turns = [worlds.ask_text(rng, task) for _ in range(TURNS // 2)]
            read.append(chat_words(turns, 0))
        return [collate(self.tokenizer, seen) | self._pixels(pictures), collate(self.tokenizer, read)]

    @property
    def n_visual(self) -> int:
        return (worlds.SIDE // (build.PATCH * build.MERGE)) ** 2

    def _pixels(self, pictures: list[Any]) -> dict[str, Tensor]:
        return dict(self.image_processor(pictures, return_tensors="pt"))
