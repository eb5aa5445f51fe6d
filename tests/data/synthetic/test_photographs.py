"""Photographs: boxes hold their shapes and nothing else."""

import math
from dataclasses import replace

import numpy as np

from corelens.data.synthetic.photographs import SHAPES, draw_pasted_scene, render_scene, shape_boxes
from tests.helpers.pictures import changed


def test_removing_a_thing_changes_its_box_alone():
    scene = draw_pasted_scene(np.random.default_rng(1), ("star", "cross", "circle", "diamond", "square", "triangle"))
    boxes = shape_boxes(scene)
    for number, thing in enumerate(scene.shapes):
        without = replace(scene, shapes=tuple(other for other in scene.shapes if other is not thing))
        assert changed(render_scene(scene), render_scene(without)) == boxes[number]
    for box, other in [(a, b) for a in boxes for b in boxes if a is not b]:
        assert box.right <= other.left or other.right <= box.left or box.bottom <= other.top or other.bottom <= box.top


def test_things_on_a_photograph_have_shapes_and_colours_of_their_own():
    for seed in range(20):
        things = draw_pasted_scene(np.random.default_rng(seed), ("star", "cross", "circle")).shapes
        assert len({thing.shape for thing in things}) == len({thing.colour for thing in things}) == 3


def test_shapes_stay_within_their_radius():
    for name, corners in SHAPES.items():
        assert max(abs(edge) for corner in corners for edge in corner) <= 1 + 1e-9, name
        assert max(math.hypot(*corner) for corner in corners) > 0.99, name
