"""Views of the explorer equal the results of the library's own calls."""

import base64
import io
import json
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image

import corelens as cl
from corelens import HeadScores, HookedMLLM, Sample, toy
from corelens.explorer import Explorer
from corelens.explorer.prompts import NEED_EVIDENCE, NEED_NO_EVIDENCE
from corelens.explorer.state import ExplorerState
from corelens.explorer.view import MAX_MAPS, _rounded
from corelens.inputs.prepare import PreparedInputs
from tests.helpers.explorer import CLOSE, png


def test_the_map_is_the_attention_of_the_chosen_head_and_token(
    toy_model: HookedMLLM, explorer: Explorer, first: ExplorerState, inputs: PreparedInputs
):
    head, position = cl.Head(2, 4), int(inputs.tokens.question[0].nonzero()[2])
    view = explorer.view(replace(first, heads=(head,), token=position))
    query = torch.zeros_like(inputs.tokens.last)
    query[0, position] = True
    _, cache = toy_model.run_with_cache(inputs, queries=query)
    row = cache["pattern", 2][0, 4, 0]
    (attention_map,) = view["maps"]
    assert np.allclose(attention_map["cells"], inputs.tokens.grid(row).flatten(), **CLOSE)
    assert np.isclose(attention_map["on_pictures"], float(row[inputs.tokens.image[0]].sum()), **CLOSE)
    evidence = cl.evidence_tokens([explorer.samples[first.sample]], inputs.tokens)
    assert np.isclose(attention_map["on_evidence"], float(row[evidence[0]].sum()), **CLOSE)
    texts = [token["position"] for token in explorer.prompt(first)["tokens"]]
    assert np.allclose(attention_map["tokens"], row[texts], **CLOSE)


def test_a_token_of_the_answer_shows_what_heads_looked_at_when_the_next_was_produced(
    toy_model: HookedMLLM,
    explorer: Explorer,
    first: ExplorerState,
    inputs: PreparedInputs,
    monkeypatch: pytest.MonkeyPatch,
):
    ids = toy_model.processor.tokenizer.convert_tokens_to_ids(["green", "red", "blue", "?"])
    for module in ("corelens.explorer.compute", "corelens.causal.answers"):  # the toy answers by one word
        monkeypatch.setattr(f"{module}.greedy_answers", lambda *args, **kwargs: [ids])
    explorer.prompts.prepared.clear()
    n = inputs["input_ids"].shape[1]
    view = explorer.view(first)
    assert [token["position"] for token in view["before"]["tokens"]] == [n - 1, n, n + 1, n + 2]
    assert view["query"] == n - 1
    for number in (1, 2, 3):
        state = replace(first, token=n - 1 + number, metric="visual_share")
        shown = explorer.view(state)
        assert shown["query"] == n - 1 + number
        so_far = cl.append_answers(toy_model, inputs, [ids[:number]])  # all that generation has then
        _, cache = toy_model.run_with_cache(so_far)
        row = cache["pattern", first.heads[0].layer][0, first.heads[0].head, -1]
        assert np.allclose(shown["maps"][0]["cells"], so_far.tokens.grid(row).flatten(), **CLOSE)
        on_pictures = cache["pattern", 2][0, :, -1, so_far.tokens.visual[0]].sum(-1)
        assert np.allclose(shown["map"][2], on_pictures, **CLOSE)
        namespace: dict[str, Any] = {"model": toy_model, "samples": explorer.samples.values()}
        exec(compile(shown["code"], "view.py", "exec"), namespace)
        assert np.allclose(shown["map"], namespace["values"], **CLOSE)
        (code_row,) = namespace["rows"].values()
        assert np.allclose(code_row[: len(row)], row, **CLOSE)
    # Other changes may make the answer shorter.
    assert explorer.view(replace(first, token=n + 9))["query"] == n + 2
    with pytest.raises(ValueError, match=f"position {n + 16} has no attention to show"):
        explorer.view(replace(first, token=n + 16))
    explorer.prompts.prepared.clear()


def test_heads_are_coloured_by_the_scores_of_a_scan(
    toy_model: HookedMLLM, explorer: Explorer, first: ExplorerState, scenes: list[Sample]
):
    names = ["ram", "ram_last", "write_ram", "vera", "visual_share", "entropy"]
    scanned = cl.scan_metrics(toy_model, scenes[:1], names)
    for name in names:
        values = np.array(explorer.view(replace(first, metric=name))["map"], float)
        assert np.allclose(values, scanned[name].per_head, **CLOSE), name


def test_effects_are_those_of_a_sweep(
    toy_model: HookedMLLM, explorer: Explorer, first: ExplorerState, inputs: PreparedInputs
):
    view = explorer.view(replace(first, metric="effect"))
    swept = cl.sweep(toy_model, cl.append_answers(toy_model, inputs, [view["before"]["text"]])).scores()
    assert np.allclose(np.array(view["map"], float), swept.values[0], rtol=2e-3, atol=1e-4)


def test_scores_of_a_scan_can_colour_the_heads(explorer: Explorer, first: ExplorerState, scores: HeadScores):
    assert np.allclose(explorer.view(replace(first, metric="scan"))["map"], scores.per_head, **CLOSE)
    assert explorer.about()["core"] == [str(head) for head in scores.top()]


@pytest.mark.parametrize("how", ["zero", "mean"])
def test_ablation_is_that_of_run_with_hooks(
    toy_model: HookedMLLM,
    explorer: Explorer,
    first: ExplorerState,
    scenes: list[Sample],
    inputs: PreparedInputs,
    how: Literal["zero", "mean"],
):
    heads = cl.HeadSet.parse("L2H4, L2H6, L2H10, L3H0, L3H14")
    view = explorer.view(replace(first, ablated=heads.heads, how=how))
    reference = cl.mean_activations(toy_model, scenes) if how == "mean" else None
    hooks = cl.ablate(heads, how, reference, positions="from_question")
    with torch.no_grad():
        plain, changed = (
            toy_model.run_with_hooks(inputs, fwd_hooks=fwd_hooks)[0, -1].softmax(-1) for fwd_hooks in ([], hooks)
        )
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
    answer = tokenizer.convert_tokens_to_ids(view["before"]["text"])
    assert np.isclose(view["after"]["of_plain"], float(changed[answer]), **CLOSE)


def test_the_answer_without_the_marked_heads_is_that_of_ablating_them(explorer: Explorer, first: ExplorerState):
    view = explorer.view(replace(first, ablated=explorer.core))
    assert explorer.view(first)["without_core"] == view["without_core"] == view["after"]["of_plain"]


def test_evidence_that_no_head_can_attend_to_is_reported(explorer: Explorer, first: ExplorerState):
    box = explorer.samples[first.sample].evidence[0].box
    assert box
    hidden = replace(first, regions=(cl.Evidence(box),))
    half = replace(first, regions=(cl.Evidence(cl.Box(box.left, box.top, box.left + 1, box.top + 1)),))
    assert explorer.view(hidden)["hidden"]
    assert not np.array(explorer.view(hidden)["map"]).any()
    for other in (
        first,
        half,
        replace(hidden, blind="chosen"),
        replace(hidden, moment="before"),
        replace(hidden, metric="entropy"),
    ):
        assert not explorer.view(other)["hidden"]


@pytest.mark.parametrize("blind", ["all", "chosen"])
def test_a_hidden_region_is_an_attention_knock_out(
    toy_model: HookedMLLM,
    explorer: Explorer,
    first: ExplorerState,
    inputs: PreparedInputs,
    blind: Literal["all", "chosen"],
):
    box = explorer.samples[first.sample].evidence[0].box
    chosen = (cl.Head(2, 4), cl.Head(2, 10))
    state = replace(first, heads=chosen, regions=(cl.Evidence(box),), blind=blind)
    view = explorer.view(state)
    heads = toy_model.heads if blind == "all" else chosen
    hooks = cl.attention_knockout(heads, "from_question", inputs.tokens.in_box(box))
    with torch.no_grad():
        changed = toy_model.run_with_hooks(inputs, fwd_hooks=hooks)[0, -1].softmax(-1)
    token = toy_model.processor.tokenizer.convert_tokens_to_ids(view["alternatives"][0]["text"])
    assert np.isclose(view["alternatives"][0]["after"], float(changed[token]), **CLOSE)
    assert [attention_map["on_evidence"] for attention_map in view["maps"]] == [0, 0]
    assert (
        max(attention_map["on_evidence"] for attention_map in explorer.view(replace(state, moment="before"))["maps"])
        > 0.5
    )


def test_the_same_state_shows_the_same_and_states_leave_no_trace(
    toy_model: HookedMLLM, explorer: Explorer, first: ExplorerState, inputs: PreparedInputs
):
    before = explorer.view(first)
    logits = toy_model(inputs)
    explorer.view(replace(first, ablated=(cl.Head(2, 4),), metric="entropy"))
    assert explorer.view(first) == before
    assert torch.equal(toy_model(inputs), logits)
    assert not any(point.has_hooks() for point in toy_model.hook_points())


def test_views_and_prompts_are_json(explorer: Explorer, first: ExplorerState):
    for message in (explorer.about(), explorer.view(first), explorer.prompt(first)):
        assert json.loads(json.dumps(message, allow_nan=False)) == message


def test_query_tokens_begin_with_the_question(explorer: Explorer, first: ExplorerState, scenes: list[Sample]):
    tokens = explorer.prompt(first)["tokens"]
    question = [token["text"] for token in tokens if token["role"] == "question"]
    assert " ".join(question) == scenes[0].question
    assert [token["role"] for token in tokens[:1] + tokens[-1:]] == ["question", "structural"]


def test_cells_lie_on_the_pixels_of_the_token_map(explorer: Explorer, first: ExplorerState, inputs: PreparedInputs):
    (panel,) = explorer.prompt(first)["panels"]
    (grid,) = panel["grids"]
    cells = [(left, top, right, bottom) for top, bottom in zip(grid["y"], grid["y"][1:], strict=False)
             for left, right in zip(grid["x"], grid["x"][1:], strict=False)]  # fmt: skip
    assert np.allclose(cells, inputs.tokens.box[inputs.tokens.image], atol=0.01)
    assert (panel["width"], panel["height"]) == (128, 128)
    picture = Image.open(io.BytesIO(base64.b64decode(panel["src"].split(",")[1])))
    assert picture.tobytes() == explorer.samples[first.sample].images[0].tobytes()


def test_a_view_of_an_uploaded_picture_is_that_of_a_prepared_prompt(
    toy_model: HookedMLLM, explorer: Explorer, first: ExplorerState
):
    explorer.prompts.add_picture("key", "mine.png", png())
    explorer.prompts.add_picture("key", "mine.png", b"another, which changes nothing")
    state = replace(first, sample="", pictures=("key", "key"), question="what is red ?", metric="visual_share")
    view, prompt = explorer.view(state), explorer.prompt(state)
    inputs = toy_model.prepare([Image.open(io.BytesIO(png()))] * 2, "what is red ?")
    assert view["before"]["text"] == toy_model.answer(inputs)[0]
    assert [panel["label"] for panel in prompt["panels"]] == ["picture 0", "picture 1"]
    assert len(view["maps"][0]["cells"]) == 128
    assert view["maps"][0]["on_evidence"] is None


def test_marked_evidence_colours_the_heads(
    toy_model: HookedMLLM, explorer: Explorer, first: ExplorerState, inputs: PreparedInputs
):
    state = replace(first, question="which digit is red ?")
    box = cl.Box(16, 16, 32, 32)
    marked = explorer.view(replace(state, evidence=(cl.Evidence(box),)))
    other_inputs = toy_model.prepare(list(explorer.samples[first.sample].images), "which digit is red ?")
    _, cache = toy_model.run_with_cache(other_inputs, queries=other_inputs.tokens.question)
    in_box = other_inputs.tokens.in_box(box)[0]
    assert np.allclose(marked["map"][2], cache["pattern", 2][0][..., in_box].sum(-1).mean(-1), **CLOSE)


def test_without_evidence_heads_are_coloured_by_a_metric_that_needs_none(explorer: Explorer, first: ExplorerState):
    state = replace(first, question="which digit is red ?")
    for needing in NEED_EVIDENCE:
        view = explorer.view(replace(state, metric=needing))
        assert view["map"] == explorer.view(replace(state, metric="visual_share"))["map"]
        assert view["metric"] == "visual_share"
        assert f"“{NEED_EVIDENCE[needing]}” but by “{NEED_NO_EVIDENCE['visual_share']}”" in view["unmarked"]
        assert '"visual_share"' in view["code"]
    assert view["state"]["metric"] == needing  # so that marking the evidence is enough
    for marked in (first, replace(state, evidence=(cl.Evidence(cl.Box(0, 0, 9, 9)),))):
        assert (explorer.view(marked)["metric"], explorer.view(marked)["unmarked"]) == (first.metric, "")
    without_pictures = explorer.view(ExplorerState(question="which digit is red ?", metric="ram"))
    assert without_pictures["metric"] == "entropy"
    assert np.array(without_pictures["map"]).max() > 0


def test_a_note_and_a_warning_name_unknown_words(explorer: Explorer, first: ExplorerState):
    message = "The model does not know all of these words; it reads <unk> in their place."
    assert explorer.prompt(first)["note"] == ""
    with pytest.warns(UserWarning, match=message):
        assert explorer.prompt(replace(first, question="Which digit is red?"))["note"] == message


def test_a_state_without_a_question_shows_a_note(explorer: Explorer):
    assert explorer.view(ExplorerState())["note"] == "Drop a picture here, or type a question."
    assert explorer.prompt(ExplorerState()) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": (cl.Head(9, 0),)}, "L9H0 does not exist"),
        ({"ablated": (cl.Head(0, 99),)}, "L0H99 does not exist"),
        ({"heads": tuple(cl.Head(head % 6, head // 6) for head in range(17))}, "17 heads are chosen"),
        ({"token": 3}, "position 3 has no attention to show; choose one of the question or after it, "),
        ({"metric": "nonsense"}, "no metric 'nonsense' to colour heads by; choose one of ram, "),
        ({"regions": (cl.Evidence(cl.Box(0, 0, 999, 5)),)}, "is not a region of picture 0"),
        ({"regions": (cl.Evidence(media=3),)}, "media"),
        ({"sample": "other"}, "no sample 'other'"),
        ({"sample": "", "pictures": ("lost",)}, "not here any more"),
    ],
)
def test_errors_name_what_does_not_exist(
    explorer: Explorer, first: ExplorerState, change: dict[str, Any], message: str
):
    with pytest.raises(ValueError, match=message):
        explorer.view(replace(first, **change))


def test_galleries_and_scores_that_do_not_fit_are_errors(
    toy_model: HookedMLLM, scenes: list[Sample], scores: HeadScores
):
    with pytest.raises(ValueError, match="at most 100 samples"):
        Explorer(toy_model, toy.scenes(1000, seed=0))
    with pytest.raises(ValueError, match="same id"):
        Explorer(toy_model, [scenes[0], scenes[0]])
    with pytest.raises(ValueError, match=r"\(6, 2\) layers and heads, and the model has \(6, 16\)"):
        Explorer(toy_model, scenes, replace(scores, values=scores.values[..., :2]))
    mean = replace(Explorer(toy_model).first(), question="what is 1 plus 2 ?", ablated=(cl.Head(0, 0),), how="mean")
    with pytest.raises(ValueError, match="no gallery to take mean head outputs from"):
        Explorer(toy_model).view(mean)


def test_messages_of_a_large_model_stay_small():
    """32 layers of 32 heads and 4,096 visual tokens, with as many maps as are shown at a time."""
    heads = _rounded(torch.rand(32, 32))
    cells = _rounded(torch.rand(MAX_MAPS, 4096).softmax(-1))
    assert len(json.dumps([heads, cells])) < 900_000
