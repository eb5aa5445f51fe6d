"""What the toy is trained on: batches of pictures and chats. A generator of random numbers decides all about each."""

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
"""What a mark in a picture can be called."""
READ = {"name": NAMES, "colour": tuple(COLOURS), "partner": NAMES, "other partner": NAMES}
"""What the vision tower is taught to say of every token that shows a mark, and the words for it."""
TURNS = 8
IMAGES, TEXTS = 16, 32
TEXT_SHARES = (0.2, 0.6, 0.2)
"""How often each of `TEXT_TASKS` is asked: recall takes longest to learn."""
CROWD = 14
"""Digits of a crowded scene."""
MOST = 7
"""Things that a picture of any world shows at most."""
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


def prepare_batch(tokenizer: Any, chats: list[tuple[list[str], list[bool]]]) -> dict[str, Tensor]:
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


Shown = tuple[dict[str, Tensor], dict[str, Int[Tensor, " token"]]]
"""Pixels, and for each of `READ` what every visual token shows."""
Chats = tuple[dict[str, Tensor], dict[str, Tensor]]
"""Chats about pictures, and chats without."""


class Batches:
    """Makes batches of several kinds."""

    def __init__(self) -> None:
        self.tokenizer = build.tokenizer()
        self.image_processor = build.image_processor()

    def crowded(self, rng: np.random.Generator, n_things: int) -> Shown:
        """Scenes of many digits, and what each visual token shows."""
        return self._shown([digits.draw_scene(rng, n_things, "train", distinct=False) for _ in range(2 * IMAGES)])

    def various(self, rng: np.random.Generator, n_things: int) -> Shown:
        """Pictures of all worlds, and what each token shows.

        Most are pages and scenes, most of these crowded: print and handwriting take longest to learn.
        """
        worlds = (*WORLDS.values(), WORLDS["pages"], WORLDS["pages"])
        crowded = [digits.draw_scene(rng, CROWD, "train", distinct=False) for _ in range(IMAGES // 2)]
        return self._shown([*crowded, *draw_mixture(rng, worlds, 3 * IMAGES // 2, 0, "train", n_things).scenes])

    def _shown(self, drawn: list[Scene]) -> Shown:
        """Pixels, and for each of `READ` its number at every visual token, -100 where there is nothing to read."""
        cell = build.PATCH * build.MERGE
        side = SIDE // cell
        read = {what: torch.full((len(drawn), side, side), -100) for what in READ}
        most = torch.zeros(len(drawn), side, side)
        for index, scene in enumerate(drawn):
            for mark in scene.marks:
                box = mark.box
                # A third of the token, or of what is smaller than a token.
                enough = min(cell * cell, (box.right - box.left) * (box.bottom - box.top)) / 3
                said = dict(zip(READ, (mark.name, mark.colour, *mark.partners), strict=False))
                for row in range(max(0, int(box.top) // cell), min(side, int(box.bottom) // cell + 1)):
                    for column in range(max(0, int(box.left) // cell), min(side, int(box.right) // cell + 1)):
                        width = min(box.right, (column + 1) * cell) - max(box.left, column * cell)
                        height = min(box.bottom, (row + 1) * cell) - max(box.top, row * cell)
                        covered = max(0, width) * max(0, height)
                        if covered >= enough and covered > most[index, row, column]:
                            most[index, row, column] = covered
                            for what, words in READ.items():
                                word = said.get(what)
                                read[what][index, row, column] = -100 if word is None else words.index(word)
        return self._pixels([scene.image() for scene in drawn]), {what: of.flatten() for what, of in read.items()}

    def chats(self, rng: np.random.Generator, n_things: int) -> Chats:
        """Scenes and text-only chats, eight questions each."""
        seen, pictures = [], []
        for _ in range(IMAGES):
            scene = digits.draw_scene(rng, int(rng.integers(max(1, n_things - 1), n_things + 1)), "train")
            pictures.append(scene.image())
            pairs = [(thing.key, thing.value) for thing in scene.things]
            seen.append(chat_words([draw_pair_question(rng, pairs) for _ in range(TURNS)], self.n_visual))
        return prepare_batch(self.tokenizer, seen) | self._pixels(pictures), self._reading(rng, TEXTS)

    def haystacks(self, rng: np.random.Generator, n_things: int) -> Chats:
        """Sixteen scenes as one haystack, two, four, eight or sixteen, and half as much text as beside scenes."""
        n_pictures = int(rng.choice((1, 2, 4, 8, 16)))
        seen, pictures = [], []
        for _ in range(max(1, IMAGES // n_pictures)):
            haystack = draw_haystack(rng, n_pictures, n_things, int(rng.integers(1, 5)), "train")
            pictures += [scene.image() for scene in haystack.scenes]
            pairs = [(needle.thing.key, needle.thing.value) for needle in haystack.needles]
            turns = [draw_pair_question(rng, pairs) for _ in range(TURNS)]
            seen.append(chat_words(turns, self.n_visual, n_pictures))
        batch = prepare_batch(self.tokenizer, seen) | self._pixels(pictures)
        return batch | {"stretch": self._stretch(rng, batch["input_ids"])}, self._reading(rng, TEXTS // 2)

    def mixtures(self, rng: np.random.Generator, n_things: int) -> Chats:
        """Sixteen pictures of all worlds, and half as much text as beside scenes.

        Each by itself while they show fewer than `MOST` things; then two times of three together, two to sixteen.
        """
        together = n_things == MOST and rng.random() < 2 / 3
        n_pictures = int(rng.choice((2, 4, 8, 16))) if together else 1
        worlds = (*WORLDS.values(), WORLDS["pages"], WORLDS["bars"])
        seen, pictures = [], []
        for _ in range(max(1, IMAGES // n_pictures)):
            drawn = draw_mixture(rng, worlds, n_pictures, int(rng.integers(1, 13)), "train", n_things)
            pictures += [scene.image() for scene in drawn.scenes]
            # Nothing is asked for twice: an answer that stands further up in the chat teaches nothing about pictures.
            unique = drawn.needles + drawn.others
            asked = [unique[number] for number in rng.permutation(len(unique))]
            turns = [needle.world.ask(rng, needle.thing.key, needle.thing.value) for needle in asked]
            seen.append(chat_words(turns, self.n_visual, n_pictures))
        batch = prepare_batch(self.tokenizer, seen) | self._pixels(pictures)
        if n_pictures > 1:
            batch["stretch"] = self._stretch(rng, batch["input_ids"])
        return batch, self._reading(rng, TEXTS // 2)

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
                pairs = draw_pairs(rng)
                turns = [draw_pair_question(rng, pairs) for _ in range(TURNS)]
                turns[0] = (f"{pairs_text(pairs)} . {turns[0][0]}", turns[0][1])
            else:
                turns = [draw_text_question(rng, task) for _ in range(TURNS // 2)]
            read.append(chat_words(turns, 0))
        return prepare_batch(self.tokenizer, read)

    @property
    def n_visual(self) -> int:
        return (SIDE // (build.PATCH * build.MERGE)) ** 2

    def _pixels(self, pictures: list[Any]) -> dict[str, Tensor]:
        return dict(self.image_processor(pictures, return_tensors="pt"))
