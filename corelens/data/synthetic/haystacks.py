"""A needle among many pictures, in a grid of haystack lengths and needle depths."""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from corelens.data.readers.base import Row, Samples
from corelens.data.sample import Evidence, Sample
from corelens.data.synthetic.drawing import check_draw
from corelens.data.synthetic.photographs import COLOURS, SHAPES, draw_pasted_scene, render_scene, shape_boxes

NEEDLE = "star"


def haystacks(
    n: int,
    seed: int = 0,
    lengths: Sequence[int] = (5, 9, 17, 33),
    depths: Sequence[float | int] = (0.0, 0.25, 0.5, 0.75, 1.0),
) -> Samples:
    """Draw `n` samples for each length and depth; the question is the colour of the star in one of many photographs.

    The other photographs show one other shape each. Sample i has the same needle at every length and depth, and its
    longer haystacks begin with the pictures of the shorter ones.

    Args:
        n: Samples per cell of the grid.
        seed: Seed of all random draws.
        lengths: Numbers of pictures, the needle's included.
        depths: Positions of the needle's picture: 0 for the first picture, 1 for the last.

    Raises:
        ValueError: If there are too few pictures for the depths, so that two of them are the same picture.
    """
    check_draw(n, seed)
    for length in lengths:
        if length < 1 or not all(0 <= depth <= 1 for depth in depths):
            raise ValueError(f"length={length} and depths={tuple(depths)}: they need length >= 1 and 0 <= depth <= 1.")
        if len({_needle_index(length, depth) for depth in depths}) < len(depths):
            raise ValueError(
                f"of {length} pictures, two of the depths {tuple(depths)} are the same; take fewer depths or more "
                f"pictures."
            )
    return Samples(f"haystacks, seed {seed}", partial(_rows, n, seed, tuple(lengths), tuple(depths)))


def _rows(n: int, seed: int, lengths: Sequence[int], depths: Sequence[float | int]) -> Iterator[Row]:
    for length in lengths:
        for depth in depths:
            for index in range(n):
                name = f"haystacks-{seed}-{index}-{length}-{depth:g}"
                yield name, partial(_sample, name, seed, index, length, depth)


def _needle_index(length: int, depth: float | int) -> int:
    return round(depth * (length - 1))


def _sample(name: str, seed: int, index: int, length: int, depth: float | int) -> Sample:
    needle_index = _needle_index(length, depth)
    rng = np.random.default_rng([seed, index])
    needle = draw_pasted_scene(rng, (NEEDLE,))
    others = []
    while len(others) < length - 1:
        shape = str(rng.choice([name for name in SHAPES if name != NEEDLE]))
        others.append(draw_pasted_scene(rng, (shape,), (str(rng.choice(list(COLOURS))),)))
    scenes = [*others[:needle_index], needle, *others[needle_index:]]
    return Sample(
        name,
        "One of the pictures shows a star. What colour is the star?",
        needle.shapes[0].colour,
        tuple(partial(render_scene, scene) for scene in scenes),
        (Evidence(shape_boxes(needle)[0], needle_index),),
        scoring="contains",
        about={"length": length, "depth": depth},
    )
