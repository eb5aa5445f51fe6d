"""The widget in notebooks."""

import base64
import sys
from itertools import islice
from pathlib import Path

import pytest

import corelens as cl
from corelens import HeadScores, HookedMLLM, Sample
from tests.helpers.explorer import png


def test_the_widget_shows_its_state(toy_model: HookedMLLM, scenes: list[Sample], scores: HeadScores):
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


def test_pictures_dropped_into_the_widget_are_part_of_the_prompt(toy_model: HookedMLLM, scenes: list[Sample]):
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


def test_a_picture_and_a_question_are_explored(toy_model: HookedMLLM, scenes: list[Sample], tmp_path: Path):
    scenes[0].images[0].save(tmp_path / "scene.png")
    widget = cl.explore(toy_model, tmp_path / "scene.png", scenes[0].question)
    assert widget.view["before"]["text"] == scenes[0].answer
    assert widget.state["metric"] == "visual_share"


def test_without_anywidget_the_error_names_the_extra(
    toy_model: HookedMLLM, scenes: list[Sample], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delitem(sys.modules, "corelens.explorer.traits", raising=False)
    monkeypatch.setitem(sys.modules, "anywidget", None)
    with pytest.raises(ImportError, match=r"needs anywidget in notebooks: pip install 'corelens\[notebooks\]'"):
        cl.explore(toy_model, scenes)
