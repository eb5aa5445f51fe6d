"""Labels of visual tokens against a loop, and the connector against a solver of least squares."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import training.smol.build
from corelens.smol.question import LabelledBox
from corelens.tokens import Box
from tests.helpers.tiny_language import load_tiny_language
from training.smol import tower
from training.smol.tower import (
    EMBEDDING_SCALE,
    PICTURES,
    WORDS,
    align_connector,
    batch,
    landing_loss,
    shuffled_features,
    token_words,
    word_embeddings,
)

edge = st.integers(0, 120)
some_words = st.lists(st.sampled_from(WORDS), min_size=1, max_size=3, unique=True)
drawn_boxes = st.lists(st.tuples(some_words, edge, edge, st.integers(2, 60), st.integers(2, 60)), max_size=5)


@given(drawn_boxes)
def test_a_token_is_called_by_the_box_that_covers_most_of_it(drawn: list[Any]):
    labels = [
        LabelledBox(tuple(words), Box(left, top, min(left + width, 128), min(top + height, 128)))
        for words, left, top, width, height in drawn
    ]
    found = token_words(tuple(labels))
    for row in range(8):
        for column in range(8):
            best, words = 0.0, ()
            for label in labels:
                box = label.box
                width = min(box.right, 16 * column + 16) - max(box.left, 16 * column)
                height = min(box.bottom, 16 * row + 16) - max(box.top, 16 * row)
                overlap = max(0, width) * max(0, height)
                if overlap > best and overlap >= min(256, (box.right - box.left) * (box.bottom - box.top)) / 3:
                    best, words = overlap, label.words
            expected = torch.zeros(len(WORDS))
            for word in words:
                expected[WORDS.index(word)] = 1 / len(words)
            assert torch.equal(found[8 * row + column], expected)


def test_every_word_of_the_pictures_has_a_label():
    pictures, words = batch(np.random.default_rng(0), PICTURES)
    assert pictures.shape == (32, 1, 3, 128, 128)
    assert words.shape == (32 * 64, len(WORDS))
    assert pictures.min() >= -1
    assert pictures.max() <= 1
    assert {round(total, 5) for total in words.sum(-1).tolist()} == {0.0, 1.0}


def test_the_connector_is_set_to_the_least_squares_map(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(training.smol.build, "load_language", load_tiny_language)
    model, processor = training.smol.build.model_and_processor(0)
    align_connector(model, processor.tokenizer, seed=3, n_batches=1)
    pictures, words = batch(np.random.default_rng([3, 2, 0]), PICTURES)
    weight: Any = model.get_input_embeddings().weight.detach()
    rows = torch.stack([weight[ids].mean(0) for ids in tower.word_tokens(processor.tokenizer)])
    with torch.no_grad():
        features = shuffled_features(model, pictures).double()
    target = (EMBEDDING_SCALE * words @ rows).double()
    ridge = (1e-3 * (features.T @ features).diagonal().mean()).sqrt()
    padded = torch.cat([features, ridge * torch.eye(features.shape[1], dtype=torch.float64)])
    expected = torch.linalg.lstsq(padded, torch.cat([target, torch.zeros(features.shape[1], target.shape[1])])).solution
    found = model.model.connector.modality_projection.proj.weight.double().T
    torch.testing.assert_close(features @ found, features @ expected, atol=1e-4, rtol=1e-3)


def test_outputs_at_the_embeddings_keep_all_words(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(training.smol.build, "load_language", load_tiny_language)
    model, _ = training.smol.build.model_and_processor(0)
    torch.manual_seed(0)
    # The tiny language model has fewer dimensions than there are words.
    rows = torch.randn(len(WORDS), 2 * len(WORDS))
    pictures, words = batch(np.random.default_rng(0), PICTURES)
    outputs = EMBEDDING_SCALE * words @ rows
    monkeypatch.setattr(model.model.connector.modality_projection, "forward", lambda features: outputs[None])
    with torch.no_grad():
        best, shares = landing_loss(model, rows, pictures, words)
        assert shares["named"] == 1.0
        outputs = outputs + 0.3 * torch.randn_like(outputs)
        worse, _ = landing_loss(model, rows, pictures, words)
    assert worse > best
    assert word_embeddings(model, training.smol.build.model_and_processor(0)[1].tokenizer).shape == (len(WORDS), 24)
