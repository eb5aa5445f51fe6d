"""DuoAttention's files: what its readers find in them, and which tokens its cache keeps."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from corelens import Head, HeadSet, HookedMLLM
from corelens.sparse import Full, HeadPlan, Streaming, TopBlocks, hybrid
from corelens.sparse.duo_attention import load_duo_attention, save_duo_attention
from tests.helpers import tiny


@pytest.fixture(scope="module")
def model() -> HookedMLLM:
    return HookedMLLM(tiny.build("llava"))


def test_a_row_is_a_layer_and_a_number_a_kv_head(model: HookedMLLM, tmp_path: Path):
    group_size = model.cfg.n_heads // model.cfg.n_key_value_heads
    assert group_size > 1
    plan = hybrid(HeadSet.parse(f"L0H1,L1H{group_size}"), sink=4, window=32)
    save_duo_attention(plan, model.hf_model, tmp_path / "plan")
    # As `load_attn_pattern` reads it.
    gates = np.loadtxt(tmp_path / "plan" / "full_attention_heads.tsv", dtype=float, delimiter="\t")
    assert gates.shape == (model.cfg.n_layers, model.cfg.n_key_value_heads)
    assert [tuple(place) for place in np.argwhere(gates)] == [(0, 0), (1, 1)]
    config = json.loads((tmp_path / "plan" / "config.json").read_text())
    assert (config["sink_size"], config["recent_size"]) == (4, 31)
    scores, rule = load_duo_attention(tmp_path / "plan", group_size)
    assert rule == Streaming(4, 32)
    expected = torch.zeros(1, model.cfg.n_layers, model.cfg.n_heads)
    expected[0, 0, :group_size] = expected[0, 1, group_size : 2 * group_size] = 1
    assert torch.equal(scores.values, expected)


@pytest.mark.parametrize(("sink", "window"), [(0, 1), (2, 3), (4, 5)])
def test_its_cache_keeps_what_the_rule_lets_a_head_attend_to(sink: int, window: int):
    recent = window - 1
    cached: list[int] = []
    for query in range(12):
        attended = [*cached, query]
        assert attended == [key for key in range(query + 1) if key < sink or key > query - window]
        cached = attended if len(attended) <= sink + recent else attended[:sink] + attended[len(attended) - recent :]


def test_plans_that_it_does_not_have_are_refused(model: HookedMLLM, tmp_path: Path):
    rules = {Head(0, 0): Streaming(1, 2)}
    for plan, message in (
        (HeadPlan(rules, Streaming(4, 32), "query"), "streaming heads of one layer"),
        (HeadPlan(dict.fromkeys(model.heads[: model.cfg.n_heads], Streaming(1, 2)), Streaming(4, 32)), "one rule for"),
        (HeadPlan({}, Streaming(4, 32, keep_text=True)), "keeps no text"),
        (HeadPlan({}, TopBlocks()), "no heads that are TopBlocks"),
        (HeadPlan({}, Full()), "the plan has none"),
    ):
        with pytest.raises(ValueError, match=message):
            save_duo_attention(plan, model.hf_model, tmp_path / "plan")
    hybrid_layers = HookedMLLM(tiny.build("lfm2_vl"))
    with pytest.raises(ValueError, match=r"layer 0 follows no plan"):
        save_duo_attention(hybrid(HeadSet(()), 4, 32), hybrid_layers.hf_model, tmp_path / "plan")
    assert not (tmp_path / "plan").exists()


@pytest.mark.parametrize(("gates", "config"), [("a\tb", "{}"), ("1\tnan", "{}"), ("1\t0", "{}"), ("1\t0", "[]")])
def test_other_files_are_one_error_that_names_the_folder(gates: str, config: str, tmp_path: Path):
    (tmp_path / "full_attention_heads.tsv").write_text(gates)
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match=f"{tmp_path} does not hold DuoAttention's full_attention_heads.tsv"):
        load_duo_attention(tmp_path, 2)
