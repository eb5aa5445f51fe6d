"""Exported code computes the numbers of the view."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import corelens as cl
from corelens import HeadScores, HookedMLLM, Sample
from corelens.explorer import Explorer
from corelens.explorer.state import ExplorerState
from tests.helpers.explorer import CLOSE, png


def changed_states(first: ExplorerState) -> list[ExplorerState]:
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
def test_code_reproduces_the_view(
    toy_model: HookedMLLM,
    explorer: Explorer,
    first: ExplorerState,
    scenes: list[Sample],
    scores: HeadScores,
    number: int,
):
    state = changed_states(first)[number]
    view = explorer.view(state)
    namespace: dict[str, Any] = {"model": toy_model, "samples": scenes, "scores": scores}
    exec(compile(view["code"], "view.py", "exec"), namespace)
    assert np.allclose(np.array(view["map"], float), namespace["values"], rtol=2e-3, atol=1e-4)
    assert [attention_map["head"] for attention_map in view["maps"]] == [str(head) for head in namespace["rows"]]
    for attention_map in view["maps"]:
        row = namespace["rows"][cl.Head.parse(attention_map["head"])]
        assert np.allclose(attention_map["cells"], namespace["tokens"].grid(row).flatten(), **CLOSE)
    for moment in ("before", "after"):
        ids, probability, first_token = namespace[moment]
        assert toy_model.processor.tokenizer.decode(ids[0]) == view[moment]["text"]
        assert np.isclose(view[moment]["probability"], probability, **CLOSE)
        probabilities = [row[moment] for row in view["alternatives"]]
        tokens = toy_model.processor.tokenizer.convert_tokens_to_ids([row["text"] for row in view["alternatives"]])
        assert np.allclose(probabilities, first_token[tokens], **CLOSE)


def test_code_for_own_pictures_reads_their_files(
    toy_model: HookedMLLM, explorer: Explorer, first: ExplorerState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    name = "it's mine.png"
    (tmp_path / name).write_bytes(png())
    monkeypatch.chdir(tmp_path)
    explorer.prompts.add_picture("quoted", name, png())
    state = replace(first, sample="", pictures=("quoted",), question='"red" ?', metric="visual_share")
    view = explorer.view(state)
    namespace: dict[str, Any] = {"model": toy_model}
    exec(compile(view["code"], "view.py", "exec"), namespace)
    assert np.allclose(np.array(view["map"], float), namespace["values"], **CLOSE)
