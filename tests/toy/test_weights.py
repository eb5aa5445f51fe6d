"""The models that ship with corelens."""

import json
import warnings

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForImageTextToText, Qwen3VLForConditionalGeneration

from corelens import HeadSet, HookedMLLM, evaluate, prepare_batches, toy
from corelens.hf.loading import SHIPPED

NAMES = [
    "corelens/toy", "corelens/toy-natural", "corelens/toy-haystack", "corelens/toy-worlds",
    "corelens/toy-worlds-organism", "corelens/toy-worlds-small", "corelens/toy-worlds-small-organism",
]  # fmt: skip


@pytest.fixture(scope="module", params=NAMES)
def shipped(request: pytest.FixtureRequest) -> HookedMLLM:
    return HookedMLLM.from_pretrained(request.param)


@pytest.mark.parametrize("name", NAMES)
def test_the_checkpoint_is_like_any_other(name: str):
    folder = SHIPPED[name]
    hf_model = AutoModelForImageTextToText.from_pretrained(folder)
    assert isinstance(hf_model, Qwen3VLForConditionalGeneration)
    assert hf_model.dtype == torch.float32
    model = HookedMLLM.from_pretrained(name)
    (sample,) = toy.scenes(1, seed=3)
    inputs = model.prepare(list(sample.images), sample.question)
    with torch.no_grad():
        assert torch.equal(model(inputs), hf_model(**inputs).logits)
    assert (folder / "model.safetensors").stat().st_size < 12e6
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".jinja", ".safetensors", ".md"}


def test_shipped_models_answer_scenes_and_texts(shipped: HookedMLLM):
    """On a few samples; record.json has the accuracy on 1,000 scenes."""
    name = shipped.cfg.model_name
    record = json.loads((SHIPPED[name] / "record.json").read_text())
    assert record["accuracy on unseen samples"]["scenes"] >= 0.93
    tasks = {"scenes": toy.scenes(100, seed=9)} | {t: toy.texts(50, 9, t) for t in toy.TEXT_TASKS}
    for task, samples in tasks.items():
        scores = evaluate(shipped, list(prepare_batches(shipped, samples, 50, task))).scores
        assert scores.float().mean() > record["accuracy on unseen samples"][task] - 0.08


@pytest.mark.parametrize("name", [name for name in NAMES if "worlds" in name])
def test_models_of_all_worlds_answer_every_world(name: str):
    """On a few samples; record.json has the accuracy on 500 pictures of each world."""
    model = HookedMLLM.from_pretrained(name)
    record = json.loads((SHIPPED[name] / "record.json").read_text())["accuracy on unseen samples"]
    threshold = 0.95 if name == "corelens/toy-worlds" else 0.9
    assert all(record[world] >= threshold for world in ("scenes", "shapes", "pages", "bars"))
    for world in ("shapes", "pages", "bars"):
        samples = toy.pictures(world, 60, seed=9)
        accuracy = evaluate(model, list(prepare_batches(model, samples, 60, world))).accuracy
        assert accuracy > record[world] - 0.1


def test_the_haystack_model_finds_one_digit_among_32_pictures():
    model = HookedMLLM.from_pretrained("corelens/toy-haystack")
    evaluation = evaluate(model, list(prepare_batches(model, toy.haystacks(16, seed=9), 4, "haystacks")))
    assert evaluation.scores.mean() >= 0.85


@pytest.mark.parametrize("name", ["corelens/toy", "corelens/toy-haystack", *(n for n in NAMES if "organism" in n)])
def test_closed_heads_of_an_organism_attend_uniformly_and_write_nothing(name: str):
    model = HookedMLLM.from_pretrained(name)
    stages = json.loads((SHIPPED[name] / "record.json").read_text())["stages"]
    open_heads = HeadSet.parse([stage["open heads"] for stage in stages.values() if "open heads" in stage][-1])
    (sample,) = toy.scenes(1, seed=4)
    inputs = model.prepare(list(sample.images), sample.question)
    _, cache = model.run_with_cache(inputs, names_filter=lambda name: name.endswith("hook_pattern"))
    for head in model.heads:
        output_weights = model.blocks[head.layer].attn.W_O[head.head]
        pattern = cache["pattern", head.layer][0, head.head, -1]
        uniform = torch.full_like(pattern, 1 / len(pattern))
        assert (head in open_heads) == bool(output_weights.abs().sum() > 0)
        if head not in open_heads:
            assert_close(pattern, uniform)


def test_words_that_a_toy_was_never_taught_are_warned_of(toy_model: HookedMLLM):
    with pytest.warns(UserWarning, match="does not know all of these words; it reads <unk>"):
        toy_model.prepare(None, "where is the cat ?")
    with warnings.catch_warnings(action="error"):
        toy_model.prepare(None, "which digit is red ?")
