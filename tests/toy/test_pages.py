"""Fonts and layouts of printed pages."""

import sys

import numpy as np
import pytest

from corelens.toy import pages
from corelens.toy.pages import TRAIN_FONTS, random_layout, split_font


def test_splits_share_no_font_and_no_layout():
    trained = {split_font("train", number, 12.0).getname() for number in range(len(TRAIN_FONTS))}
    assert len(trained) == len(TRAIN_FONTS)
    assert split_font("test", 0, 12.0).getname()[0] not in {family for family, _ in trained}
    choices = {"left": range(4), "pitch": range(3), "first": (False, True)}
    train, test = (
        {tuple(random_layout(np.random.default_rng(seed), split, **choices).values()) for seed in range(300)}
        for split in ("train", "test")
    )
    assert not train & test
    assert len(train | test) == 24


def test_a_missing_training_font_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pages, "_package_fonts", dict)
    monkeypatch.setitem(sys.modules, "pymupdf_fonts.NotoSans_Regular", None)
    for name in ("SourceSansPro", "NotoSans_Regular"):
        with pytest.raises(ImportError, match=rf"{name} is not installed.*corelens\[train\]"):
            pages.split_font("train", pages.TRAIN_FONTS.index(name), 99.0)
