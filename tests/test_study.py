"""The study's verdicts: on numbers made up, where the answer is known, and on the shipped and untrained models."""

import html
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch


def scores(values: torch.Tensor, datasets: tuple[str, ...] = ()) -> Any:
    from corelens import HeadScores

    return HeadScores(values, "ram", tuple(map(str, range(len(values)))), datasets=datasets)


def effect(low: float, high: float, **need: float) -> Any:
    from corelens.study import Effect

    return Effect("number", (low + high) / 2, float(low), float(high), **need)


def verdict(*effects: Any) -> str:
    from corelens.study import Finding

    return Finding("claim", "rule", effects).verdict


def test_a_verdict_needs_every_interval_and_falls_with_one():
    inside, across, outside = effect(2, 3, at_least=2.0), effect(1, 3, at_least=2.0), effect(1, 1.9, at_least=2.0)
    reported = effect(0, 0)
    assert verdict(inside, reported) == "supported"
    assert verdict(inside, across) == "inconclusive"
    assert verdict(inside, across, outside) == "not supported"
    assert verdict(effect(1, 2, at_most=2.0)) == "supported"
    assert verdict(effect(2.1, 3, at_most=2.0)) == "not supported"
    assert verdict(reported) == verdict() == verdict(effect(math.nan, math.nan, at_least=1.0)) == "inconclusive"


def test_what_would_change_a_verdict_names_the_numbers():
    from corelens.study import Finding

    finding = Finding("claim", "rule", (effect(1, 3, at_least=2.0), effect(5, 6, at_least=4.0)))
    assert finding.would_change == "All of: number at least 2, was 2 [1, 3]. More samples narrow the intervals."
    assert finding.to_json()["effects"][1] == {
        "name": "number", "value": 5.5, "low": 5.0, "high": 6.0, "needed": "at least 4", "met": True
    }  # fmt: skip


def test_small_numbers_survive_their_file():
    from corelens.study import Finding

    (one,) = Finding("claim", "rule", (effect(1.234567e-9, 3e-7),)).to_json()["effects"]
    assert (one["low"], one["high"]) == (1.2346e-9, 3e-7)


def test_an_interval_holds_the_mean_as_often_as_it_says():
    from corelens.study.finding import estimate

    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(40):
        drawn = rng.normal(size=50)
        found = estimate("mean", lambda i, drawn=drawn: float(drawn[i].mean()), [""] * 50)
        hits += found.low <= 0 <= found.high
    assert 34 <= hits <= 40


def test_samples_are_drawn_within_their_data_sets():
    from corelens.study.finding import estimate

    names = ["a"] * 3 + ["b"] * 5
    seen = estimate("share", lambda i: float((i < 3).mean()), names)
    assert (seen.low, seen.high) == (3 / 8, 3 / 8)


@pytest.mark.usefixtures("few_draws")
def test_sparsity_is_supported_where_two_of_forty_heads_hold_all_and_not_where_all_hold_alike():
    from corelens.study import sparsity

    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(30, 4, 10, generator=generator)
    sparse = noise * 0.01
    sparse[:, 1, :2] += 1
    assert sparsity(scores(sparse), scores(noise)).verdict == "supported"
    assert sparsity(scores(noise), scores(noise.flip(0))).verdict == "not supported"


def test_the_gini_coefficient_of_one_head_that_holds_all_is_what_the_formula_says():
    from corelens.study.sparsity import _gini

    one = torch.zeros(2, 1, 10)
    one[:, 0, 3] = 1
    assert _gini(one) == pytest.approx(0.9)
    assert _gini(torch.ones(2, 1, 10)) == pytest.approx(0, abs=1e-6)


@pytest.mark.usefixtures("few_draws")
def test_generality_needs_the_same_heads_in_both_data_sets():
    from corelens.study import generality

    generator = torch.Generator().manual_seed(0)
    datasets = ("a",) * 20 + ("b",) * 20
    own = torch.rand(40, generator=generator)
    same = own.view(4, 10) + 0.1 * torch.rand(40, 4, 10, generator=generator)
    other = same.clone()
    other[20:] = other[20:].flatten(1).flip(1).view(20, 4, 10)
    untrained = scores(torch.rand(40, 4, 10, generator=generator), datasets)
    assert generality(scores(same, datasets), untrained).verdict == "supported"
    assert generality(scores(other, datasets), untrained).verdict == "not supported"
    alone = generality(scores(same[:20], ("a",) * 20), untrained)
    assert alone.verdict == "inconclusive"
    assert "two or more" in alone.notes[0]


def test_division_needs_core_heads_that_look_narrowly():
    from corelens.study import division
    from corelens.study.division import MEASURES

    generator = torch.Generator().manual_seed(0)

    def measured(core: float, others: float) -> Any:
        values = others + 0.01 * torch.rand(20, 4, 10, generator=generator)
        values[:, 1, :2] += core - others
        return scores(values)

    ram = measured(0.9, 0.05)
    core = ram.top(0.05)
    narrow: dict[str, Any] = dict(
        zip(MEASURES, [measured(1, 4), measured(0.9, 0.1), measured(0.9, 0.5), measured(0, 2)], strict=True)
    )
    assert division(ram, narrow, core).verdict == "supported"
    assert "less scattered in 100%" in division(ram, narrow, core).notes[0]
    assert division(ram, narrow | {"entropy": measured(3.9, 4)}, core).verdict == "not supported"


def conditions(**accuracy: float) -> Any:
    """Accuracy by condition, on forty questions about pictures and forty without."""
    from corelens import Conditions, HeadSet

    values = {}
    for name, own in accuracy.items():
        condition, _, of = name.partition("__")
        right = (torch.arange(40) < round(40 * own)).float()
        values[condition] = torch.cat([values[condition][:40, 0], right])[:, None] if of else right.repeat(2)[:, None]
    nobody = HeadSet(())
    datasets = ("scenes",) * 40 + ("copy",) * 40
    return Conditions({name: [nobody] for name in values}, values, tuple(map(str, range(80))), datasets, {})


def test_necessity_needs_a_cost_that_neither_controls_nor_text_share():
    from corelens.study import necessity

    kept = {"plain": 0.9, "next-ranked": 0.85}
    needed = conditions(**kept, top=0.1, top__text=0.9)
    mean = {"mean": needed}
    assert necessity(needed, mean, ["copy"]).verdict == "supported"
    assert necessity(conditions(**kept, top=0.1, top__text=0.1), mean, ["copy"]).verdict == "not supported"
    worse = conditions(**kept | {"next-ranked": 0.1}, top=0.1, top__text=0.9)
    assert necessity(worse, mean, ["copy"]).verdict == "not supported"
    assert necessity(needed, {"mean": conditions(plain=0.9, top=0.9)}, ["copy"]).verdict == "not supported"
    assert necessity(conditions(plain=0.0, top=0.0), {}, []).verdict == "not supported"


def test_acceleration_needs_speed_and_accuracy():
    from corelens import Accelerated
    from corelens.sparse.speed import Speed
    from corelens.study import acceleration

    def found(core: float) -> Any:
        right = {"plain": 0.9, "core 5%": core, "random 5%": 0.2}
        values = {name: (torch.arange(100) < 100 * own).float()[:, None] for name, own in right.items()}
        none: dict[str, Any] = {name: [] for name in values}
        kept = {name: torch.ones(100, 1) for name in values}
        return Accelerated(none, values, tuple(map(str, range(100))), ("a",) * 100, {}, kept)

    def rounds(ratio: float) -> list[dict[str, Speed]]:
        return [{"plain": Speed(one * ratio, 1.0, 1), "core 5%": Speed(one, 1.0, 1)} for one in (1.0, 1.1, 1.2)]

    assert acceleration(found(0.9), rounds(2.0), 9).verdict == "supported"
    assert acceleration(found(0.9), rounds(1.1), 9).verdict == "not supported"
    assert acceleration(found(0.5), rounds(2.0), 9).verdict == "not supported"


# --- the whole study, small ------------------------------------------------------------------------------------------


def data(n: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scenes of few digits and of many as two data sets, and a text task."""
    from corelens.toy import worlds

    pictures = {"few": list(worlds.scenes(n, 0, n_things=3)), "many": list(worlds.scenes(n, 0))}
    return pictures, {"copy": list(worlds.texts(n, 0, "copy"))}


def small() -> Any:
    from corelens.study.run import Size

    return Size(seeds=1, doses=(0.2,), operations=(("mean", "both"),), budgets=(0.05,), rounds=1)


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corelens.study.finding.N_DRAWS", 40)


def verdicts(study: Any) -> list[str]:
    return [finding.verdict for finding in study.findings]


@pytest.mark.usefixtures("few_draws")
def test_an_untrained_model_has_no_sparsity_no_division_and_nothing_to_lose(toy: Any, tmp_path: Path):
    from transformers import AutoModelForImageTextToText

    import corelens as cl
    from corelens.study import run_study

    torch.manual_seed(1)
    fresh = AutoModelForImageTextToText.from_config(toy.hf_model.config, dtype=toy.hf_model.dtype).eval()
    study = run_study(cl.HookedMLLM(fresh, toy.processor), *data(8), tmp_path, small(), max_new_tokens=2)
    found = verdicts(study)
    assert [found[claim] for claim in (0, 2, 3)] == ["not supported"] * 3
    assert "supported" not in found


@pytest.mark.usefixtures("few_draws")
def test_the_shipped_organism_is_sparse_and_needs_its_top_heads_and_the_study_resumes(toy: Any, tmp_path: Path):
    from corelens.reports import write_report
    from corelens.study import run_study
    from corelens.study.report import save

    study = run_study(toy, *data(12), tmp_path, small(), max_new_tokens=2)
    found = verdicts(study)
    assert (found[0], found[3]) == ("supported", "supported")
    result = save(study, tmp_path, {"data": "scenes"})
    assert json.loads((tmp_path / "study.json").read_text()) == result
    page = (tmp_path / "study.html").read_text()
    for finding in study.findings:
        assert html.escape(finding.rule) in page
        assert html.escape(finding.would_change) in page
        assert f"<h2>{html.escape(finding.claim)}: {finding.verdict}</h2>" in page
        for one in finding.effects:
            assert html.escape(one.name) in page
    (tmp_path / "study.html").unlink()
    assert write_report(tmp_path) == tmp_path / "study.html"
    assert (tmp_path / "study.html").read_text() == page
    parts = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    (tmp_path / "scan" / "parts" / "00000.parquet").unlink()
    again = run_study(toy, *data(12), tmp_path, small(), max_new_tokens=2)
    assert [one.to_json() for one in again.findings[:4]] == [one.to_json() for one in study.findings[:4]]
    unchanged = [path for path, written in parts.items() if path.stat().st_mtime_ns == written]
    assert len(unchanged) == len(parts) - 1


def test_an_untrained_model_is_the_same_every_time_and_leaves_chance_alone(toy: Any):
    from corelens.study.run import untrained

    before = torch.random.get_rng_state()
    one, other = (dict(untrained(toy).hf_model.named_parameters()) for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(before, torch.random.get_rng_state())
    trained = dict(toy.hf_model.named_parameters())
    assert not any(torch.equal(one[name], trained[name]) for name in one if one[name].std() > 0)


def test_halves_share_no_sample_and_costs_count_them():
    from corelens.study.run import costs, halves

    pictures, texts = data(9)
    found, seen = halves(pictures)
    assert [(len(own), len(seen[name])) for name, own in found.items()] == [(5, 4), (5, 4)]
    assert not {sample.id for sample in found["few"]} & {sample.id for sample in seen["few"]}
    expected = costs(pictures, texts, small())
    assert expected["scan"] == (10, 1)
    assert expected["ablate"] == (8 + 9, 1 + 5 + 2)
    with pytest.raises(ValueError, match="few has 3 samples; a study needs four or more of each"):
        halves({"few": pictures["few"][:3]})


def test_all_but_some_heads_blinded_is_the_knock_out_of_the_others(toy: Any):
    import corelens as cl
    from corelens.toy import worlds

    pictures = list(worlds.scenes(6, 0))
    heads = cl.HeadSet.parse("L3H14, L3H0, L2H10")
    found = cl.ablate_all(toy, pictures, {"blind": [heads]}, "blind", max_new_tokens=2)
    hooks = cl.knock_out(heads, "from_question", "image")
    said = cl.answers(toy, list(cl.prepared_batches(toy, pictures, 6, "prepare")), hooks, 2)
    assert found.values["blind"][:, 0].nan_to_num().tolist() == said.scores.tolist()
    assert found.accuracies("blind", "") < found.accuracies("plain", "")


def test_the_command_splits_data_sets_and_says_what_it_costs_before_it_starts(tmp_path: Path):
    from typer.testing import CliRunner

    from corelens.cli import app
    from corelens.cli.study import _separate

    assert _separate(["scenes=8,mmlongbench=p,task=x", "charts=3"]) == ["scenes=8", "mmlongbench=p,task=x", "charts=3"]
    ran = CliRunner().invoke(
        app, ["study", "--model", "corelens/nothing", "--data", "scenes=8", "--out", str(tmp_path), "--quick"]
    )
    assert ran.exit_code == 2
    assert "scan: 4 samples x 1 = 4" in ran.output
    few = CliRunner().invoke(app, ["study", "--model", "corelens/toy", "--data", "scenes=2", "--out", str(tmp_path)])
    assert "scenes has 2 samples" in " ".join(few.output.split())
