"""Batches of training samples."""

import numpy as np
import pytest
import torch

from corelens import HookedMLLM, toy
from corelens.hf.loading import SHIPPED
from training import batches, build
from training.batches import Batches, chat_words, prepare_batch


@pytest.mark.parametrize("name", SHIPPED)
def test_training_chats_are_those_of_the_processor(name: str):
    model, batches = HookedMLLM.from_pretrained(name), Batches()
    (scene,), (text,) = toy.scenes(1, seed=0), toy.texts(1, 0, "copy")
    for sample in (scene, text):
        n_visual = batches.n_visual if sample.images else 0
        batch = prepare_batch(batches.tokenizer, [chat_words([(sample.question, sample.answer)], n_visual)])
        inputs = model.prepare(list(sample.images), sample.question)
        n = inputs["input_ids"].shape[1]
        assert torch.equal(batch["input_ids"][:, :n], inputs["input_ids"])
        target_ids = batch["input_ids"][batch["labels"] != -100]
        assert model.processor.tokenizer.decode(target_ids) == f"{sample.answer} <|im_end|>"


def test_stretched_positions_keep_their_order_and_pictures_stay_whole():
    factory = batches.Batches()
    for seed in range(4):
        batch, _ = factory.haystacks(np.random.default_rng(seed), 6)
        assert len(batch["image_grid_thw"]) == batches.IMAGES
        ids, stretch = batch["input_ids"], batch["stretch"]
        increments = stretch.diff(dim=1, prepend=torch.zeros(len(ids), 1, dtype=torch.long))
        begins = factory.tokenizer.convert_tokens_to_ids([build.VISION_START, build.START])
        assert (increments >= 0).all()
        assert torch.isin(ids[increments > 0], torch.tensor(begins)).all()
        assert 0 < stretch.max() <= batches.MAX_STRETCH
