"""The regions that a processor's outputs show, measured by a picture of coordinates."""

import numpy as np
import pytest

from corelens.inputs import processor_probe
from corelens.inputs.prepare import prepare
from corelens.inputs.processor_probe import ProcessorProbe, coordinate_image
from tests.helpers import processors, tiny
from tests.helpers.pictures import random_picture


@pytest.mark.parametrize("size", [(6000, 400), (400, 5003), (333, 250)], ids=str)
def test_tiles_of_large_pictures_are_exact(size: tuple[int, int]):
    """Eight bits of colour say where a tile ends, to a thousandth of its size."""
    *tiles, overview = ProcessorProbe(processors.build("internvl"), size).tiles
    assert overview == (0, 0, *size)
    for extent, first, last in ((size[0], 0, 2), (size[1], 1, 3)):
        starts, ends = sorted({tile[first] for tile in tiles}), sorted({tile[last] for tile in tiles})
        assert starts[1:] == ends[:-1]
        expected = np.linspace(0, extent, len(starts) + 1)
        np.testing.assert_allclose([*starts, extent], expected, atol=expected[1] / 1000)


def test_tiles_that_are_mostly_padding():
    """A picture of 230 x 25 pixels at the top left of four tiles of 112."""
    canvas = np.zeros((112, 4 * 112, 3))
    canvas[:25, :230] = coordinate_image(230, 25)
    tiles = canvas.reshape(112, 4, 112, 3).transpose(1, 3, 0, 2)
    probe = ProcessorProbe(None, (230, 25))
    regions = np.array(probe.regions(tiles[:3]))
    np.testing.assert_allclose(regions[:, 0], [0, 112, 224], atol=0.5)
    np.testing.assert_allclose(regions[:, 2], [112, 224, 336], atol=0.5)
    np.testing.assert_allclose(regions[:, [1, 3]], [[0, 112]] * 3, atol=0.5)
    # One without any pixel of the picture has no region.
    assert np.isnan(probe.regions(tiles)[3][0])


def test_each_size_is_measured_once(monkeypatch: pytest.MonkeyPatch):
    sizes: list[tuple[int, int]] = []

    def recording_image(width: int, height: int) -> np.ndarray:
        sizes.append((width, height))
        return coordinate_image(width, height)

    monkeypatch.setattr(processor_probe, "coordinate_image", recording_image)
    images = [random_picture(), random_picture(), random_picture().resize((60, 50))]
    prepare(processors.build("llava"), tiny.build("llava").config, images, ["Which?"] * 3)
    assert sorted(sizes) == [(60, 50), (112, 96)]
