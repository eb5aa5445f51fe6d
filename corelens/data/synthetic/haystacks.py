"""A needle among many pictures: a grid of how many there are and how deep it lies."""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from corelens.data.readers.base import Row, Samples
from corelens.data.sample import Evidence, Sample
from corelens.data.synthetic.photographs import COLOURS, SHAPES, boxes_of, draw_things, paste

NEEDLE = "star"


def haystacks(
    n: int,
    seed: int = 0,
    lengths: Sequence[int] = (5, 9, 17, 33),
    depths: Sequence[float | int] = (0.0, 0.25, 0.5, 0.75, 1.0),
) -> Samples:
    """`n` samples for each length and depth: one photograph of many shows a star; what colour is it?

    The others show one other shape each. Sample i has the same needle at every length and depth, and its longer
    haystacks begin with the pictures of the shorter ones.

    Args:
        n: Samples a cell of the grid.
        seed: Decides everything else.
        lengths: How many pictures, the needle's included.
        depths: Where the needle's is: 0 for the first picture, 1 for the last.

    Raises:
        ValueError: If there are too few pictures for the depths, so that two of them are the same picture.
    """
    if n < 1 or seed < 0:
        raise ValueError(f"n={n} and seed={seed}: a world needs at least one sample and a seed of 0 or more.")
    for length in lengths:
        if length < 1 or not all(0 <= depth <= 1 for depth in depths):
            raise ValueError(f"length={length} and depths={tuple(depths)}: it needs length >= 1 and 0 <= depth <= 1.")
        if len({_place(length, depth) for depth in depths}) < len(depths):
            raise ValueError(
                f"of {length} pictures, two of the depths {tuple(depths)} are the same; take fewer depths or more "
                f"pictures."
            )

    def rows() -> Iterator[Row]:
        for length in lengths:
            for depth in depths:
                for index in range(n):
                    name = f"haystacks-{seed}-{index}-{length}-{depth:g}"
                    yield name, partial(_sample, name, seed, index, length, depth)

    return Samples(f"haystacks, seed {seed}", rows)


def _place(length: int, depth: float | int) -> int:
    return round(depth * (length - 1))


def _sample(name: str, seed: int, index: int, length: int, depth: float | int) -> Sample:
    place = _place(length, depth)
    rng = np.random.default_rng([seed, index])
    needle = draw_things(rng, (NEEDLE,))
    others = []
    while len(others) < length - 1:
        kind = str(rng.choice([kind for kind in SHAPES if kind != NEEDLE]))
        others.append(draw_things(rng, (kind,), (str(rng.choice(list(COLOURS))),)))
    scenes = [*others[:place], needle, *others[place:]]
    return Sample(
        name,
        "One of the pictures shows a star. What colour is the star?",
        needle.things[0].colour,
        tuple(partial(paste, scene) for scene in scenes),
        (Evidence(boxes_of(needle)[0], place),),
        scoring="contains",
        about={"length": length, "depth": depth},
    )
