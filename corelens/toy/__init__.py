"""Data of the shipped models: four kinds of small pictures, haystacks of them, and text tasks.

Each function returns samples, as in `cl.toy.scenes(100, seed=0)`.

| world | a picture shows | questions ask for |
|---|---|---|
| `digits` | tinted handwritten digits on noise or photographs | the digit of a colour, the colour of a digit |
| `shapes` | coloured shapes pasted into photographs | the shape of a colour, the colour of a shape |
| `pages` | printed fields and a small table | a value, or the field that has it |
| `bars` | a bar chart of some days | the height of a day, the day of a height |

Sample i depends on the seed and i alone, so a longer run begins with the shorter one.
`split="train"` and `split="test"` share no digit image, no photograph region, no font and no layout.
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from corelens.data import Evidence, Sample
from corelens.data.synthetic.drawing import check_draw
from corelens.errors import check_choice
from corelens.toy import bars, digits, pages, shapes
from corelens.toy.haystacks import Haystack, Needle, draw_haystack, draw_mixture
from corelens.toy.scene import Split, Thing
from corelens.toy.texts import TEXT_TASKS as TEXT_TASKS
from corelens.toy.texts import draw_text_question

WORLDS = {"digits": digits.WORLD, "shapes": shapes.WORLD, "pages": pages.WORLD, "bars": bars.WORLD}
"""Kinds of pictures, by name."""


def scenes(n: int, seed: int, n_things: int = 6, split: Split = "test") -> Iterator[Sample]:
    """Draw `n` scenes of digits with a question about one digit each; its box is the evidence.

    Args:
        n: Number of samples.
        seed: Seed of all random draws; sample i depends on it and i alone.
        n_things: Number of digits in a scene, 1 to 8.
        split: Split of the handwritten digits and photograph regions.
    """

    def draw(rng: np.random.Generator) -> Haystack:
        scene = digits.draw_scene(rng, n_things, split)
        return Haystack((scene,), tuple(Needle(0, digits.WORLD, thing) for thing in scene.things))

    return _haystack_samples(f"scene-{split}", n, seed, draw)


def scene_pairs(n: int, seed: int, n_things: int = 6, split: Split = "test") -> Iterator[tuple[Sample, Sample]]:
    """Draw `n` scenes of digits with two questions of one kind each, about two digits: for `steering_curve`.

    Args:
        n: Number of pairs.
        seed: Seed of all random draws; pair i depends on it and i alone.
        n_things: Number of digits in a scene, 2 to 8.
        split: Split of the handwritten digits and photograph regions.
    """
    if n_things < 2:
        raise ValueError(f"n_things={n_things} is less than two, and the questions of a pair are about two digits.")

    def pair(pair_id: str, rng: np.random.Generator) -> tuple[Sample, Sample]:
        scene = digits.draw_scene(rng, n_things, split)
        first, second = rng.choice(len(scene.things), 2, replace=False).tolist()
        asks_value = rng.random() < 0.5

        def about(name: str, thing: Thing) -> Sample:
            question, answer = digits.WORLD.question(asks_value, thing.key, thing.value)
            evidence = (Evidence(thing.box),)
            sample_id = f"{pair_id}-{name}"
            return Sample(
                sample_id, question, answer, (scene.image(),), evidence, scoring="exact", about={"group": pair_id}
            )

        return about("own", scene.things[first]), about("target", scene.things[second])

    check_draw(n, seed)
    return (pair(f"pair-{split}-{seed}-{index}", np.random.default_rng([seed, index])) for index in range(n))


def pictures(world: str, n: int, seed: int, split: Split = "test") -> Iterator[Sample]:
    """Draw `n` pictures of one world with a question about one thing each; its box is the evidence.

    Args:
        world: A name of `WORLDS`.
        n: Number of samples.
        seed: Seed of all random draws; sample i depends on it and i alone.
        split: Split of the fonts, layouts, handwritten digits and photograph regions.
    """
    check_choice("world", world, WORLDS)
    return _haystack_samples(f"{world}-{split}", n, seed, lambda rng: draw_mixture(rng, (WORLDS[world],), 1, 1, split))


def mixtures(n: int, seed: int, n_pictures: int = 32, split: Split = "test") -> Iterator[Sample]:
    """Draw `n` prompts of many pictures of all `WORLDS`, 64 visual tokens each, with a question about one thing.

    Its key and its value occur in no other picture of its world. Its box is the evidence.

    Args:
        n: Number of samples.
        seed: Seed of all random draws; sample i depends on it and i alone.
        n_pictures: Number of pictures in a prompt.
        split: Split of the fonts, layouts, handwritten digits and photograph regions.
    """
    worlds = tuple(WORLDS.values())
    return _haystack_samples(f"mixture-{split}", n, seed, lambda rng: draw_mixture(rng, worlds, n_pictures, 1, split))


def haystacks(n: int, seed: int, n_pictures: int = 32, n_things: int = 3, split: Split = "test") -> Iterator[Sample]:
    """Draw `n` prompts of many scenes of digits, 64 visual tokens each, with a question about one digit.

    Its colour and its value occur nowhere else in the prompt. Its box is the evidence.

    Args:
        n: Number of samples.
        seed: Seed of all random draws; sample i depends on it and i alone.
        n_pictures: Number of pictures in a prompt.
        n_things: Maximum number of digits in a picture; the minimum is two less, and at least one.
        split: Split of the handwritten digits and photograph regions.
    """
    return _haystack_samples(
        f"haystack-{split}", n, seed, lambda rng: draw_haystack(rng, n_pictures, n_things, 1, split)
    )


def _haystack_samples(
    name: str, n: int, seed: int, draw: Callable[[np.random.Generator], Haystack]
) -> Iterator[Sample]:
    """`n` haystacks, each with a question about one of its needles."""

    def sample(sample_id: str, rng: np.random.Generator) -> Sample:
        haystack = draw(rng)
        needle = haystack.needles[rng.integers(len(haystack.needles))]
        question, answer = needle.world.ask(rng, needle.thing.key, needle.thing.value)
        images = tuple(scene.image() for scene in haystack.scenes)
        evidence = (Evidence(needle.thing.box, media=needle.picture),)
        about = {"task": needle.world.task(answer)}
        return Sample(sample_id, question, answer, images, evidence, scoring="exact", about=about)

    return _seeded_samples(name, n, seed, sample)


def texts(n: int, seed: int, task: str) -> Iterator[Sample]:
    """Draw `n` questions of one text task.

    Args:
        n: Number of samples.
        seed: Seed of all random draws; sample i depends on it and i alone.
        task: A name of `TEXT_TASKS`: copy, recall or sum.
    """
    return _seeded_samples(
        task, n, seed, lambda sample_id, rng: Sample(sample_id, *draw_text_question(rng, task), scoring="exact")
    )


def _seeded_samples(
    name: str, n: int, seed: int, sample: Callable[[str, np.random.Generator], Sample]
) -> Iterator[Sample]:
    """`n` samples, each from its id and its own generator; arguments are checked at once, not on iteration."""
    check_draw(n, seed)
    return (sample(f"{name}-{seed}-{index}", np.random.default_rng([seed, index])) for index in range(n))


SAMPLES: dict[str, Callable[[int, int], Iterator[Sample]]] = {
    "scenes": scenes,
    "toy-shapes": partial(pictures, "shapes"),
    "toy-pages": partial(pictures, "pages"),
    "toy-bars": partial(pictures, "bars"),
    "scene-haystacks": haystacks,
    "toy-mixtures": mixtures,
}
"""Functions from a number of samples and a seed to samples, by their names on the command line."""
