"""Words and positions of texts and of prompts with pictures."""

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from corelens import HookedMLLM, toy


@pytest.fixture(scope="module")
def two_pictures(toy_model: HookedMLLM) -> Any:
    first, second = toy.scenes(2, seed=0)
    return toy_model.prepare([first.images[0], second.images[0]], "which digit is red ?")


def test_visual_tokens_are_named_by_picture_row_and_column(toy_model: HookedMLLM, two_pictures: Any):
    (sample,) = toy.scenes(1, seed=0)
    inputs = toy_model.prepare(sample.images[0], "which digit is red ?")
    words = toy_model.to_str_tokens(inputs)
    assert len(words) == inputs.shape[1]
    positions = inputs.tokens.image[0].nonzero().flatten().tolist()
    assert [words[at] for at in positions] == [f"image {row},{column}" for row in range(8) for column in range(8)]
    assert words[toy_model.get_token_position("red", inputs)] == "red"
    assert [word for word in words if not word.startswith("image")][-6:-1] != []
    several = toy_model.to_str_tokens(two_pictures)
    assert [word for word in several if word.endswith(" 2,3")] == ["image 0 2,3", "image 1 2,3"]


def test_a_batch_has_a_list_of_words_for_each_sample(toy_model: HookedMLLM):
    inputs = toy_model.prepare([None, None], ["which digit is red ?", "red ?"])
    words = toy_model.to_str_tokens(inputs)
    assert [len(row) for row in words] == [inputs.shape[1]] * 2
    with pytest.raises(ValueError, match="these are 2 sequences"):
        toy_model.get_token_position("red", inputs)


def test_positions_are_the_first_or_the_last_and_missing_words_are_an_error(toy_model: HookedMLLM):
    text = "red digit red ?"
    ids = toy_model.to_tokens(text)
    first, last = (toy_model.get_token_position("red", ids, mode) for mode in ("first", "last"))
    assert last - first == 2
    assert toy_model.get_token_position(" red", text) == toy_model.get_token_position(int(ids[0, first]), text) == first
    with pytest.raises(ValueError, match=r"'blue' is no token of this sequence\. Its words: .*'digit'"):
        toy_model.get_token_position("blue", text)


def test_texts_become_tokens_and_texts_again(toy_model: HookedMLLM):
    ids = toy_model.to_tokens(["red digit", "digit"], prepend_bos=False, padding_side="right")
    pad = toy_model.tokenizer.pad_token_id
    assert ids.tolist() == [
        [*map(toy_model.to_single_token, ("red", "digit"))],
        [toy_model.to_single_token("digit"), pad],
    ]
    assert toy_model.to_tokens(["red digit", "digit"], False, "left")[1, 0] == pad
    assert toy_model.to_string(ids[0]) == toy_model.to_string(ids[:1])[0] == "red digit"
    assert toy_model.to_str_tokens(["red digit", ids[1]], prepend_bos=False)[0] == ["red", "digit"]
    with pytest.raises(ValueError, match="'red digit' is 2 tokens: 'red', 'digit'"):
        toy_model.to_single_token("red digit")
    with pytest.raises(ValueError, match=r"shape \(2, 2\) are several sequences"):
        toy_model.to_str_tokens(ids)


def test_a_loss_of_inputs_leaves_padding_out(toy_model: HookedMLLM):
    inputs = toy_model.prepare([None, None], ["which digit is red ?", "red ?"])
    alone = toy_model.prepare(None, "red ?")
    with torch.no_grad():
        each = toy_model.loss_fn(toy_model(inputs), inputs, per_token=True)
        expected = toy_model.loss_fn(toy_model(alone), alone, per_token=True)
    assert_close(each[1, -expected.shape[1] :], expected[0], atol=1e-4, rtol=1e-4)


def test_a_model_without_a_processor_has_no_tokenizer(toy_model: HookedMLLM):
    with pytest.raises(ValueError, match=r"HookedMLLM\(hf_model, processor\) has its tokenizer.*no-processor"):
        HookedMLLM(toy_model.hf_model).to_tokens("red")
