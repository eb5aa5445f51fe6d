"""What the shipped models are trained on and asked about: four kinds of small pictures, haystacks of them, and text.

| world | a picture shows | asked for |
|---|---|---|
| `digits` | tinted handwritten digits on noise or photographs | the digit of a colour, the colour of a digit |
| `shapes` | coloured shapes pasted into photographs | the shape of a colour, the colour of a shape |
| `pages` | printed fields and a small table | a value, or the field that has it |
| `bars` | a bar chart of some days | the height of a day, the day of a height |

Whatever a sample draws depends on its seed and number alone, and `split="train"` and `split="test"` share no digit
image, no photograph region, no font and no layout.
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from corelens.data import Evidence, Sample
from corelens.data.synthetic.drawing import check_draw
from corelens.toy import bars, digits, pages, shapes
from corelens.toy.haystacks import Haystack, Needle, draw_haystack, draw_mixture
from corelens.toy.scene import Split
from corelens.toy.texts import TEXT_TASKS as TEXT_TASKS
from corelens.toy.texts import ask_text

WORLDS = {"digits": digits.WORLD, "shapes": shapes.WORLD, "pages": pages.WORLD, "bars": bars.WORLD}
"""The kinds of pictures."""


def scenes(n: int, seed: int, n_things: int = 6, split: Split = "test") -> Iterator[Sample]:
    """`n` scenes of digits with one question each; the box of the asked digit is the evidence.

    Sample i depends on `seed` and i alone, so a longer run begins with the shorter one.
    """

    def draw(rng: np.random.Generator) -> Haystack:
        scene = digits.draw_scene(rng, n_things, split)
        return Haystack((scene,), tuple(Needle(0, digits.WORLD, thing) for thing in scene.things))

    return _asked(f"scene-{split}", n, seed, draw)


def pictures(world: str, n: int, seed: int, split: Split = "test") -> Iterator[Sample]:
    """`n` pictures of one of `WORLDS` with one question each; the evidence is the box of what it asks for.

    Sample i depends on `seed` and i alone.
    """
    if world not in WORLDS:
        raise ValueError(f"there is no world {world!r}; there are {', '.join(WORLDS)}.")
    return _asked(f"{world}-{split}", n, seed, lambda rng: draw_mixture(rng, (WORLDS[world],), 1, 1, split))


def mixtures(n: int, seed: int, n_pictures: int = 32, split: Split = "test") -> Iterator[Sample]:
    """`n` prompts of many pictures of all `WORLDS`, 64 visual tokens each, and a question about one thing in one.

    The key and the value of the asked thing stand in no other picture of its world. Sample i depends on `seed` and i
    alone.
    """
    worlds = tuple(WORLDS.values())
    return _asked(f"mixture-{split}", n, seed, lambda rng: draw_mixture(rng, worlds, n_pictures, 1, split))


def haystacks(n: int, seed: int, n_pictures: int = 32, n_things: int = 3, split: Split = "test") -> Iterator[Sample]:
    """`n` prompts of many scenes of digits, 64 visual tokens each, and a question about one digit in one of them.

    Every picture holds one to `n_things` digits. The colour and the digit of the asked one appear nowhere else. Its box
    is the evidence. Sample i depends on `seed` and i alone.
    """
    return _asked(f"haystack-{split}", n, seed, lambda rng: draw_haystack(rng, n_pictures, n_things, 1, split))


def _asked(name: str, n: int, seed: int, draw: Callable[[np.random.Generator], Haystack]) -> Iterator[Sample]:
    """`n` drawn haystacks, each with one question about one of its needles."""

    def sample(number: str, rng: np.random.Generator) -> Sample:
        drawn = draw(rng)
        needle = drawn.needles[rng.integers(len(drawn.needles))]
        question, answer = needle.world.ask(rng, needle.thing.key, needle.thing.value)
        images = tuple(scene.image() for scene in drawn.scenes)
        evidence = (Evidence(needle.thing.box, media=needle.picture),)
        return Sample(number, question, answer, images, evidence)

    return _drawn(name, n, seed, sample)


def texts(n: int, seed: int, task: str) -> Iterator[Sample]:
    """`n` questions of one text task; sample i depends on `seed` and i alone."""
    return _drawn(task, n, seed, lambda number, rng: Sample(number, *ask_text(rng, task)))


def _drawn(name: str, n: int, seed: int, sample: Callable[[str, np.random.Generator], Sample]) -> Iterator[Sample]:
    """`n` samples, each from its id and a generator of its own; refused here, before the first is asked for."""
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
"""What a command line calls them: so many samples, drawn from a seed."""
