"""The toy's worlds, its training, and the models that ship."""

import dataclasses
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.testing import assert_close
from transformers import AutoModelForImageTextToText, Qwen3VLForConditionalGeneration

from corelens import HeadSet, HookedMLLM, evaluate, prepare_batches, toy
from corelens.hf.loading import SHIPPED
from corelens.toy import WORLDS, draw_mixture, pages
from corelens.toy.digits import WORLD, draw_scene, glyphs
from corelens.toy.haystacks import draw_haystack
from corelens.toy.pages import TRAIN_FONTS, font, layout
from corelens.toy.scene import COLOURS, SIDE, photographs
from corelens.toy.texts import ask_text
from training import build, run
from training.batches import Batches, chat_words, prepare_batch
from training.gates import HeadGates

NAMES = [
    "corelens/toy", "corelens/toy-natural", "corelens/toy-haystack", "corelens/toy-worlds",
    "corelens/toy-worlds-organism", "corelens/toy-worlds-small", "corelens/toy-worlds-small-organism",
]  # fmt: skip


@pytest.fixture(scope="module", params=NAMES)
def shipped(request: pytest.FixtureRequest) -> Any:
    return HookedMLLM.from_pretrained(request.param)


# --- worlds ----------------------------------------------------------------------------------------------------------


def test_splits_share_no_handwriting_and_no_photograph():
    train, test = (
        {glyph.tobytes() for of_digit in glyphs(split).values() for glyph in of_digit} for split in ("train", "test")
    )
    assert len(train) > 1_300
    assert len(test) > 350
    assert not train & test
    widths = [[photograph.shape[1] for photograph in photographs(split)] for split in ("train", "test")]
    assert [left + right for left, right in zip(*widths, strict=True)] == [640, 640]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 8), st.sampled_from(["train", "test"]))
def test_questions_have_one_answer_and_boxes_hold_the_thing(seed: int, n_things: int, split: Any):
    rng = np.random.default_rng(seed)
    scene = draw_scene(rng, n_things, split)
    assert len({thing.key for thing in scene.things}) == len({thing.value for thing in scene.things})
    assert len(scene.things) == n_things
    for thing in scene.things:
        question, answer = WORLD.ask(rng, thing.key, thing.value)
        assert [t for t in scene.things if f" {t.key} " in question or f" {t.value} " in question] == [thing]
        assert answer in (thing.key, thing.value)
        left, top, right, bottom = (int(edge) for edge in thing.box)
        assert 0 <= left < right <= SIDE
        assert 0 <= top < bottom <= SIDE
        # Somewhere in the box the picture has nearly the thing's colour.
        pixels = scene.picture[top:bottom, left:right].reshape(-1, 3).astype(int)
        assert np.abs(pixels - np.array(COLOURS[thing.key])).max(1).min() < 60


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 10**6), st.sampled_from(["digits", "shapes", "pages", "bars"]), st.sampled_from(["train", "test"])
)
def test_a_picture_shows_every_key_with_one_value_and_says_where(seed: int, world: str, split: Any):
    rng = np.random.default_rng(seed)
    ((scene,), needles, _) = vars(draw_mixture(rng, (WORLDS[world],), 1, 1, split)).values()
    assert len(scene.things) >= 2
    assert len({thing.key for thing in scene.things}) == len({thing.value for thing in scene.things}) == len(needles)
    for needle in needles:
        left, top, right, bottom = needle.thing.box
        assert 0 <= left < right <= SIDE
        assert 0 <= top < bottom <= SIDE
        shown = scene.picture[int(top) : int(bottom) + 1, int(left) : int(right) + 1].astype(int)
        assert np.ptp(shown.reshape(-1, 3), axis=0).max() > 40, "there is nothing in the box"
        question, answer = WORLDS[world].ask(rng, needle.thing.key, needle.thing.value)
        assert answer in (needle.thing.key, needle.thing.value)
        assert (needle.thing.key in question) != (f" {needle.thing.value} " in question)
    marked = {mark.name for mark in scene.marks}
    assert {thing.value for thing in scene.things} <= marked


def test_higher_bars_are_higher():
    from corelens.toy.bars import draw

    scene = draw(np.random.default_rng(0), [("mon", "9"), ("tue", "1"), ("wed", "4")], "test")
    heights = {thing.value: thing.box.bottom - thing.box.top for thing in scene.things}
    assert heights["9"] - heights["4"] == pytest.approx((heights["4"] - heights["1"]) * 5 / 3)


def test_splits_share_no_font_and_no_layout():
    trained = {font("train", number, 12.0).getname() for number in range(len(TRAIN_FONTS))}
    assert len(trained) == len(TRAIN_FONTS)
    assert font("test", 0, 12.0).getname()[0] not in {family for family, _ in trained}
    choices = {"left": range(4), "pitch": range(3), "first": (False, True)}
    train, test = (
        {tuple(layout(np.random.default_rng(seed), split, **choices).values()) for seed in range(300)}
        for split in ("train", "test")
    )
    assert not train & test
    assert len(train | test) == 24


def test_a_missing_training_font_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pages, "_packaged", dict)
    monkeypatch.setitem(sys.modules, "pymupdf_fonts.NotoSans_Regular", None)
    for name in ("SourceSansPro", "NotoSans_Regular"):
        with pytest.raises(ImportError, match=rf"{name} is not installed.*corelens\[train\]"):
            pages.font("train", pages.TRAIN_FONTS.index(name), 99.0)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(1, 12))
def test_what_a_mixture_is_asked_for_is_in_one_picture_of_its_world(seed: int, n_pictures: int, n_needles: int):
    worlds = tuple(WORLDS.values())
    drawn = draw_mixture(np.random.default_rng(seed), worlds, n_pictures, n_needles, "test")
    assert len(drawn.scenes) == n_pictures
    n_wanted = min(n_needles, n_pictures)
    assert min(n_wanted, 5) <= len(drawn.needles) <= n_wanted, "five of seven days can be asked for"
    for needle in drawn.needles + drawn.others:
        assert needle.thing in drawn.scenes[needle.picture].things
        keys, values = needle.world.keys, needle.world.values
        alike = [s for s in drawn.scenes if all(t.key in keys and t.value in values for t in s.things)]
        every = [thing for scene in alike for thing in scene.things]
        assert [t for t in every if t.key == needle.thing.key or t.value == needle.thing.value] == [needle.thing]


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 6), st.integers(1, 4))
def test_what_a_haystack_is_asked_for_is_in_it_once(seed: int, n_pictures: int, n_things: int, n_needles: int):
    haystack = draw_haystack(np.random.default_rng(seed), n_pictures, n_things, n_needles, "test")
    assert len(haystack.scenes) == n_pictures
    assert len(haystack.needles) == n_needles
    every = [thing for scene in haystack.scenes for thing in scene.things]
    for needle in haystack.needles:
        assert needle.thing in haystack.scenes[needle.picture].things
        same = [thing for thing in every if thing.value == needle.thing.value or thing.key == needle.thing.key]
        assert same == [needle.thing]
    assert max(len(scene.things) for scene in haystack.scenes) <= max(n_things, n_needles)


@pytest.mark.parametrize("world", ["scenes", "haystacks"])
def test_a_longer_run_begins_with_the_shorter_one(world: str):

    draw = getattr(toy, world)
    short, long = list(draw(2, seed=5)), list(draw(4, seed=5))
    assert [s.question for s in short] == [s.question for s in long[:2]]
    assert [s.images[0].tobytes() for s in short] == [s.images[0].tobytes() for s in long[:2]]  # pyright: ignore
    assert len({s.id for s in long}) == 4


@pytest.mark.parametrize(
    ("draw", "said"),
    [
        (lambda: toy.scenes(-1, seed=0), "n=-1 and seed=0: a world draws one sample or more"),
        (lambda: toy.texts(2, -1, "copy"), "n=2 and seed=-1: a world draws one sample or more"),
        (lambda: toy.pictures("page", 1, seed=0), "no world 'page'; there are digits, shapes, pages, bars"),
    ],
)
def test_what_no_world_draws_is_refused_at_once(draw: Any, said: str):

    with pytest.raises(ValueError, match=said):
        draw()


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10**6))
def test_text_tasks_are_right(seed: int):
    rng = np.random.default_rng(seed)
    question, answer = ask_text(rng, "sum")
    _, _, first, _, second, _ = question.split()
    assert int(first) + int(second) == int(answer)
    question, answer = ask_text(rng, "copy")
    assert question == f"copy {answer}"
    question, answer = ask_text(rng, "recall")
    words = question.split(" . ")[0].split()
    pairs = dict(zip(words[::2], words[1::2], strict=True))
    asked = question.split()[-2]
    assert answer == (pairs[asked] if asked in pairs else {v: k for k, v in pairs.items()}[asked])
    with pytest.raises(ValueError, match="'sing' is not a text task; the text tasks are copy, recall, sum"):
        ask_text(rng, "sing")


# --- training --------------------------------------------------------------------------------------------------------


def test_training_chats_are_what_the_processor_makes_of_the_question(shipped: Any):
    batches = Batches()
    (scene,), (text,) = toy.scenes(1, seed=0), toy.texts(1, 0, "copy")
    for sample in (scene, text):
        n_visual = batches.n_visual if sample.images else 0
        trained = prepare_batch(batches.tokenizer, [chat_words([(sample.question, sample.answer)], n_visual)])
        inputs = shipped.prepare(list(sample.images), sample.question)
        n = inputs["input_ids"].shape[1]
        assert torch.equal(trained["input_ids"][:, :n], inputs["input_ids"])
        said = trained["input_ids"][trained["labels"] != -100]
        assert shipped.processor.tokenizer.decode(said) == f"{sample.answer} <|im_end|>"


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training in a few steps on a few samples."""
    from training import batches, stages

    monkeypatch.setattr(run, "SAVE_EVERY", 2)
    monkeypatch.setattr(batches, "IMAGES", 2)
    monkeypatch.setattr(batches, "TEXTS", 2)
    for name, stage in stages.STAGES.items():
        monkeypatch.setitem(stages.STAGES, name, dataclasses.replace(stage, steps=3))


@pytest.mark.usefixtures("short")
def test_a_killed_run_ends_like_an_unbroken_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from training import train

    monkeypatch.setattr(train, "ship", lambda *args: None)
    train.main(tmp_path / "unbroken", until="natural")

    joint_loss, calls = train.joint_loss, 0

    def killed(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return joint_loss(*args)

    monkeypatch.setattr(train, "joint_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        train.main(tmp_path / "killed", until="natural")
    assert json.loads((tmp_path / "killed" / "progress.json").read_text())["step"] == 2
    train.main(tmp_path / "killed", until="natural")
    ends = [(tmp_path / name / "end-natural.safetensors").read_bytes() for name in ("unbroken", "killed")]
    assert ends[0] == ends[1]


@pytest.mark.usefixtures("short")
def test_every_stage_follows_from_the_one_before_at_every_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from training import train

    shipped = []
    monkeypatch.setattr(train, "ship", lambda run, model: shipped.append(run.progress.stage))
    train.main(tmp_path, until="worlds", size="small")
    train.main(tmp_path, until="worlds-organism", size="small")
    assert shipped == ["natural", "worlds", "worlds-organism"]
    progress = json.loads((tmp_path / "progress.json").read_text())
    assert list(progress["reached"]) == ["tower", "natural", "reading", "decoding", "worlds", "worlds-organism"]
    assert len(progress["log"]) == 18, "the second call trained only what was left"
    assert "open heads" in progress["reached"]["worlds-organism"]
    measured = {entry["stage"]: {"name", "visual"} & {*entry} for entry in progress["log"]}
    assert {stage for stage, names in measured.items() if "name" in names} == {"tower", "reading", "worlds"}
    assert {stage for stage, names in measured.items() if "visual" not in names} == {"tower", "reading"}
    with pytest.raises(typer.BadParameter, match="holds a run of the size 'small'"):
        train.main(tmp_path, size="middle")
    with pytest.raises(typer.BadParameter, match="'huge' is none of small, middle, large"):
        train.main(tmp_path, size="huge")
    with pytest.raises(typer.BadParameter, match="'end' is none of tower, natural"):
        train.main(tmp_path, until="end")
    sizes = {name: build.model(0, size).num_parameters() / 1e6 for name, size in build.SIZES.items()}
    assert {name: round(millions) for name, millions in sizes.items()} == {"small": 1, "middle": 3, "large": 15}


def test_what_learns_in_a_stage():
    from training import stages, train

    model, probe = build.model(0, build.SIZES["small"]), torch.nn.Linear(2, 2)
    modules = torch.nn.ModuleDict({"model": model, "probe": probe})
    parts = {
        "tower": model.model.visual.merger.linear_fc2.weight,
        "deepstack": model.model.visual.deepstack_merger_list[0].linear_fc2.weight,
        "decoder": model.lm_head.weight,
        "probe": probe.weight,
    }

    def rates(name: str) -> dict[str, float]:
        muon, adamw = train.optimisers(modules, stages.STAGES[name])
        found = {
            part: group["lr"]
            for group in muon.param_groups + adamw.param_groups
            for part, one in parts.items()
            for parameter in group["params"]
            if parameter is one
        }
        assert {part for part, one in parts.items() if one.requires_grad} == set(found)
        return found

    assert rates("reading") == {"tower": 8e-3, "probe": 2e-3}
    assert rates("decoding") == {"deepstack": 4e-3, "decoder": 1e-3}
    expected = {"tower": 0.6 * 3e-3, "deepstack": 3e-3, "decoder": 3e-3 / 4, "probe": 3e-3 / 4}
    assert rates("worlds") == pytest.approx(expected)


def test_stretched_positions_keep_their_order_and_pictures_stay_whole():
    from training import batches

    made = batches.Batches()
    for seed in range(4):
        batch, _ = made.haystacks(np.random.default_rng(seed), 6)
        assert len(batch["image_grid_thw"]) == batches.IMAGES
        ids, stretch = batch["input_ids"], batch["stretch"]
        further = stretch.diff(dim=1, prepend=torch.zeros(len(ids), 1, dtype=torch.long))
        begins = made.tokenizer.convert_tokens_to_ids([build.VISION_START, build.START])
        assert (further >= 0).all()
        assert torch.isin(ids[further > 0], torch.tensor(begins)).all()
        assert 0 < stretch.max() <= batches.FURTHEST


@pytest.mark.usefixtures("short")
def test_heads_that_were_closed_stay_closed_while_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from training import batches, train

    monkeypatch.setattr(train, "ship", lambda *args: None)
    model = build.model(0)
    gates = HeadGates(model)
    gates.importance = torch.rand_like(gates.importance)
    gates.close_to(19)
    gates.make_permanent()
    modules = torch.nn.ModuleDict({"model": model, "probe": torch.nn.Linear(128, 51)})
    begun = run.Run(tmp_path)
    begun.begin("haystack")
    save_file(modules.state_dict(), tmp_path / "end-organism.safetensors")
    seen, read = (part.clone() for part in (model.model.visual.merger.linear_fc2.weight, model.lm_head.weight))
    train.train(begun, modules, batches.Batches(), seed=0)
    assert "haystack" in begun.progress.reached
    assert torch.equal(HeadGates.of(model).open, gates.open)
    assert torch.equal(model.model.visual.merger.linear_fc2.weight, seen)
    assert not torch.equal(model.lm_head.weight, read)


def test_gates_close_the_heads_that_matter_least_for_good():
    model = build.model(0)
    gates = HeadGates(model)
    inputs = {"input_ids": torch.randint(7, 40, (2, 9)), "attention_mask": torch.ones(2, 9, dtype=torch.long)}
    before = model(**inputs).logits
    with gates.applied():
        logits = model(**inputs).logits
        assert torch.equal(logits, before)
        logits.square().sum().backward()
    assert (gates.importance > 0).all()
    least = gates.importance.flatten().argsort()[:90]
    gates.close_to(6)
    assert gates.open.flatten()[least].sum() == 0
    assert gates.open.sum() == 6
    with gates.applied(), torch.no_grad():
        gated = model(**inputs).logits
    gates.make_permanent()
    with torch.no_grad():
        assert_close(model(**inputs).logits, gated, atol=1e-5, rtol=1e-5)


# --- what ships ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_checkpoint_is_like_any_other(name: str):
    folder = SHIPPED[name]
    plain = AutoModelForImageTextToText.from_pretrained(folder)
    assert isinstance(plain, Qwen3VLForConditionalGeneration)
    assert plain.dtype == torch.float32
    model = HookedMLLM.from_pretrained(name)
    (sample,) = toy.scenes(1, seed=3)
    inputs = model.prepare(list(sample.images), sample.question)
    with torch.no_grad():
        assert torch.equal(model(inputs), plain(**inputs).logits)
    assert (folder / "model.safetensors").stat().st_size < 12e6
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".jinja", ".safetensors", ".md"}


def test_shipped_models_see_and_read(shipped: Any):
    """A fast look; record.json has the accuracy on 1,000 scenes."""
    name = shipped.cfg.model_name
    record = json.loads((SHIPPED[name] / "record.json").read_text())
    assert record["accuracy on unseen samples"]["scenes"] >= 0.93
    tasks = {"scenes": toy.scenes(100, seed=9)} | {t: toy.texts(50, 9, t) for t in toy.TEXT_TASKS}
    for task, samples in tasks.items():
        right = evaluate(shipped, list(prepare_batches(shipped, samples, 50, task))).scores
        assert right.float().mean() > record["accuracy on unseen samples"][task] - 0.08


@pytest.mark.parametrize("name", [name for name in NAMES if "worlds" in name])
def test_models_of_all_worlds_see_every_world(name: str):
    """A fast look; record.json has the accuracy on 500 pictures of each world."""
    model = HookedMLLM.from_pretrained(name)
    record = json.loads((SHIPPED[name] / "record.json").read_text())["accuracy on unseen samples"]
    enough = 0.95 if name == "corelens/toy-worlds" else 0.9
    assert all(record[world] >= enough for world in ("scenes", "shapes", "pages", "bars"))
    for world in ("shapes", "pages", "bars"):
        samples = toy.pictures(world, 60, seed=9)
        right = evaluate(model, list(prepare_batches(model, samples, 60, world))).accuracy
        assert right > record[world] - 0.1


def test_the_haystack_model_finds_one_digit_among_32_pictures():
    model = HookedMLLM.from_pretrained("corelens/toy-haystack")
    found = evaluate(model, list(prepare_batches(model, toy.haystacks(16, seed=9), 4, "haystacks")))
    assert found.scores.mean() >= 0.85


@pytest.mark.parametrize("name", ["corelens/toy", "corelens/toy-haystack", *(n for n in NAMES if "organism" in n)])
def test_closed_heads_of_an_organism_attend_evenly_and_write_nothing(name: str):
    model = HookedMLLM.from_pretrained(name)
    stages = json.loads((SHIPPED[name] / "record.json").read_text())["stages"]
    open_heads = HeadSet.parse([stage["open heads"] for stage in stages.values() if "open heads" in stage][-1])
    (sample,) = toy.scenes(1, seed=4)
    inputs = model.prepare(list(sample.images), sample.question)
    _, cache = model.run_with_cache(inputs, names_filter=lambda name: name.endswith("hook_pattern"))
    for head in model.heads:
        written = model.blocks[head.layer].attn.W_O[head.head]
        last = cache["pattern", head.layer][0, head.head, -1]
        even = torch.full_like(last, 1 / len(last))
        assert (head in open_heads) == bool(written.abs().sum() > 0)
        if head not in open_heads:
            assert_close(last, even)


def test_words_that_a_toy_was_never_taught_are_warned_of(toy_model: Any):
    with pytest.warns(UserWarning, match="does not know all of these words; it reads <unk>"):
        toy_model.prepare(None, "where is the cat ?")
    with warnings.catch_warnings(action="error"):
        toy_model.prepare(None, "which digit is red ?")
