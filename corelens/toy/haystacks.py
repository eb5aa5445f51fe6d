"""Many pictures, and the few things in them that can be asked for."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from corelens.toy import digits
from corelens.toy.scene import COLOURS, DIGITS, Scene, Split, Thing, World


@dataclass(frozen=True)
class Needle:
    """A thing whose key and value stand nowhere else in its haystack."""

    picture: int
    """Number of the picture that shows it."""
    world: World
    thing: Thing


@dataclass(frozen=True)
class Haystack:
    """Pictures, and what can be asked for."""

    scenes: tuple[Scene, ...]
    needles: tuple[Needle, ...]
    """Drawn to be asked for."""
    others: tuple[Needle, ...] = ()
    """What happens to stand nowhere else, as all does in the only page among charts."""


def draw_haystack(rng: np.random.Generator, n_pictures: int, n_things: int, n_needles: int, split: Split) -> Haystack:
    """Scenes of a few digits each, among them the needles; all other digits share what is left of the colours.

    Args:
        rng: Decides everything about the pictures.
        n_pictures: How many, at least 1.
        n_things: Most digits of a picture, 1 to 6; the fewest are two less.
        n_needles: How many things can be asked for, 1 to 4.
        split: Which handwritten digits and photograph regions may appear.
    """
    values, colours = ([str(word) for word in rng.permutation(words)] for words in (DIGITS, tuple(COLOURS)))
    needles = list(zip(colours[:n_needles], values[:n_needles], strict=True))
    picture_of = rng.integers(n_pictures, size=n_needles)
    scenes, found = [], []
    for picture in range(n_pictures):
        own = [needle for needle, where in zip(needles, picture_of, strict=True) if where == picture]
        common = zip(rng.permutation(colours[n_needles:]), rng.permutation(values[n_needles:]), strict=False)
        n = max(len(own), int(rng.integers(max(1, n_things - 2), n_things + 1)))
        pairs = [*own, *((str(colour), str(value)) for colour, value in common)][:n]
        # Needles come first, so that in a crowded picture they have a place; boxes are in no order anyway.
        scene = digits.draw(rng, pairs, split)
        scenes.append(scene)
        found += [Needle(picture, digits.WORLD, thing) for thing in scene.things[: len(own)]]
    return Haystack(tuple(scenes), tuple(found))


def draw_mixture(
    rng: np.random.Generator,
    worlds: tuple[World, ...],
    n_pictures: int,
    n_needles: int,
    split: Split,
    most: int | None = None,
) -> Haystack:
    """Pictures of several worlds. In a single picture everything can be asked for, in more of them the needles.

    Args:
        rng: Decides everything about the pictures.
        worlds: Each picture is of one of them, at random.
        n_pictures: How many, at least 1.
        n_needles: How many things of several pictures can be asked for, fewer where the words of a world run out.
        split: Which fonts, layouts, handwritten digits and photograph regions may appear.
        most: Most things of a picture; without it, as many as is usual in its world.
    """
    chosen = [worlds[rng.integers(len(worlds))] for _ in range(n_pictures)]
    wanted: dict[int, tuple[str, str]] = {}

    def left(world: World) -> tuple[list[str], list[str]]:
        """The keys and the values that no needle of this world has yet."""
        taken = [pair for picture, pair in wanted.items() if chosen[picture] is world]
        keys = [key for key in world.keys if all(key != pair[0] for pair in taken)]
        return keys, [value for value in world.values if all(value != pair[1] for pair in taken)]

    for picture in rng.permutation(n_pictures)[:n_needles].tolist():
        keys, values = left(chosen[picture])
        if min(len(keys), len(values)) > 2:  # Other pictures need some, too.
            wanted[picture] = (str(rng.choice(keys)), str(rng.choice(values)))
    scenes = []
    for picture, world in enumerate(chosen):
        own = [wanted[picture]] if picture in wanted else []
        named = own[0][0] if own else None
        keys, values = left(world)
        others = [key for key in world.choose(rng, (*keys, *(key for key, _ in own)), named) if key != named]
        rest = zip(others, (str(value) for value in rng.permutation(values)), strict=False)
        # Needles come first, so that in a crowded picture they have a place; things are in no order anyway.
        scenes.append(world.draw(rng, [*own, *rest][:most], split))
    every = [Needle(picture, chosen[picture], thing) for picture, scene in enumerate(scenes) for thing in scene.things]
    keys, values = (Counter((one.world, getattr(one.thing, part)) for one in every) for part in ("key", "value"))
    unique = [one for one in every if keys[one.world, one.thing.key] == values[one.world, one.thing.value] == 1]
    needles = [one for one in unique if n_pictures == 1 or (one.thing.key, one.thing.value) == wanted.get(one.picture)]
    return Haystack(tuple(scenes), tuple(needles), tuple(one for one in unique if one not in needles))
