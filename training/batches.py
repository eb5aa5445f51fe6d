"""Batches of pictures and chats for training, drawn from a random generator each."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from corelens.data.synthetic.photographs import SHAPES
from corelens.toy import WORLDS, digits
from corelens.toy.bars import DAYS
from corelens.toy.haystacks import draw_haystack, draw_mixture
from corelens.toy.pages import COLUMNS, FIELDS, ITEMS
from corelens.toy.scene import COLOURS, DIGITS, SIDE, Scene
from corelens.toy.texts import TEXT_TASKS, draw_pair_question, draw_pairs, draw_text_question, pairs_text
from training import build

NAMES = (*DIGITS, *SHAPES, *FIELDS, *ITEMS, *COLUMNS, *DAYS)
"""Names of the marks in pictures."""
PROBE_WORDS = {"name": NAMES, "colour": tuple(COLOURS), "partner": NAMES, "other partner": NAMES}
"""Targets of the vision tower at every token with a mark, and the words of each."""
TURNS = 8
IMAGES, TEXTS = 16, 32
TEXT_SHARES = (0.2, 0.6, 0.2)
"""Shares of `TEXT_TASKS`: recall takes longest to learn."""
N_CROWDED = 14
"""Digits in a crowded scene."""
MAX_THINGS = 7
"""Maximum number of things in a picture of any world."""
MAX_STRETCH = 800
"""Maximum shift of the last token of a stretched haystack: positions as far as those of about a hundred pictures."""


def chat_words(turns: Iterable[tuple[str, str]], n_visual: int, n_pictures: int = 1) -> tuple[list[str], list[bool]]:
    """Words of a chat as the template renders them, and the mask of those that are training targets."""
    words, is_target = [], []
    picture = [build.VISION_START, *[build.IMAGE] * n_visual, build.VISION_END] if n_visual else []
    for index, (question, answer) in enumerate(turns):
        pictures = [] if index else picture * n_pictures
        prompt = [build.START, "user", *pictures, *question.split(), build.END, build.START, "assistant"]
        reply = [*answer.split(), build.END]
        words += prompt + reply
        is_target += [False] * len(prompt) + [True] * len(reply)
    return words, is_target


def prepare_batch(tokenizer: Any, chats: list[tuple[list[str], list[bool]]]) -> dict[str, Tensor]:
    """Right-padded tensors for the model's forward pass, with labels at the target words."""
    length = max(len(words) for words, _ in chats)
    ids = torch.full((len(chats), length), tokenizer.pad_token_id)
    labels = torch.full((len(chats), length), -100)
    attention_mask = torch.zeros(len(chats), length, dtype=torch.long)
    for row, (words, is_target) in enumerate(chats):
        row_ids = torch.tensor(tokenizer.convert_tokens_to_ids(words))
        ids[row, : len(words)] = row_ids
        labels[row, : len(words)] = torch.where(torch.tensor(is_target), row_ids, -100)
        attention_mask[row, : len(words)] = 1
    image = tokenizer.convert_tokens_to_ids(build.IMAGE)
    return {
        "input_ids": ids,
        "attention_mask": attention_mask,
        "mm_token_type_ids": (ids == image).long(),
        "labels": labels,
    }


LabelledPictures = tuple[dict[str, Tensor], dict[str, Int[Tensor, " token"]]]
"""Pixels, and for each of `PROBE_WORDS` the label of every visual token."""
Chats = tuple[dict[str, Tensor], dict[str, Tensor]]
"""Chats about pictures, and chats without."""


class Batches:
    """Factory of training batches of several kinds."""

    def __init__(self) -> None:
        self.tokenizer = build.tokenizer()
        self.image_processor = build.image_processor()

    def crowded(self, rng: np.random.Generator, n_things: int) -> LabelledPictures:
        """Scenes of many digits with a label for each visual token."""
        return self._label([digits.draw_scene(rng, n_things, "train", distinct=False) for _ in range(2 * IMAGES)])

    def various(self, rng: np.random.Generator, n_things: int) -> LabelledPictures:
        """Pictures of all worlds with a label for each visual token.

        Most are pages and scenes, most of these crowded: print and handwriting take longest to learn.
        """
        worlds = (*WORLDS.values(), WORLDS["pages"], WORLDS["pages"])
        crowded = [digits.draw_scene(rng, N_CROWDED, "train", distinct=False) for _ in range(IMAGES // 2)]
        return self._label([*crowded, *draw_mixture(rng, worlds, 3 * IMAGES // 2, 0, "train", n_things).scenes])

    def _label(self, scenes: list[Scene]) -> LabelledPictures:
        """Pixels, and for each of `PROBE_WORDS` the index of its word at every visual token, -100 without a label."""
        cell = build.PATCH * build.MERGE
        side = SIDE // cell
        labels = {target: torch.full((len(scenes), side, side), -100) for target in PROBE_WORDS}
        largest_overlap = torch.zeros(len(scenes), side, side)
        for index, scene in enumerate(scenes):
            for mark in scene.marks:
                box = mark.box
                # A third of the token, or of the mark if that is smaller.
                threshold = min(cell * cell, (box.right - box.left) * (box.bottom - box.top)) / 3
                words_of_mark = dict(zip(PROBE_WORDS, (mark.name, mark.colour, *mark.partners), strict=False))
                for row in range(max(0, int(box.top) // cell), min(side, int(box.bottom) // cell + 1)):
                    for column in range(max(0, int(box.left) // cell), min(side, int(box.right) // cell + 1)):
                        width = min(box.right, (column + 1) * cell) - max(box.left, column * cell)
                        height = min(box.bottom, (row + 1) * cell) - max(box.top, row * cell)
                        overlap = max(0, width) * max(0, height)
                        if overlap >= threshold and overlap > largest_overlap[index, row, column]:
                            largest_overlap[index, row, column] = overlap
                            for target, words in PROBE_WORDS.items():
                                word = words_of_mark.get(target)
                                labels[target][index, row, column] = -100 if word is None else words.index(word)
        pixels = self._pixels([scene.image() for scene in scenes])
        return pixels, {target: label.flatten() for target, label in labels.items()}

    def chats(self, rng: np.random.Generator, n_things: int) -> Chats:
        """Chats about scenes and text-only chats, eight questions each."""
        chats, pictures = [], []
        for _ in range(IMAGES):
            scene = digits.draw_scene(rng, int(rng.integers(max(1, n_things - 1), n_things + 1)), "train")
            pictures.append(scene.image())
            pairs = [(thing.key, thing.value) for thing in scene.things]
            chats.append(chat_words([draw_pair_question(rng, pairs) for _ in range(TURNS)], self.n_visual))
        return prepare_batch(self.tokenizer, chats) | self._pixels(pictures), self._text_chats(rng, TEXTS)

    def haystacks(self, rng: np.random.Generator, n_things: int) -> Chats:
        """Chats about sixteen scenes in one to sixteen haystacks, and half as many text-only chats as in `chats`."""
        n_pictures = int(rng.choice((1, 2, 4, 8, 16)))
        chats, pictures = [], []
        for _ in range(max(1, IMAGES // n_pictures)):
            haystack = draw_haystack(rng, n_pictures, n_things, int(rng.integers(1, 5)), "train")
            pictures += [scene.image() for scene in haystack.scenes]
            pairs = [(needle.thing.key, needle.thing.value) for needle in haystack.needles]
            turns = [draw_pair_question(rng, pairs) for _ in range(TURNS)]
            chats.append(chat_words(turns, self.n_visual, n_pictures))
        batch = prepare_batch(self.tokenizer, chats) | self._pixels(pictures)
        return batch | {"stretch": self._stretch(rng, batch["input_ids"])}, self._text_chats(rng, TEXTS // 2)

    def mixtures(self, rng: np.random.Generator, n_things: int) -> Chats:
        """Chats about sixteen pictures of all worlds, and half as many text-only chats as in `chats`.

        Each picture has its own chat while it shows fewer than `MAX_THINGS` things; then, with a probability of 2/3,
        two to sixteen share one.
        """
        share_chat = n_things == MAX_THINGS and rng.random() < 2 / 3
        n_pictures = int(rng.choice((2, 4, 8, 16))) if share_chat else 1
        worlds = (*WORLDS.values(), WORLDS["pages"], WORLDS["bars"])
        chats, pictures = [], []
        for _ in range(max(1, IMAGES // n_pictures)):
            mixture = draw_mixture(rng, worlds, n_pictures, int(rng.integers(1, 13)), "train", n_things)
            pictures += [scene.image() for scene in mixture.scenes]
            # No question twice: an answer that occurred earlier in the chat teaches nothing about pictures.
            unique = mixture.needles + mixture.others
            needles = [unique[number] for number in rng.permutation(len(unique))]
            turns = [needle.world.ask(rng, needle.thing.key, needle.thing.value) for needle in needles]
            chats.append(chat_words(turns, self.n_visual, n_pictures))
        batch = prepare_batch(self.tokenizer, chats) | self._pixels(pictures)
        if n_pictures > 1:
            batch["stretch"] = self._stretch(rng, batch["input_ids"])
        return batch, self._text_chats(rng, TEXTS // 2)

    def _stretch(self, rng: np.random.Generator, ids: Int[Tensor, "batch token"]) -> Int[Tensor, "batch token"]:
        """Shifts of the token positions: a random gap before each picture and turn.

        Short prompts then show the model the positions of long ones (randomised positions, Ruoss et al. 2023).
        """
        is_start = sum(ids == self.tokenizer.convert_tokens_to_ids(word) for word in (build.VISION_START, build.START))
        gaps = torch.as_tensor(rng.exponential(size=ids.shape)) * is_start
        stretch = torch.as_tensor(rng.uniform(0, MAX_STRETCH, (len(ids), 1)))
        return (gaps.cumsum(1) / gaps.sum(1, keepdim=True) * stretch).long()

    def _text_chats(self, rng: np.random.Generator, n: int) -> dict[str, Tensor]:
        """`n` chats without a picture."""
        chats = []
        for _ in range(n):
            task = str(rng.choice(TEXT_TASKS, p=TEXT_SHARES))
            if task == "recall":
                # One list and many questions, as with a picture.
                pairs = draw_pairs(rng)
                turns = [draw_pair_question(rng, pairs) for _ in range(TURNS)]
                turns[0] = (f"{pairs_text(pairs)} . {turns[0][0]}", turns[0][1])
            else:
                turns = [draw_text_question(rng, task) for _ in range(TURNS // 2)]
            chats.append(chat_words(turns, 0))
        return prepare_batch(self.tokenizer, chats)

    @property
    def n_visual(self) -> int:
        """Visual tokens per picture."""
        return (SIDE // (build.PATCH * build.MERGE)) ** 2

    def _pixels(self, pictures: list[Any]) -> dict[str, Tensor]:
        return dict(self.image_processor(pictures, return_tensors="pt"))
