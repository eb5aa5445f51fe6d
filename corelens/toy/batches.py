"""What the toy is trained on: batches of scenes and chats, each made from the seed and its number alone."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from corelens.toy import build, worlds
from corelens.toy.worlds import COLOURS, DIGITS, TEXT_TASKS

TURNS = 8
IMAGES, TEXTS = 16, 32
TEXT_SHARES = (0.2, 0.6, 0.2)
"""How often each of `TEXT_TASKS` is asked: recall takes longest to learn."""
FURTHEST = 800
"""How far on the last token of a stretched haystack may stand: the place of one of about a hundred pictures."""


def chat_words(turns: Iterable[tuple[str, str]], n_visual: int, n_pictures: int = 1) -> tuple[list[str], list[bool]]:
    """The words of a chat as the template renders them, and which of them the model must learn to say."""
    words, said = [], []
    picture = [build.VISION_START, *[build.IMAGE] * n_visual, build.VISION_END] if n_visual else []
    for index, (question, answer) in enumerate(turns):
        pictures = [] if index else picture * n_pictures
        asked = [build.START, "user", *pictures, *question.split(), build.END, build.START, "assistant"]
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
        return [collate(self.tokenizer, seen) | self._pixels(pictures), self._reading(rng, TEXTS)]

    def haystacks(self, step: int) -> list[dict[str, Tensor]]:
        """Sixteen pictures as one haystack, two, four, eight or sixteen, and half as much text as beside scenes."""
        rng = np.random.default_rng([self.seed, 3, step])
        n_pictures = int(rng.choice((1, 2, 4, 8, 16)))
        seen, pictures = [], []
        for _ in range(max(1, IMAGES // n_pictures)):
            haystack = worlds.draw_haystack(rng, n_pictures, 6, int(rng.integers(1, 5)), "train")
            pictures += [scene.image() for scene in haystack.scenes]
            pairs = [(thing.colour, thing.digit) for _, thing in haystack.needles]
            turns = [worlds.ask_pairs(rng, pairs) for _ in range(TURNS)]
            seen.append(chat_words(turns, self.n_visual, n_pictures))
        batch = collate(self.tokenizer, seen) | self._pixels(pictures)
        return [batch | {"stretch": self._stretch(rng, batch["input_ids"])}, self._reading(rng, TEXTS // 2)]

    def _stretch(self, rng: np.random.Generator, ids: Int[Tensor, "batch token"]) -> Int[Tensor, "batch token"]:
        """How much further on every token stands than its place says: a random gap before each picture and turn.

        Short prompts then show the model the positions of long ones (randomised positions, Ruoss et al. 2023).
        """
        begins = sum(ids == self.tokenizer.convert_tokens_to_ids(word) for word in (build.VISION_START, build.START))
        gaps = torch.as_tensor(rng.exponential(size=ids.shape)) * begins
        furthest = torch.as_tensor(rng.uniform(0, FURTHEST, (len(ids), 1)))
        return (gaps.cumsum(1) / gaps.sum(1, keepdim=True) * furthest).long()

    def _reading(self, rng: np.random.Generator, n: int) -> dict[str, Tensor]:
        read = []
        for _ in range(n):
            task = str(rng.choice(TEXT_TASKS, p=TEXT_SHARES))
            if task == "recall":
                # As behind a picture: one list, many questions.
                pairs = worlds.draw_pairs(rng)
                turns = [worlds.ask_pairs(rng, pairs) for _ in range(TURNS)]
                turns[0] = (f"{worlds.say_pairs(pairs)} . {turns[0][0]}", turns[0][1])
            else:
                turns = [worlds.ask_text(rng, task) for _ in range(TURNS // 2)]
            read.append(chat_words(turns, 0))
        return collate(self.tokenizer, read)

    @property
    def n_visual(self) -> int:
        return (worlds.SIDE // (build.PATCH * build.MERGE)) ** 2

    def _pixels(self, pictures: list[Any]) -> dict[str, Tensor]:
        return dict(self.image_processor(pictures, return_tensors="pt"))
