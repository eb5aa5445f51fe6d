"""States of the explorer: JSON, and its errors."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import corelens as cl
from corelens.explorer.state import ExplorerState


def test_a_state_is_its_json():
    region = cl.Evidence(cl.Box(1, 2, 3, 4), 0, (0.5, 1.0))
    state = ExplorerState(
        "a", ("b",), "why ?", (region,), (cl.Head(1, 2),), 7, "entropy", "score", (cl.Head(3, 4), cl.Head(0, 1)),
        "mean", (region, cl.Evidence()), "chosen", "before", True,
    )  # fmt: skip
    assert ExplorerState.parse(json.loads(json.dumps(state.json()))) == state
    assert ExplorerState.parse(ExplorerState().json()) == ExplorerState()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "a state is a JSON object"),
        ({"head": []}, "a state has no head; it has"),
        ({"heads": ["L1"]}, "the state's heads.0 is wrong: 'L1' is not a head; write layer and head as in L4H2."),
        ({"heads": "L1H1"}, "the state's heads is wrong: 'L1H1': input should be a valid array."),
        ({"how": "nothing"}, "the state's how is wrong: 'nothing': input should be 'zero' or 'mean'."),
        ({"token": 1.5}, "the state's token is wrong: 1.5: input should be a valid integer."),
        (
            {"regions": [{"media": 0, "box": [0, 1, 2]}]},
            "the state's regions.0.box.3 is wrong: [0, 1, 2]: field required.",
        ),
        (
            {"regions": [{"media": 0, "box": [0, 1, 2, float("nan")]}]},
            "the state's regions.0.box.3 is wrong: nan: input should be a finite number.",
        ),
        ({"regions": [{"media": -1}]}, "the state's regions.0 is wrong: media=-1 is negative"),
        ({"evidence": [3]}, "the state's evidence.0 is wrong: 3: input should be an object."),
        ({"question": 3}, "the state's question is wrong: 3: input should be a valid string."),
        ({"token": True}, "the state's token is wrong: True: input should be a valid integer."),
        ({"question": "\ud800"}, "the state's JSON is wrong"),
        ({"question": {1}}, "a state is JSON: Object of type set is not JSON serializable."),
        ({"regions": [{"weight": 1}]}, "the state's regions.0.weight is wrong: 1: unexpected keyword argument."),
        ({"pictures": [None]}, "the state's pictures.0 is wrong: None: input should be a valid string."),
    ],
)
def test_an_error_names_the_field_the_value_and_the_way_out(value: object, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        ExplorerState.parse(value)


words = st.sampled_from(["", "L1H2", "zero", "media", "box", "seconds"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["heads", "regions", "evidence", "token", "how", "pictures"]), json_values))
def test_any_json_is_a_state_or_a_value_error(value: dict[str, Any]):
    try:
        state = ExplorerState.parse(value)
    except ValueError:
        return
    assert ExplorerState.parse(state.json()) == state
