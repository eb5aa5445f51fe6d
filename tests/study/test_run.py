"""The study's verdicts: on numbers made up, where the answer is known, and on the shipped and untrained models."""

import html
import json
import math
import re
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from transformers import AutoModelForImageTextToText
from typer.testing import CliRunner

import corelens as cl
import corelens.study
from corelens import ConditionResults, HeadScores, HeadSet, SparseResults, toy
from corelens.cli import app
from corelens.cli.options import _separate
from corelens.experiments.sparse_eval import Speed
from corelens.metrics import spearman
from corelens.reports import write_report
from corelens.reports.study import _sparsity, save
from corelens.sparse import Full, HeadPlan
from corelens.study import Finding, Measurement, StudyBudget, acceleration, division, necessity, run_study, sparsity
from corelens.study.acceleration import Timing, timing
from corelens.study.budget import Throughput, halves, planned_work
from corelens.study.division import MEASURES
from corelens.study.sparsity import EXCESS, _gini
from corelens.study.verdict import estimate, estimate_mean, p_value


def scores(values: torch.Tensor, datasets: tuple[str, ...] = ()) -> Any:
    return HeadScores(values, "ram", tuple(map(str, range(len(values)))), datasets=datasets)


def effect(low: float, high: float, **need: float) -> Any:
    return Measurement("number", (low + high) / 2, float(low), float(high), **need)


def verdict(*effects: Any) -> str:
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
    finding = Finding("claim", "rule", (effect(1, 3, at_least=2.0), effect(5, 6, at_least=4.0)))
    assert finding.would_change == (
        "All of these, with their whole intervals: number at least 2, was 2 [1, 3]. More samples narrow the intervals."
    )
    assert finding.to_json()["effects"][1] == {
        "name": "number", "value": 5.5, "low": 5.0, "high": 6.0, "said": "5.5 [5, 6]", "needed": "at least 4",
        "met": True,
    }  # fmt: skip


def test_small_numbers_survive_their_file():
    (one,) = Finding("claim", "rule", (effect(1.234567e-9, 3e-7),)).to_json()["effects"]
    assert (one["low"], one["high"]) == (1.234567e-9, 3e-7)


def test_an_interval_holds_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(40):
        drawn = rng.normal(size=50)
        found = estimate("mean", lambda i, drawn=drawn: float(drawn[i].mean()), [""] * 50)
        hits += found.low <= 0 <= found.high
    assert 34 <= hits <= 40


def test_an_interval_holds_a_number_that_drawing_again_lowers():
    one, other = torch.randn(2, 12, 5, 8, generator=torch.Generator().manual_seed(0))
    one, other = (own + 2 * torch.linspace(0, 1, 40).view(5, 8) for own in (one, other))
    found = estimate("rank correlation", lambda i: spearman(one[i].mean(0), other[i].mean(0)), [""] * 12)
    draws = [spearman(one[i].mean(0), other[i].mean(0)) for i in np.random.default_rng(0).integers(12, size=(200, 12))]
    assert found.low < found.value < found.high
    assert found.high - found.low == pytest.approx(np.subtract(*np.quantile(draws, [0.975, 0.025])), rel=0.3)


def test_a_correlation_that_few_samples_lower_is_found_as_often_as_the_interval_says():
    """Two data sets about the same heads: were there no noise, their ranks would agree."""
    rng = np.random.default_rng(0)
    heads = np.linspace(0, 1, 40)
    hits, lowered = 0, 0
    for _ in range(20):
        one, other = (torch.from_numpy(heads + rng.normal(size=(50, 40))).view(50, 5, 8) for _ in range(2))

        def of(i: np.ndarray, one: torch.Tensor = one, other: torch.Tensor = other) -> float:
            return spearman(one[i].mean(0), other[i].mean(0))

        found = estimate("rank correlation", of, [""] * 50, within=(-1, 1))
        hits += found.high >= 0.97
        lowered += of(np.arange(50)) < found.value
    assert hits >= 14
    assert lowered == 20


def test_twenty_alike_do_not_say_that_all_others_are():
    alike = estimate_mean("share", np.zeros((20, 1)), ["a"] * 20, (-1, 1))
    assert (alike.value, alike.low, alike.high) == (0, pytest.approx(-0.12, abs=0.04), pytest.approx(0.12, abs=0.04))
    more = estimate_mean("share", np.zeros((400, 1)), ["a"] * 400, (-1, 1))
    assert -0.01 < more.low < 0
    # Data sets count alike, or by weight.
    values, datasets = np.r_[np.ones((30, 1)), np.zeros((10, 1))], ["a"] * 30 + ["b"] * 10
    assert estimate_mean("mean", values, datasets, (0, 1)).value == 0.5
    assert estimate_mean("difference", values, datasets, (0, 1), weights={"a": 1.0, "b": -2.0}).value == 1.0


def test_what_sums_of_fractions_miss_a_threshold_by_decides_nothing():
    third = 1.0 - 2 / 3 - 1 / 3  # 5.6e-17
    for found in (
        estimate("difference", lambda i: third, [""] * 4, at_most=0.0),
        estimate("difference", lambda i: -third, [""] * 4, at_least=0.0),
        estimate_mean("difference", np.full((4, 1), -third), ["a"] * 4, (-third, -third), at_least=0.0),
    ):
        assert found.met
        assert str(found) == "0 [0, 0]"


def test_an_interval_of_a_share_holds_it_as_often_as_it_says():
    rng = np.random.default_rng(0)
    for share in (0.0, 0.03, 0.5, 0.97):
        found = [estimate_mean("", 1.0 * (rng.random((40, 1)) < share), ["a"] * 40, (0, 1)) for _ in range(100)]
        assert sum(one.low <= share <= one.high for one in found) >= 90


def test_an_interval_over_random_heads_holds_the_mean_of_all_such_heads():
    rng = np.random.default_rng(0)
    # What heads cost differs by more than what samples do.
    drawn = [0.5 + 0.2 * rng.standard_normal((1, 5)) + 0.1 * rng.standard_normal((40, 5)) for _ in range(200)]
    found = [estimate_mean("cost", own, ["a"] * 20 + ["b"] * 20, (0, 1)) for own in drawn]
    # Five draws are few: with Student's factor of 2.8 in place of the normal one of 2, it would be 95 %.
    assert 160 <= sum(one.low <= 0.5 <= one.high for one in found) <= 195
    taken_as_all = [estimate_mean("cost", own.mean(1, keepdims=True), ["a"] * 40, (0, 1)) for own in drawn]
    assert sum(one.low <= 0.5 <= one.high for one in taken_as_all) < 120


def test_a_test_has_no_interval():
    assert str(p_value("p", 0.012345)) == "0.0123"
    assert (p_value("p", 0.5, at_most=0.05).met, p_value("p", 0.01, at_most=0.05).met) == (None, True)


def test_samples_are_drawn_within_their_data_sets():
    names = ["a"] * 3 + ["b"] * 5
    seen = estimate("share", lambda i: float((i < 3).mean()), names)
    assert (seen.low, seen.high) == (3 / 8, 3 / 8)


@pytest.mark.usefixtures("few_draws")
def test_sparsity_is_supported_where_two_of_forty_heads_hold_all_and_not_where_all_hold_alike():
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(30, 4, 10, generator=generator)
    sparse = noise * 0.01
    sparse[:, 1, :2] += 1
    assert sparsity(scores(sparse), scores(noise)).verdict == "supported"
    assert sparsity(scores(noise), scores(noise.flip(0))).verdict == "not supported"


@pytest.mark.usefixtures("few_draws")
def test_sparsity_says_nothing_of_few_heads_or_of_no_mass():
    few = torch.zeros(10, 1, 8)
    few[..., 0] = 1
    assert sparsity(scores(few), scores(few)).verdict == "inconclusive"
    none = scores(torch.full((10, 4, 10), -0.1))
    some = scores(torch.rand(10, 4, 10))
    assert sparsity(some, none).verdict != "supported"
    assert sparsity(none, some).verdict == "inconclusive"
    for measured, null, curves in ((some, none, 2), (none, some, 1)):
        (figure,) = _sparsity({EXCESS.name: measured}, {EXCESS.name: null})
        assert len({trace.name for trace in figure.data if trace.showlegend is not False and trace.name}) >= curves
    assert _sparsity({EXCESS.name: none}, {EXCESS.name: none}) == []


def test_the_gini_coefficient_of_one_head_that_holds_all_is_what_the_formula_says():
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
    untrained = scores(0.1 * torch.rand(40, 4, 10, generator=generator), datasets)
    assert generality(scores(same, datasets), untrained).verdict == "supported"
    assert generality(scores(other, datasets), untrained).verdict == "not supported"
    alone = generality(scores(same[:20], ("a",) * 20), untrained)
    assert alone.verdict == "inconclusive"
    assert "two or more" in alone.notes[0]


@pytest.mark.usefixtures("few_draws")
def test_other_models_are_compared_by_depth_and_only_alike_ones_by_head():
    from corelens.study import generality

    generator = torch.Generator().manual_seed(0)

    def peaked(layers: int, layer: int) -> Any:
        values = 0.01 * torch.rand(6, layers, 20, generator=generator)
        values[:, layer, :layers] += torch.arange(layers, 0, -1)
        return scores(values, ("a",) * 6)

    one, late, longer = peaked(5, 1), peaked(5, 4), peaked(9, 2)
    found = generality(one, one, {"late": late, "longer": longer, "itself": one})
    effects = {effect.name: effect for effect in found.measurements}
    deeper = "relative depth of top heads, less that in "
    assert [effects[deeper + name].value for name in ("late", "longer", "itself")] == [-0.75, 0, 0]
    assert effects[deeper + "late"].high < 0
    assert (effects["shared by top sets with late"].value, effects["shared by top sets with itself"].value) == (0, 1)
    assert effects["rank correlation with itself"].value == pytest.approx(1)
    assert "shared by top sets with longer" not in effects
    assert "It has 9 layers of 20 heads, this model 5 layers of 20 heads" in found.notes[2]
    assert found.verdict == "inconclusive"  # one data set: other models are not in the rule


def test_division_needs_core_heads_that_look_narrowly():
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
    by_name = {one.name: one.value for one in division(ram, narrow, core).measurements}
    assert by_name["pairs in which the CoRe head's map is less scattered"] == 1
    assert division(ram, narrow | {"entropy": measured(3.9, 4)}, core).verdict == "not supported"


def conditions(**accuracy: float) -> Any:
    """Accuracy by condition, on forty questions about pictures and forty without."""
    values = {}
    for name, own in accuracy.items():
        condition, _, of = name.partition("__")
        right = (torch.arange(40) < round(40 * own)).float()
        values[condition] = torch.cat([values[condition][:40, 0], right])[:, None] if of else right.repeat(2)[:, None]
    nobody = HeadSet(())
    datasets = ("scenes",) * 40 + ("copy",) * 40
    return ConditionResults({name: [nobody] for name in values}, values, tuple(map(str, range(80))), datasets, {})


def test_necessity_needs_a_cost_that_neither_controls_nor_text_share():
    kept = {"plain": 0.9, "next-ranked": 0.9, "random": 0.9, "random, same layers": 0.9}
    needed = conditions(**kept, top=0.1, top__text=0.9)
    mean = {"mean": needed}
    assert necessity(needed, mean, ["copy"]).verdict == "supported"
    assert necessity(conditions(**kept, top=0.1, top__text=0.1), mean, ["copy"]).verdict == "not supported"
    worse = conditions(**kept | {"next-ranked": 0.1}, top=0.1, top__text=0.9)
    assert necessity(worse, mean, ["copy"]).verdict == "not supported"
    assert necessity(needed, {"mean": conditions(plain=0.9, top=0.9)}, ["copy"]).verdict == "not supported"
    assert necessity(conditions(plain=0.0, top=0.0), {}, []).verdict == "not supported"
    # A model that hardly answers has nothing to lose, and one that cannot read is no control.
    assert necessity(conditions(**dict.fromkeys(kept, 0.1), top=0.0), mean, ["copy"]).verdict == "not supported"
    blind = conditions(**kept, top=0.1, plain__text=0.0, top__text=0.0)
    assert necessity(blind, mean, ["copy"]).verdict == "not supported"
    # What was not measured is not met.
    assert necessity(conditions(plain=0.9, top=0.1, top__text=0.9), mean, ["copy"]).verdict == "inconclusive"
    assert necessity(needed, {}, ["copy"]).verdict == "inconclusive"
    assert necessity(needed, mean, []).verdict == "inconclusive"


def test_acceleration_needs_speed_and_accuracy():
    def found(core: float) -> Any:
        right = {"plain": 0.9, "core 5%": core, "random 5%": 0.2}
        values = {name: (torch.arange(100) < 100 * own).float()[:, None] for name, own in right.items()}
        none: dict[str, Any] = {name: [] for name in values}
        kept = {name: torch.ones(100, 1) for name in values}
        return SparseResults(none, values, tuple(map(str, range(100))), ("a",) * 100, {}, kept)

    def timing(ratio: float) -> Timing:
        rounds = [{"plain": Speed(one * ratio, 1.0, 1), "core 5%": Speed(one, 1.0, 1)} for one in (1.0, 1.1, 1.2)]
        return Timing(rounds, 9, "an abacus")

    assert acceleration(found(0.9), timing(2.0)).verdict == "supported"
    assert acceleration(found(0.9), timing(1.1)).verdict == "not supported"
    assert acceleration(found(0.5), timing(2.0)).verdict == "not supported"
    assert "9 positions, the longest, on an abacus" in acceleration(found(0.9), timing(2.0)).notes[0]
    mixed = replace(found(0.5), datasets=("short",) * 50 + ("long",) * 50)
    changes = {one.name: one.value for one in acceleration(mixed, timing(2.0)).measurements}
    assert changes["change of accuracy"] == pytest.approx(-0.4)
    assert changes["change of accuracy, short"] == 0.0
    assert changes["change of accuracy, long"] == pytest.approx(-0.8)
    assert changes["accuracy above random heads', short"] == pytest.approx(0.6)


# --- the whole study, small ------------------------------------------------------------------------------------------


def data(n: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scenes of few digits and of many as two data sets, and a text task."""
    pictures = {"few": list(toy.scenes(n, 0, n_things=3)), "many": list(toy.scenes(n, 0))}
    return pictures, {"copy": list(toy.texts(n, 0, "copy"))}


def small() -> Any:
    return StudyBudget(seeds=1, doses=(0.2,), operations=(("mean", "both"),), budgets=(0.05,), rounds=1)


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corelens.study.verdict.N_DRAWS", 40)


def verdicts(study: Any) -> list[str]:
    return [finding.verdict for finding in study.findings]


@pytest.mark.usefixtures("few_draws")
@pytest.mark.parametrize("seed", [1, 2])
def test_an_untrained_model_has_no_sparsity_no_division_and_nothing_to_lose(toy_model: Any, tmp_path: Path, seed: int):
    torch.manual_seed(seed)
    fresh = AutoModelForImageTextToText.from_config(toy_model.hf_model.config, dtype=toy_model.hf_model.dtype).eval()
    study = run_study(cl.HookedMLLM(fresh, toy_model.processor), *data(40), tmp_path, small(), max_new_tokens=2)
    found = verdicts(study)
    assert [found[claim] for claim in (0, 2, 3)] == ["not supported"] * 3
    assert "supported" not in found


@pytest.mark.usefixtures("few_draws")
def test_the_shipped_organism_is_sparse_and_needs_its_top_heads_and_the_study_resumes(toy_model: Any, tmp_path: Path):
    study = run_study(toy_model, *data(32), tmp_path, small(), max_new_tokens=8)
    found = verdicts(study)
    assert (found[0], found[3]) == ("supported", "supported")
    result = save(study, tmp_path, {"data": "scenes"})
    assert json.loads((tmp_path / "study.json").read_text()) == result
    page = (tmp_path / "study.html").read_text()
    for finding in study.findings:
        assert html.escape(finding.rule) in page
        assert html.escape(finding.would_change) in page
        assert f"<h2>{html.escape(finding.claim)}: {finding.verdict}</h2>" in page
        for one in finding.measurements:
            assert html.escape(one.name) in page
    (tmp_path / "study.html").unlink()
    assert write_report(tmp_path) == tmp_path / "study.html"
    assert (tmp_path / "study.html").read_text() == page
    parts = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    (tmp_path / "scan" / "parts" / "00000.parquet").unlink()
    again = run_study(toy_model, *data(32), tmp_path, small(), max_new_tokens=8)
    # Speed, too, is what was measured the first time.
    assert [one.to_json() for one in again.findings] == [one.to_json() for one in study.findings]
    unchanged = [path for path, written in parts.items() if path.stat().st_mtime_ns == written]
    assert len(unchanged) == len(parts) - 1


def test_an_untrained_model_is_the_same_every_time_and_leaves_chance_alone(toy_model: Any):
    from corelens.study.run import untrained

    assert untrained(toy_model).cfg.model_name == f"{toy_model.cfg.model_name}, untrained"
    before = torch.random.get_rng_state()
    one, other = (dict(untrained(toy_model).hf_model.named_parameters()) for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(before, torch.random.get_rng_state())
    trained = dict(toy_model.hf_model.named_parameters())
    assert not any(torch.equal(one[name], trained[name]) for name in one if one[name].std() > 0)


def test_halves_share_no_sample_and_pieces_count_them(tmp_path: Path):
    pictures, texts = data(9)
    found, seen = halves(pictures)
    assert [(len(own), len(seen[name])) for name, own in found.items()] == [(5, 4), (5, 4)]
    assert not {sample.id for sample in found["few"]} & {sample.id for sample in seen["few"]}
    works = planned_work(pictures, texts, small())
    assert (works["scan"].samples, works["scan"].conditions) == (10, 1)
    assert (works["ablate"].samples, works["ablate"].conditions) == (8 + 9, 1 + 5 + 2)
    assert works["ablate"].left(tmp_path) == works["ablate"].total == 17 * 8
    assert Throughput(2.0, 3.0).of(works["scan"], tmp_path) == 20
    (tmp_path / "ablate" / "parts").mkdir(parents=True)
    (tmp_path / "ablate" / "parts" / "00000.parquet").touch()
    assert Throughput(2.0, 3.0).of(works["ablate"], tmp_path) == 3 * 8  # the seventeenth sample
    with pytest.raises(ValueError, match="few has 3 samples; a study needs four or more of each"):
        halves({"few": pictures["few"][:3]})


def test_all_but_some_heads_blinded_is_the_knock_out_of_the_others(toy_model: Any):
    pictures = list(toy.scenes(6, 0))
    heads = cl.HeadSet.parse("L3H14, L3H0, L2H10")
    found = cl.run_ablation(toy_model, pictures, {"blind": [heads]}, "blind", max_new_tokens=2)
    hooks = cl.attention_knockout(heads, "from_question", "image")
    said = cl.evaluate(toy_model, list(cl.prepare_batches(toy_model, pictures, 6, "prepare")), hooks, 2)
    assert found.values["blind"][:, 0].nan_to_num().tolist() == said.scores.tolist()
    assert found.accuracies("blind", "") < found.accuracies("plain", "")


def pages(folder: Path, n: int) -> Path:
    """Scenes as documents of one page, in the form of MMDocIR."""
    documents, stored = [], []
    for sample in toy.scenes(n, seed=1):
        buffer = BytesIO()
        sample.images[0].save(buffer, "PNG")
        stored.append({"doc_name": sample.id, "passage_id": "0", "image_binary": buffer.getvalue()})
        layout = {"page": 0, "page_size": list(sample.images[0].size), "bbox": list(sample.evidence[0].box)}
        asked = {"Q": sample.question, "A": sample.answer, "page_id": [0], "type": "[]", "layout_mapping": [layout]}
        documents.append(json.dumps({"doc_name": sample.id, "questions": [asked]}))
    (folder / "annotations.jsonl").write_text("\n".join(documents))
    parquet.write_table(pa.Table.from_pylist(stored), folder / "pages.parquet")
    return folder


def study(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["study", "--model", "corelens/toy", *map(str, arguments)])


@pytest.mark.usefixtures("few_draws")
def test_the_command_compares_two_data_sets_and_another_model_behind_one_bar(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(corelens.study, "QUICK", small())
    (tmp_path / "pages").mkdir()
    data = f"scenes=8,mmdocir={pages(tmp_path / 'pages', 8)}"
    options = ["--data", data, "--quick", "--max-new-tokens", 2, "--limit", 8, "--out", tmp_path / "run"]

    ran = study(*options)
    assert ran.exit_code == 0, ran.output
    assert len(re.findall(r"What is left takes about \d+:\d+:\d+, at", ran.output)) == 1
    bars = {line.split(":")[0].strip() for line in re.split(r"[\r\n]", ran.output) if re.search(r"\d+%\|", line)}
    assert bars - {"Loading weights"} == {"timing a few samples", "study"}
    assert re.search(r"study: 100%\|.*\| (\d+)/\1 .*speed\]", ran.output), ran.output
    generality = json.loads((tmp_path / "run" / "study.json").read_text())["findings"][1]
    assert generality["verdict"] != "not supported"
    shared = generality["effects"][0]  # scenes, and scenes as pages of documents
    assert (shared["name"], shared["value"] >= 0.6) == ("shared by top sets", True)
    assert any(note.startswith("MMDocIR: only in its top set: ") for note in generality["notes"])
    page = (tmp_path / "run" / "study.html").read_text()
    assert "top heads that are in the other" in page

    speed = (tmp_path / "run" / "speed.json").read_bytes()
    other = tmp_path_factory.mktemp("other")
    (other / "scan").mkdir()
    deeper = scores(torch.rand(3, 9, 16), ("scenes",) * 3)
    deeper.save(other / "scan" / "ram.safetensors")
    again = study(*options, "--beside", other, "--beside", tmp_path / "run", "--json")
    assert again.exit_code == 0, again.output
    assert "What is left takes about 0:00:00" in again.output
    assert (tmp_path / "run" / "speed.json").read_bytes() == speed
    found = json.loads(again.stdout)["findings"][1]
    by_name = {one["name"]: one["value"] for one in found["effects"]}
    assert by_name[f"shared by top sets with {tmp_path / 'run'}"] == 1
    assert by_name[f"relative depth of top heads, less that in {tmp_path / 'run'}"] == 0
    assert f"shared by top sets with {other}" not in by_name
    assert "It has 9 layers of 16 heads, this model 6 layers of 16 heads" in " ".join(found["notes"])
    assert study(*options, "--time-again").exit_code == 0
    assert (tmp_path / "run" / "speed.json").read_bytes() != speed


def test_the_command_splits_data_sets_and_says_what_it_costs_before_it_starts(tmp_path: Path):
    assert _separate(["scenes=8,mmlongbench=p,task=x", "charts=3"]) == ["scenes=8", "mmlongbench=p,task=x", "charts=3"]
    common = ["--out", tmp_path / "run", "--quick"]
    ran = study("--model", "corelens-tests/nothing", "--data", "scenes=8", *common)
    assert ran.exit_code == 2
    assert "scan: 4 samples x 1 = 4 passes" in ran.output
    for options, words in {
        ("--data", "scenes=2"): "scenes has 2 samples",
        ("--data", "scenes=8,scenes=9"): "two data sets are scenes",
        ("--data", "scenes=8", "--beside", tmp_path): f"{tmp_path} is no finished study",
    }.items():
        assert words in " ".join(study(*options, *common).output.split())
    assert not (tmp_path / "run").exists()


def test_speeds_of_another_prompt_or_of_other_plans_are_not_kept(toy_model: Any, tmp_path: Path):
    samples = (next(toy.scenes(1, 0)), next(toy.texts(1, 0, "sum")))
    one, other = (toy_model.prepare(sample.images, sample.question) for sample in samples)
    plans: Any = {"core 5%": [HeadPlan({}, Full(), name="all")]}
    first = timing(toy_model, one, plans, 1, tmp_path)
    more = timing(toy_model, one, plans, 2, tmp_path)
    assert more.rounds[:1] == first.rounds
    assert len(more.rounds) == 2
    assert timing(toy_model, one, plans, 2, tmp_path) == more
    assert timing(toy_model, one, plans, 1, tmp_path) == first
    assert timing(toy_model, other, plans, 1, tmp_path).positions < first.positions
    assert set(timing(toy_model, other, {}, 1, tmp_path).rounds[0]) == {"plain"}


def test_answers_that_cannot_be_scored_are_refused_before_any_work(toy_model: Any, tmp_path: Path):
    pictures, texts = data(4)
    boxes = {name: [replace(sample, scoring="box") for sample in own] for name, own in pictures.items()}
    with pytest.raises(ValueError, match="state the unit of the model's boxes"):
        run_study(toy_model, boxes, texts, tmp_path, small())
    assert not any(tmp_path.iterdir())
