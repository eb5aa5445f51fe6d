"""Prompts of the explorer: the cache of uploads."""

from corelens import HookedMLLM
from corelens.explorer import Explorer
from corelens.explorer.prompts import MAX_UPLOADS
from tests.helpers.explorer import png


def test_only_the_last_uploads_are_kept(toy_model: HookedMLLM):
    explorer = Explorer(toy_model)
    for number in range(MAX_UPLOADS + 1):
        explorer.prompts.add_picture(str(number), "a.png", png(4, 4))
    assert list(explorer.prompts.uploads) == [str(number) for number in range(1, MAX_UPLOADS + 1)]
