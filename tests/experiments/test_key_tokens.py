"""Key tokens of whole data sets: against loops over whole patterns, on models of six families."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from corelens import HeadScores, HeadSet, HookedMLLM, metrics
from corelens.experiments import key_tokens as key_tokens_module
from corelens.experiments.key_token_results import read_key_tokens
from corelens.experiments.key_tokens import rank_and_draw, scan_key_tokens
from corelens.experiments.run_folder import RunFolder
from tests.helpers import tiny_family
from tests.helpers.questions import samples

FAMILIES = ["qwen3_vl", "qwen2_5_vl", "llava", "gemma4", "internvl", "idefics3"]


def build(name: str) -> HookedMLLM:
    family = tiny_family.build(name)
    return HookedMLLM(family.hf_model, family.processor)


@pytest.fixture(scope="module")
def vlm() -> HookedMLLM:
    """A tiny random model that reads pictures."""
    return build("qwen3_vl")


@pytest.fixture(scope="module")
def scores(vlm: HookedMLLM) -> HeadScores:
    return HeadScores(torch.rand(1, 3, 4, generator=torch.Generator().manual_seed(0)), "mass", ("a",))


@torch.no_grad()
def captured_by_loops(model: HookedMLLM, index: int) -> tuple[dict[tuple[int, int], set[int]], int, int]:
    """T_top & V* of every head of one sample by whole patterns, |V*| and L."""
    sample = samples()[index]
    inputs = model.prepare(list(sample.images), sample.question)
    _, cache = model.run_with_cache(inputs)
    evidence = torch.stack([inputs.tokens.in_box(region.box) for region in sample.evidence]).any(0)[0]
    needed, n = set(evidence.nonzero().flatten().tolist()), len(evidence)
    captured = {}
    for layer in range(model.cfg.n_layers):
        pattern = cache["pattern", layer][0]
        for head in range(len(pattern)):
            rows = [pattern[head, query] for query in inputs.tokens.question[0].nonzero().flatten().tolist()]
            mean = sum(rows[1:], rows[0]) / len(rows)
            order = sorted(range(n), key=lambda key: (-float(mean[key]), key))
            captured[layer, head] = set(order[: max(1, math.floor(0.05 * n))]) & needed
    return captured, len(needed), n


@pytest.mark.parametrize("family", FAMILIES)
def test_ratio_and_coverage_are_those_of_loops_over_whole_patterns(family: str):
    model = build(family)
    shape = (model.cfg.n_layers, model.cfg.n_heads)
    scores = HeadScores(torch.rand(1, *shape, generator=torch.Generator().manual_seed(0)), "mass", ("a",))
    rankings = rank_and_draw(scores, seeds=range(2))
    found = scan_key_tokens(model, samples(), rankings, batch_size=3)  # prompts of different length
    for index in range(5):
        captured, n_evidence, n = captured_by_loops(model, index)
        assert (int(found.n_evidence[index]), int(found.n_tokens[index])) == (n_evidence, n)
        for (layer, head), tokens in captured.items():
            assert float(found.ratios.values[index, layer, head]) == pytest.approx(len(tokens) / n_evidence)
        for kind, draws in rankings.items():
            for draw, ranking in enumerate(draws):
                union: set[int] = set()
                for size, head in enumerate(ranking):
                    union |= captured[head]
                    measured = float(found.coverage[kind][index, draw, size])
                    assert measured == pytest.approx(len(union) / n_evidence)


def test_coverage_is_that_of_the_pure_function(vlm: HookedMLLM, scores: HeadScores):
    ranking = scores.top(5)
    found = scan_key_tokens(vlm, samples(1), {"top": [ranking]})
    sample = samples(1)[0]
    inputs = vlm.prepare(list(sample.images), sample.question)
    with torch.no_grad():
        _, cache = vlm.run_with_cache(inputs)
    pattern = torch.stack([cache["pattern", layer][:, head] for layer, head in ranking], 1)
    evidence = torch.stack([inputs.tokens.in_box(region.box) for region in sample.evidence]).any(0)
    for n in range(1, 6):
        expected = metrics.key_token_coverage(pattern[:, :n], evidence, inputs.tokens.question)
        assert_close(found.coverage["top"][:, 0, n - 1], expected)


def test_rankings_are_best_first_worst_first_and_drawn_from_all(scores: HeadScores):
    rankings = rank_and_draw(scores, n=7, seeds=(3, 4, 5))
    assert list(rankings) == ["top", "random", "bottom"]
    assert [len(draws) for draws in rankings.values()] == [1, 3, 1]
    assert list(rankings["top"][0]) == scores.ranked()[:7]
    assert list(rankings["bottom"][0]) == scores.ranked()[::-1][:7]
    assert {len(set(draw)) for draw in rankings["random"]} == {7}
    whole = rank_and_draw(scores)
    assert all(set(draw) == set(scores.ranked()) for draws in whole.values() for draw in draws)
    assert rank_and_draw(scores, seeds=(3,))["random"][0].heads[:7] == rankings["random"][0].heads


def test_hit_rates_average_over_heads_draws_and_samples(vlm: HookedMLLM, scores: HeadScores):
    rankings = rank_and_draw(scores, seeds=range(3))
    found = scan_key_tokens(vlm, samples(), rankings)
    for threshold in (0.5, 0.1):
        rates = found.hit_rates(4, threshold)
        assert list(rates) == ["top", "random", "bottom", "chance"]
        for kind, draws in rankings.items():
            ratios = [float(value) for draw in draws for head in draw.heads[:4] for value in
                      found.ratios.values[:, head.layer, head.head]]  # fmt: skip
            assert rates[kind].ratio == pytest.approx(np.mean(ratios))
            assert rates[kind].hits == pytest.approx(np.mean([ratio >= threshold for ratio in ratios]))
    share = [max(1, n // 20) / n for n in found.n_tokens.tolist()]
    assert found.hit_rates(4)["chance"].ratio == pytest.approx(np.mean(share))
    with pytest.raises(ValueError, match="n=13 heads of ranking 'top', which has 12; take from 1 to 12"):
        found.hit_rates(13)


def test_curves_rise_to_one_end_and_their_intervals_hold_the_mean(vlm: HookedMLLM, scores: HeadScores):
    found = scan_key_tokens(vlm, samples(), rank_and_draw(scores, seeds=range(2)))
    curves = {kind: found.curve(kind) for kind in found.coverage}
    for kind, curve in curves.items():
        assert list(curve.n_heads) == list(range(1, 13))
        assert curve.mean == pytest.approx(found.coverage[kind].mean((0, 1)).numpy())
        assert (np.diff(curve.mean) >= 0).all()
        assert ((curve.low <= curve.mean + 1e-6) & (curve.mean <= curve.high + 1e-6)).all()
        assert curve.mean[-1] == pytest.approx(curves["top"].mean[-1])  # all heads, in any order
    lengths = found.n_tokens.tolist()
    expected = np.mean([[1 - (1 - max(1, n // 20) / n) ** k for k in range(1, 13)] for n in lengths], 0)
    assert found.chance_curve().mean == pytest.approx(expected, abs=1e-6)


def test_no_whole_pattern_is_computed(vlm: HookedMLLM, scores: HeadScores, monkeypatch: pytest.MonkeyPatch):
    shapes = []
    top_tokens = metrics.top_tokens

    def record(pattern: Tensor, queries: Tensor, sequence: Tensor) -> Tensor:
        shapes.append((pattern.shape[2], int(queries.sum(-1).max())))
        return top_tokens(pattern, queries, sequence)

    monkeypatch.setattr(metrics, "top_tokens", record)
    found = scan_key_tokens(vlm, samples(2), {"top": [scores.top(3)]})
    assert len(shapes) == 3
    assert all(n_rows == n_question < int(found.n_tokens.min()) for n_rows, n_question in shapes)


def test_a_finished_run_is_read_and_not_measured_again(
    vlm: HookedMLLM, scores: HeadScores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(key_tokens_module, "SHARD_SIZE", 2)
    rankings = rank_and_draw(scores, seeds=range(2))
    bad = dataclasses.replace(samples(1)[0], id="bad", evidence=())
    with pytest.warns(UserWarning, match="1 of 6 samples cannot be measured"):
        first = scan_key_tokens(vlm, {"x": samples(), "y": [bad]}, rankings, out=tmp_path / "run")
    assert "has no evidence" in first.ratios.skipped["bad"]
    monkeypatch.setattr(key_tokens_module, "run_pattern_hooks", None)
    with pytest.warns(UserWarning, match="1 of 6 samples cannot be measured"):
        again = scan_key_tokens(vlm, {"x": samples(), "y": [bad]}, rankings, out=tmp_path / "run")
    read = read_key_tokens(RunFolder.load(tmp_path / "run"))
    for other in (again, read):
        assert torch.equal(other.ratios.values, first.ratios.values)
        assert (other.ratios.datasets, other.ratios.model) == (first.ratios.datasets, first.ratios.model)
        assert torch.equal(other.n_tokens, first.n_tokens)
        assert {kind: [draw.heads for draw in draws] for kind, draws in other.rankings.items()} == {
            kind: [draw.heads for draw in draws] for kind, draws in rankings.items()
        }
        assert all(torch.equal(other.coverage[kind], first.coverage[kind]) for kind in rankings)
    saved = HeadScores.load(tmp_path / "run" / "key_token_ratio.safetensors")
    assert torch.equal(saved.values, first.ratios.values)
    with pytest.raises(ValueError, match="holds another run: rankings"):
        scan_key_tokens(vlm, {"x": samples(), "y": [bad]}, {"top": [scores.top(2)]}, out=tmp_path / "run")


def test_mistakes_are_named_before_a_pass(vlm: HookedMLLM, scores: HeadScores):
    top = scores.top(3)
    for rankings, options, message in (
        (
            {"top": [top, scores.top(2)]},
            {},
            r"'top' has rankings of \[2, 3\] heads; it needs one or more of one length",
        ),
        ({"top": []}, {}, r"'top' has rankings of \[\] heads"),
        ({"top": [HeadSet(())]}, {}, r"'top' has rankings of \[0\] heads"),
        ({"top": [HeadSet.parse("L3H0")]}, {}, "L3H0"),
        ({"top": [top]}, {"rule": "fraction"}, "rule='fraction' weights tokens"),
        ({"top": [top]}, {"batch_size": 0}, "batch_size=0 is less than one"),
    ):
        with pytest.raises(ValueError, match=message):
            scan_key_tokens(vlm, samples(1), rankings, **options)
