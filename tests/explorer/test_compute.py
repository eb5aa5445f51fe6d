"""The explorer without a browser: what a state shows is what the library's own calls give."""

import base64
import io
import json
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import corelens as cl
from corelens import toy
from corelens.experiments.head_metrics import ScoringInputs, score_heads
from corelens.explorer import Explorer, uploads
from corelens.explorer.compute import MOST_UPLOADS, Cancelled
from corelens.explorer.state import ExplorerState
from corelens.explorer.uploads import decoded
from corelens.explorer.view import MOST_MAPS, _short
from corelens.metrics import PRESETS
from corelens.tokens import Role
from corelens.viz.panels import flatten_panels, media_views
from tests.helpers import tiny

CLOSE = {"rtol": 2e-3, "atol": 1e-5}
"""Of numbers that are sent with four digits."""


@pytest.fixture(scope="module")
def scenes() -> Any:
    return list(toy.scenes(4, seed=0))


@pytest.fixture(scope="module")
def scores(toy_model: Any) -> Any:
    values = torch.rand(3, 6, 16, generator=torch.Generator().manual_seed(0))
    return cl.HeadScores(values, "retrieval attention mass", ("a", "b", "c"))


@pytest.fixture(scope="module")
def explorer(toy_model: Any, scenes: Any, scores: Any) -> Any:
    return Explorer(toy_model, scenes, scores)


@pytest.fixture(scope="module")
def first(explorer: Any) -> Any:
    return explorer.first()


@pytest.fixture(scope="module")
def inputs(toy_model: Any, scenes: Any) -> Any:
    return toy_model.prepare(list(scenes[0].images), scenes[0].question)


def png(size: tuple[int, int] = (128, 128)) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


# --- states ---


def test_a_state_is_its_json():
    region = cl.Evidence(cl.Box(1, 2, 3, 4), 0, (0.5, 1.0))
    state = ExplorerState(
        "a", ("b",), "why ?", (region,), (cl.Head(1, 2),), 7, "entropy", "score", (cl.Head(3, 4), cl.Head(0, 1)),
        "mean", (region, cl.Evidence()), "chosen", "before",
    )  # fmt: skip
    assert ExplorerState.parse(json.loads(json.dumps(state.json()))) == state
    assert ExplorerState.parse(ExplorerState().json()) == ExplorerState()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "a state is a JSON object"),
        ({"head": []}, "a state has no head; it has"),
        ({"heads": ["L1"]}, "the state's heads is wrong: 'L1' is not a head"),
        ({"heads": "L1H1"}, "the state's heads is wrong: 'L1H1' is not a list"),
        ({"how": "nothing"}, "the state's how is wrong: 'nothing' is not one of zero, mean"),
        ({"token": 1.5}, "the state's token is wrong: 1.5 is not a whole number"),
        ({"regions": [{"media": 0, "box": [0, 1, 2]}]}, "the state's regions is wrong"),
        ({"regions": [{"media": 0, "box": [0, 1, 2, float("nan")]}]}, "is not a list of 4 numbers"),
        ({"regions": [{"media": -1}]}, "media=-1 is negative"),
        ({"evidence": [3]}, "a region is an object"),
        ({"question": 3}, "the state's question is wrong"),
        ({"pictures": [None]}, "the state's pictures is wrong"),
    ],
)
def test_what_is_no_state_is_refused_by_its_field(given: Any, said: str):
    with pytest.raises(ValueError, match=said.replace("[", r"\[")):
        ExplorerState.parse(given)


words = st.sampled_from(["", "L1H2", "zero", "media", "box", "seconds"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["heads", "regions", "evidence", "token", "how", "pictures"]), json_values))
def test_no_json_does_more_than_to_be_refused(given: Any):
    try:
        state = ExplorerState.parse(given)
    except ValueError:
        return
    assert ExplorerState.parse(state.json()) == state


# --- views ---


def test_the_map_is_the_attention_of_the_chosen_head_and_token(toy_model: Any, explorer: Any, first: Any, inputs: Any):
    head, position = cl.Head(2, 4), int(inputs.tokens.question[0].nonzero()[2])
    view = explorer.look(replace(first, heads=(head,), token=position))
    looking = torch.zeros_like(inputs.tokens.last)
    looking[0, position] = True
    _, cache = toy_model.run_with_cache(inputs, queries=looking)
    row = cache["pattern", 2][0, 4, 0]
    (shown,) = view["maps"]
    assert np.allclose(shown["cells"], inputs.tokens.grid(row).flatten(), **CLOSE)
    assert np.isclose(shown["on_pictures"], float(row[inputs.tokens.image[0]].sum()), **CLOSE)
    evidence = cl.evidence_tokens([explorer.samples[first.sample]], inputs.tokens)
    assert np.isclose(shown["on_evidence"], float(row[evidence[0]].sum()), **CLOSE)
    texts = [token["position"] for token in explorer.prompt(first)["tokens"]]
    assert np.allclose(shown["tokens"], row[texts], **CLOSE)


def test_heads_are_coloured_by_what_a_scan_measures(toy_model: Any, explorer: Any, first: Any, scenes: Any):
    measures = ["ram", "write_ram", "vera", "visual_share", "entropy"]
    scanned = cl.scan_metrics(toy_model, scenes[:1], measures)
    for name in measures:
        shown = np.array(explorer.look(replace(first, metric=name))["map"], float)
        assert np.allclose(shown, scanned[name].per_head, **CLOSE), name


def test_effects_are_those_of_a_sweep(toy_model: Any, explorer: Any, first: Any, inputs: Any):
    shown = explorer.look(replace(first, metric="effect"))
    swept = cl.sweep(toy_model, cl.append_answers(toy_model, inputs, [shown["before"]["text"]])).scores()
    assert np.allclose(np.array(shown["map"], float), swept.values[0], rtol=2e-3, atol=1e-4)


def test_scores_of_a_scan_can_colour_the_heads(explorer: Any, first: Any, scores: Any):
    assert np.allclose(explorer.look(replace(first, metric="scan"))["map"], scores.per_head, **CLOSE)
    assert explorer.about()["core"] == [str(head) for head in scores.top()]


@pytest.mark.parametrize("how", ["zero", "mean"])
def test_ablation_is_that_of_run_with_hooks(
    toy_model: Any, explorer: Any, first: Any, scenes: Any, inputs: Any, how: Any
):
    heads = cl.HeadSet.parse("L2H4, L2H6, L2H10, L3H0, L3H14")
    view = explorer.look(replace(first, ablated=heads.heads, how=how))
    instead = cl.mean_activations(toy_model, scenes) if how == "mean" else None
    hooks = cl.ablate(heads, how, instead, positions="from_question")
    with torch.no_grad():
        plain, changed = (toy_model.run_with_hooks(inputs, fwd_hooks=own)[0, -1].softmax(-1) for own in ([], hooks))
    tokenizer = toy_model.processor.tokenizer
    for row in view["alternatives"]:
        token = tokenizer.convert_tokens_to_ids(row["text"])
        assert np.allclose([row["before"], row["after"]], [float(plain[token]), float(changed[token])], **CLOSE)
    assert view["before"]["text"] == toy_model.answer(inputs)[0]
    with toy_model.hooks(fwd_hooks=hooks):
        assert view["after"]["text"] == toy_model.answer(inputs)[0] != view["before"]["text"]
        _, cache = toy_model.run_with_cache(inputs, queries=inputs.tokens.last)
    row = cache["pattern", first.heads[0].layer][0, first.heads[0].head, 0]
    assert np.allclose(view["maps"][0]["cells"], inputs.tokens.grid(row).flatten(), **CLOSE)
    # One token answers here, so that the plain answer's probability is that of its token.
    said = tokenizer.convert_tokens_to_ids(view["before"]["text"])
    assert np.isclose(view["after"]["of_plain"], float(changed[said]), **CLOSE)


@pytest.mark.parametrize("blind", ["all", "chosen"])
def test_a_hidden_region_is_an_attention_knock_out(toy_model: Any, explorer: Any, first: Any, inputs: Any, blind: Any):
    box = explorer.samples[first.sample].evidence[0].box
    chosen = (cl.Head(2, 4), cl.Head(2, 10))
    state = replace(first, heads=chosen, regions=(cl.Evidence(box),), blind=blind)
    view = explorer.look(state)
    heads = toy_model.heads if blind == "all" else chosen
    hooks = cl.attention_knockout(heads, "from_question", inputs.tokens.in_box(box))
    with torch.no_grad():
        changed = toy_model.run_with_hooks(inputs, fwd_hooks=hooks)[0, -1].softmax(-1)
    token = toy_model.processor.tokenizer.convert_tokens_to_ids(view["alternatives"][0]["text"])
    assert np.isclose(view["alternatives"][0]["after"], float(changed[token]), **CLOSE)
    assert [one["on_evidence"] for one in view["maps"]] == [0, 0]
    assert max(one["on_evidence"] for one in explorer.look(replace(state, moment="before"))["maps"]) > 0.5


def test_the_same_state_shows_the_same_and_states_leave_no_trace(
    toy_model: Any, explorer: Any, first: Any, inputs: Any
):
    before = explorer.look(first)
    logits = toy_model(inputs)
    explorer.look(replace(first, ablated=(cl.Head(2, 4),), metric="entropy"))
    assert explorer.look(first) == before
    assert torch.equal(toy_model(inputs), logits)
    assert not any(point.has_hooks() for point in toy_model.hook_points())


def test_views_and_prompts_are_json(explorer: Any, first: Any):
    for made in (explorer.about(), explorer.look(first), explorer.prompt(first)):
        assert json.loads(json.dumps(made, allow_nan=False)) == made


def test_tokens_that_can_look_begin_with_the_question(explorer: Any, first: Any, scenes: Any):
    tokens = explorer.prompt(first)["tokens"]
    asked = [token["text"] for token in tokens if token["role"] == "question"]
    assert " ".join(asked) == scenes[0].question
    assert [token["role"] for token in tokens[:1] + tokens[-1:]] == ["question", "structural"]


def test_cells_lie_on_the_pixels_of_the_token_map(explorer: Any, first: Any, inputs: Any):
    (panel,) = explorer.prompt(first)["panels"]
    (grid,) = panel["grids"]
    cells = [(left, top, right, bottom) for top, bottom in zip(grid["y"], grid["y"][1:], strict=False)
             for left, right in zip(grid["x"], grid["x"][1:], strict=False)]  # fmt: skip
    assert np.allclose(cells, inputs.tokens.box[inputs.tokens.image], atol=0.01)
    assert (panel["width"], panel["height"]) == (128, 128)
    drawn = Image.open(io.BytesIO(base64.b64decode(panel["src"].split(",")[1])))
    assert drawn.tobytes() == explorer.samples[first.sample].images[0].tobytes()


def test_tiles_an_overview_and_frames_are_views_of_their_own():
    one = torch.tensor
    tiled = cl.TokenMap(
        role=one([[5, 5, 5, 5, 5]]), media=one([[0, 0, 0, 0, 0]]), view=one([[0, 1, 2, 2, 2]]),
        overview=one([[False, False, True, True, True]]), row=one([[0, 0, 0, 0, 0]]), column=one([[0, 0, 0, 1, 2]]),
        box=one([[[0.0, 0, 5, 8], [5, 0, 10, 8], [0, 0, 3, 8], [3, 0, 6, 8], [6, 0, 10, 8]]]),
        seconds=torch.full((1, 5, 2), torch.nan), sizes=(((10, 8),),),
    )  # fmt: skip
    picture = Image.new("RGB", (10, 8))
    tiles, overview = media_views([picture], tiled)
    assert (tiles.name, overview.name) == ("tiles", "overview")
    assert [grid.x for grid in tiles.grids] == [[0, 5], [5, 10]]
    assert [grid.x for grid in overview.grids] == [[0, 3, 6, 10]]
    assert flatten_panels(tiled, [tiles, overview], torch.arange(5.0)).tolist() == [0, 1, 2, 3, 4]
    nowhere = replace(tiled, view=-torch.ones_like(tiled.view), row=-torch.ones_like(tiled.row), no_boxes="learned")
    (view,) = media_views([picture], nowhere)
    assert view.grids == []


# --- what users bring ---


def test_own_pictures_and_questions_are_asked(toy_model: Any, explorer: Any, first: Any):
    explorer.prompts.add_picture("key", "mine.png", png())
    explorer.prompts.add_picture("key", "mine.png", b"another, which changes nothing")
    state = replace(first, sample="", pictures=("key", "key"), question="what is red ?", metric="visual_share")
    view, prompt = explorer.look(state), explorer.prompt(state)
    inputs = toy_model.prepare([Image.open(io.BytesIO(png()))] * 2, "what is red ?")
    assert view["before"]["text"] == toy_model.answer(inputs)[0]
    assert [panel["label"] for panel in prompt["panels"]] == ["picture 0", "picture 1"]
    assert len(view["maps"][0]["cells"]) == 128
    assert view["maps"][0]["on_evidence"] is None


def test_evidence_is_marked_by_hand(toy_model: Any, explorer: Any, first: Any, inputs: Any):
    state = replace(first, question="which digit is red ?")
    view = explorer.look(state)
    assert view["map"] is None
    assert view["note"] == "Mark the evidence in the picture, or colour heads by another measure."
    box = cl.Box(16, 16, 32, 32)
    marked = explorer.look(replace(state, evidence=(cl.Evidence(box),)))
    other = toy_model.prepare(list(explorer.samples[first.sample].images), "which digit is red ?")
    _, cache = toy_model.run_with_cache(other, queries=other.tokens.last)
    inside = other.tokens.in_box(box)[0]
    assert np.allclose(marked["map"][2], cache["pattern", 2][0, :, 0, inside].sum(-1), **CLOSE)


def test_words_that_a_small_model_was_never_taught_are_said(explorer: Any, first: Any):
    said = "The model does not know all of these words; it reads <unk> in their place."
    assert explorer.prompt(first)["note"] == ""
    with pytest.warns(UserWarning, match=said):
        assert explorer.prompt(replace(first, question="Which digit is red?"))["note"] == said


def test_nothing_asked_shows_what_to_do(explorer: Any):
    assert explorer.look(ExplorerState())["note"] == "Drop a picture here, or type a question."
    assert explorer.prompt(ExplorerState()) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"heads": (cl.Head(9, 0),)}, "L9H0 does not exist"),
        ({"ablated": (cl.Head(0, 99),)}, "L0H99 does not exist"),
        ({"heads": tuple(cl.Head(0, head) for head in range(7))}, "7 heads are chosen"),
        ({"token": 3}, "position 3 is not one of the question"),
        ({"metric": "nonsense"}, "no measure 'nonsense'"),
        ({"regions": (cl.Evidence(cl.Box(0, 0, 999, 5)),)}, "is not a region of picture 0"),
        ({"regions": (cl.Evidence(media=3),)}, "media"),
        ({"sample": "other"}, "no sample 'other'"),
        ({"sample": "", "pictures": ("lost",)}, "not here any more"),
    ],
)
def test_what_there_is_not_is_refused_by_name(explorer: Any, first: Any, change: Any, said: str):
    with pytest.raises(ValueError, match=said):
        explorer.look(replace(first, **change))


def test_galleries_and_scores_that_do_not_fit_are_refused(toy_model: Any, scenes: Any, scores: Any):
    with pytest.raises(ValueError, match="at most 100 samples"):
        Explorer(toy_model, toy.scenes(1000, seed=0))
    with pytest.raises(ValueError, match="same id"):
        Explorer(toy_model, [scenes[0], scenes[0]])
    with pytest.raises(ValueError, match=r"\(6, 2\) layers and heads, and the model has \(6, 16\)"):
        Explorer(toy_model, scenes, replace(scores, values=scores.values[..., :2]))
    mean = replace(Explorer(toy_model).first(), question="what is 1 plus 2 ?", ablated=(cl.Head(0, 0),), how="mean")
    with pytest.raises(ValueError, match="no gallery whose mean"):
        Explorer(toy_model).look(mean)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_pictures_of_browsers_are_decoded(kind: str):
    file = io.BytesIO()
    Image.new("RGB", (8, 4), "red").save(file, kind)
    picture = decoded(file.getvalue())
    assert (picture.size, picture.mode) == ((8, 4), "RGB")


def test_bad_files_are_refused(monkeypatch: pytest.MonkeyPatch):
    tiff, huge = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (8, 4)).save(tiff, "TIFF")
    Image.new("1", (6000, 5000)).save(huge, "PNG")
    for data in (b"", b"text", tiff.getvalue(), b"\x80\x04\x95pickle", b"%!PS-Adobe-3.0 EPSF-3.0\n"):
        with pytest.raises(ValueError, match="no picture that can be read"):
            uploads.decoded(data)
    with pytest.raises(ValueError, match="6000 x 5000 pixels; at most 24 million"):
        uploads.decoded(huge.getvalue())
    with pytest.raises(ValueError, match="damaged"):
        uploads.decoded(png()[:2000])
    monkeypatch.setattr(uploads, "MOST_BYTES", 100)
    with pytest.raises(ValueError, match="at most"):
        uploads.decoded(png())


def test_only_the_last_own_pictures_are_kept(toy_model: Any):
    explorer = Explorer(toy_model)
    for number in range(MOST_UPLOADS + 1):
        explorer.prompts.add_picture(str(number), "a.png", png((4, 4)))
    assert list(explorer.prompts.uploads) == [str(number) for number in range(1, MOST_UPLOADS + 1)]


# --- long work, and other models ---


def test_a_view_nobody_waits_for_stops_between_layers(toy_model: Any, scenes: Any, inputs: Any):
    explorer = Explorer(toy_model, scenes)
    first = explorer.first()
    calls = []

    def cancelled() -> bool:
        calls.append(None)
        return len(calls) > 40

    with pytest.raises(Cancelled):
        explorer.look(replace(first, metric="effect"), cancelled)
    assert len(calls) == 41
    assert not any(module._forward_pre_hooks for module in toy_model.hf_model.modules())
    assert explorer.look(first) == Explorer(toy_model, scenes).look(first)


@pytest.mark.parametrize("metric", ["ram", "write_ram", "entropy", "sink_share"])
@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_measuring_after_a_prefix_is_measuring_a_whole_pass(name: str, metric: str):
    model = cl.HookedMLLM(tiny.build(name))
    inputs = tiny.batch(name, padded=False)
    role = torch.where(inputs["input_ids"] == tiny.IMAGE, int(Role.IMAGE), int(Role.QUESTION))
    rest = {column: -torch.ones_like(role) for column in ("media", "view", "row", "column")}
    nan = torch.full((*role.shape, 4), torch.nan)
    tokens = cl.TokenMap(role, overview=role < 0, box=nan, seconds=nan[..., :2], sizes=((), ()), **rest)
    asked = ScoringInputs(tokens, role == Role.IMAGE, {"last": tokens.last}, -torch.ones_like(role))
    one = PRESETS.get(metric, metric)
    whole = score_heads(model, inputs, asked, [one])[metric]
    after = score_heads(model, inputs, asked, [one], model.prefix(inputs, role.shape[1] - 4))[metric]
    print("largest difference", float((whole - after).abs().max()))
    torch.testing.assert_close(after, whole, rtol=1e-3, atol=1e-5)


# --- code ---


def changed_states(first: Any) -> list[Any]:
    box = (cl.Evidence(cl.Box(16, 16, 60, 60)),)
    core = (cl.Head(2, 4), cl.Head(3, 14))
    return [
        first,
        replace(first, heads=core, ablated=core, metric="entropy"),
        replace(first, ablated=core, how="mean", moment="before", metric="write_ram"),
        replace(first, regions=box, token=72, metric="visual_share"),
        replace(first, heads=core, regions=box, blind="chosen", evidence=box, question="which digit is red ?"),
        replace(first, metric="effect", ablated=core),
        replace(first, metric="scan", heads=()),
    ]


@pytest.mark.parametrize("number", range(7))
def test_code_reproduces_the_view(toy_model: Any, explorer: Any, first: Any, scenes: Any, scores: Any, number: int):
    state = changed_states(first)[number]
    view = explorer.look(state)
    made: dict[str, Any] = {"model": toy_model, "samples": scenes, "scores": scores}
    exec(compile(view["code"], "view.py", "exec"), made)
    assert np.allclose(np.array(view["map"], float), made["values"], rtol=2e-3, atol=1e-4)
    assert [shown["head"] for shown in view["maps"]] == [str(head) for head in made["rows"]]
    for shown in view["maps"]:
        row = made["rows"][cl.Head.parse(shown["head"])]
        assert np.allclose(shown["cells"], made["tokens"].grid(row).flatten(), **CLOSE)
    for moment in ("before", "after"):
        ids, probability, first_token = made[moment]
        assert toy_model.processor.tokenizer.decode(ids[0]) == view[moment]["text"]
        assert np.isclose(view[moment]["probability"], probability, **CLOSE)
        shown = [row[moment] for row in view["alternatives"]]
        tokens = toy_model.processor.tokenizer.convert_tokens_to_ids([row["text"] for row in view["alternatives"]])
        assert np.allclose(shown, first_token[tokens], **CLOSE)


def test_code_for_own_pictures_reads_their_files(
    toy_model: Any, explorer: Any, first: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
):
    name = "it's mine.png"
    (tmp_path / name).write_bytes(png())
    monkeypatch.chdir(tmp_path)
    explorer.prompts.add_picture("quoted", name, png())
    state = replace(first, sample="", pictures=("quoted",), question='"red" ?', metric="visual_share")
    view = explorer.look(state)
    made: dict[str, Any] = {"model": toy_model}
    exec(compile(view["code"], "view.py", "exec"), made)
    assert np.allclose(np.array(view["map"], float), made["values"], **CLOSE)


# --- the widget ---


def test_the_widget_shows_what_its_state_says(toy_model: Any, scenes: Any, scores: Any):
    widget = cl.explore(toy_model, islice(scenes, 2), scores=scores)
    assert widget.view["before"]["text"] == "green"
    assert widget.heads.heads == (cl.Head(2, 10),)
    widget.state = {**widget.state, "ablated": ["L2H4", "L2H6", "L2H10"]}
    assert widget.view["state"]["ablated"] == ["L2H4", "L2H6", "L2H10"]
    assert widget.view["after"]["probability"] < 0.9
    assert 'cl.HeadSet.parse("L2H4, L2H6, L2H10")' in widget.code
    widget.state = {**widget.state, "sample": scenes[1].id}
    assert widget.prompt["question"] == scenes[1].question
    before = widget.view
    widget.state = {**widget.state, "heads": ["L9H9"]}
    assert widget.error.startswith("L9H9 does not exist")
    assert widget.view == before


def test_pictures_dropped_into_the_widget_are_asked_about(toy_model: Any, scenes: Any):
    widget = cl.explore(toy_model, scenes[0])
    state = {**widget.state, "sample": "", "pictures": ["k"], "question": "what is red ?", "metric": "visual_share"}
    # In either order, since messages of a front end may hold both.
    widget.state = state
    assert "not here" in widget.error
    widget.uploads = {"k": {"name": "a.png", "data": base64.b64encode(png()).decode()}}
    assert not widget.error
    assert widget.prompt["question"] == "what is red ?"
    widget.uploads = {"l": {"name": "a.png", "data": "no base64!"}}
    assert widget.error


def test_a_picture_and_a_question_are_explored(toy_model: Any, scenes: Any, tmp_path: Any):
    scenes[0].images[0].save(tmp_path / "scene.png")
    widget = cl.explore(toy_model, tmp_path / "scene.png", scenes[0].question)
    assert widget.view["before"]["text"] == scenes[0].answer
    assert widget.state["metric"] == "visual_share"


def test_messages_of_a_large_model_stay_small():
    """32 layers of 32 heads and 4,096 visual tokens, with as many maps as are shown at a time."""
    heads = _short(torch.rand(32, 32))
    cells = _short(torch.rand(MOST_MAPS, 4096).softmax(-1))
    assert len(json.dumps([heads, cells])) < 400_000
