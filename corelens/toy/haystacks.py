"""Many pictures, with questions about a few things in them."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from corelens.toy import digits
from corelens.toy.scene import COLOURS, DIGITS, Scene, Split, Thing, World


@dataclass(frozen=True)
class Needle:
    """A thing whose key and value occur once in its haystack."""

    picture: int
    """Number of its picture."""
    world: World
    thing: Thing


@dataclass(frozen=True)
class Haystack:
    """Pictures and the things that questions can be about."""

    scenes: tuple[Scene, ...]
    needles: tuple[Needle, ...]
    """Drawn as subjects of questions."""
    others: tuple[Needle, ...] = ()
    """Further things that happen to be unique, such as those of the only page among charts."""


def draw_haystack(rng: np.random.Generator, n_pictures: int, n_things: int, n_needles: int, split: Split) -> Haystack:
    """Draw scenes of a few digits each, among them the needles; all other digits share the remaining colours.

    Args:
        rng: Source of all random draws.
        n_pictures: Number of pictures, at least 1.
        n_things: Maximum number of digits in a picture, 1 to 6; the minimum is two less.
        n_needles: Number of needles, 1 to 4.
        split: Split of the handwritten digits and photograph regions.
    """
    values, colours = ([str(word) for word in rng.permutation(words)] for words in (DIGITS, tuple(COLOURS)))
    needles = list(zip(colours[:n_needles], values[:n_needles], strict=True))
    picture_of = rng.integers(n_pictures, size=n_needles)
    scenes, placed_needles = [], []
    for picture in range(n_pictures):
        pairs_here = [pair for pair, number in zip(needles, picture_of, strict=True) if number == picture]
        fillers = zip(rng.permutation(colours[n_needles:]), rng.permutation(values[n_needles:]), strict=False)
        n = max(len(pairs_here), int(rng.integers(max(1, n_things - 2), n_things + 1)))
        pairs = [*pairs_here, *((str(colour), str(value)) for colour, value in fillers)][:n]
        # Needles come first, so that they have a place in a full picture; boxes are in random order.
        scene = digits.draw(rng, pairs, split)
        scenes.append(scene)
        placed_needles += [Needle(picture, digits.WORLD, thing) for thing in scene.things[: len(pairs_here)]]
    return Haystack(tuple(scenes), tuple(placed_needles))


def draw_mixture(
    rng: np.random.Generator,
    worlds: tuple[World, ...],
    n_pictures: int,
    n_needles: int,
    split: Split,
    max_things: int | None = None,
) -> Haystack:
    """Draw pictures of several worlds. In a single picture every thing is a needle; among more, `n_needles` are.

    Args:
        rng: Source of all random draws.
        worlds: Worlds from which each picture is drawn at random.
        n_pictures: Number of pictures, at least 1.
        n_needles: Number of needles in several pictures; fewer where the words of a world run out.
        split: Split of the fonts, layouts, handwritten digits and photograph regions.
        max_things: Maximum number of things in a picture; None for the usual number of its world.
    """
    world_of = [worlds[rng.integers(len(worlds))] for _ in range(n_pictures)]
    needle_pairs: dict[int, tuple[str, str]] = {}

    def unused_words(world: World) -> tuple[list[str], list[str]]:
        """Keys and values that no needle of this world has yet."""
        taken = [pair for picture, pair in needle_pairs.items() if world_of[picture] is world]
        keys = [key for key in world.keys if all(key != pair[0] for pair in taken)]
        return keys, [value for value in world.values if all(value != pair[1] for pair in taken)]

    for picture in rng.permutation(n_pictures)[:n_needles].tolist():
        keys, values = unused_words(world_of[picture])
        if min(len(keys), len(values)) > 2:  # Other pictures need some, too.
            needle_pairs[picture] = (str(rng.choice(keys)), str(rng.choice(values)))
    scenes = []
    for picture, world in enumerate(world_of):
        pairs_here = [needle_pairs[picture]] if picture in needle_pairs else []
        needle_key = pairs_here[0][0] if pairs_here else None
        keys, values = unused_words(world)
        choices = world.choose(rng, (*keys, *(key for key, _ in pairs_here)), needle_key)
        other_keys = [key for key in choices if key != needle_key]
        fillers = zip(other_keys, (str(value) for value in rng.permutation(values)), strict=False)
        # Needles come first, so that they have a place in a full picture; things are in random order.
        scenes.append(world.draw(rng, [*pairs_here, *fillers][:max_things], split))
    all_things = [
        Needle(picture, world_of[picture], thing) for picture, scene in enumerate(scenes) for thing in scene.things
    ]
    keys, values = (
        Counter((item.world, getattr(item.thing, part)) for item in all_things) for part in ("key", "value")
    )
    unique = [
        item for item in all_things if keys[item.world, item.thing.key] == values[item.world, item.thing.value] == 1
    ]
    needles = [
        item
        for item in unique
        if n_pictures == 1 or (item.thing.key, item.thing.value) == needle_pairs.get(item.picture)
    ]
    return Haystack(tuple(scenes), tuple(needles), tuple(item for item in unique if item not in needles))
