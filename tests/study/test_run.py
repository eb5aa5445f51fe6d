"""Small studies of the shipped model and of untrained ones."""

import html
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

import corelens as cl
from corelens import HookedMLLM, toy
from corelens.experiments.run_folder import MANIFEST, read_manifest, read_summary, write_summary
from corelens.reports.study import page
from corelens.reports.study_folder import save
from corelens.sparse import StreamingBlocks
from corelens.study import run_study
from corelens.study.acceleration import published_counts
from corelens.study.division import every_other
from corelens.study.run import untrained
from tests.helpers.reports import model_code_of_a_report
from tests.helpers.simulated_device import simulated_device, to_device
from tests.helpers.studies import SMALL_BUDGET, head_scores, study_samples


@pytest.mark.nightly
@pytest.mark.usefixtures("few_draws")
def test_an_untrained_model_has_no_sparsity_no_division_and_nothing_to_lose(toy_model: HookedMLLM, tmp_path: Path):
    torch.manual_seed(7)  # not one of those of the study's own untrained models
    hf_model = AutoModelForImageTextToText.from_config(toy_model.hf_model.config, dtype=toy_model.hf_model.dtype).eval()
    model = HookedMLLM(hf_model, toy_model.processor)
    study = run_study(model, *study_samples(16), tmp_path, SMALL_BUDGET, max_new_tokens=2)
    verdicts = [finding.verdict for finding in study.findings]
    assert [verdicts[claim] for claim in (0, 2, 3)] == ["not supported", "not supported", "cannot be tested"]
    # Query tokens and markers are questions about any model's scores.
    assert "supported" not in verdicts[:6]


@pytest.mark.usefixtures("few_draws")
def test_the_shipped_organism_holds_its_mass_in_few_heads_and_fetches_at_the_last_token_and_the_study_resumes(
    toy_model: HookedMLLM, tmp_path: Path
):
    study = run_study(toy_model, *study_samples(24), tmp_path, SMALL_BUDGET, max_new_tokens=8)
    findings = {finding.claim.partition(":")[0]: finding for finding in study.findings}
    assert findings["Query tokens"].verdict == "not supported"
    measured = {measurement.name: measurement for measurement in findings["Sparsity"].measurements}
    assert measured["share of heads that hold half of the mass above uniform attention"].met
    # They look for the evidence at the last token, when the question has been read; before, whatever is asked.
    assert not measured["mass of the top heads, over that under the questions of other samples"].value > 1.5
    summary = save(study, tmp_path, {"data": "scenes"})
    assert read_summary(tmp_path / "study.json") == summary
    written = (tmp_path / "study.html").read_text()
    text = html.unescape(written)
    for finding in study.findings:
        assert finding.rule in text
        assert finding.would_change in text
        assert f"<h2>{finding.claim}: {finding.verdict}</h2>" in text
        for measurement in finding.measurements:
            assert measurement.name in text
    (tmp_path / "study.html").unlink()
    assert model_code_of_a_report(tmp_path) == set()
    assert (tmp_path / "study.html").read_text() == written
    modification_times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    (tmp_path / "scan" / "parts" / "00000.parquet").unlink()
    resumed = run_study(toy_model, *study_samples(24), tmp_path, SMALL_BUDGET, max_new_tokens=8)
    # Speed, too, is that of the first measurement.
    assert [finding.to_json() for finding in resumed.findings] == [finding.to_json() for finding in study.findings]
    unchanged = [path for path, modified in modification_times.items() if path.stat().st_mtime_ns == modified]
    assert len(unchanged) == len(modification_times) - 1
    write_summary(tmp_path / "scan" / MANIFEST, read_manifest(tmp_path / "scan") | {"samples sha256": "of others"})
    with pytest.raises(ValueError, match=r"study\.json is not of the run in scan"):
        page(tmp_path)


@pytest.mark.nightly
@pytest.mark.usefixtures("few_draws")
def test_the_study_runs_where_the_model_is(toy_model: HookedMLLM, tmp_path: Path):
    expected = run_study(toy_model, *study_samples(4), tmp_path / "cpu", SMALL_BUDGET, max_new_tokens=2)
    model = HookedMLLM.from_pretrained("corelens/toy")
    with simulated_device():
        model = HookedMLLM(to_device(model.hf_model), model.processor)
        found = run_study(model, *study_samples(4), tmp_path / "there", SMALL_BUDGET, max_new_tokens=2)
    assert [finding.verdict for finding in found.findings[:5]] == [finding.verdict for finding in expected.findings[:5]]


@pytest.mark.usefixtures("few_draws")
def test_the_papers_plan_runs_where_prompts_are_longer_than_what_it_keeps(
    toy_model: HookedMLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    module = sys.modules[published_counts.__module__]  # the package has a function of the module's name
    monkeypatch.setattr(module, "StreamingBlocks", lambda: StreamingBlocks(1, 2, 8))
    monkeypatch.setattr(module, "PUBLISHED_COUNTS", (5, 50))
    study = run_study(toy_model, *study_samples(4), tmp_path, SMALL_BUDGET, max_new_tokens=2)
    summary = json.loads((tmp_path / "published" / "acceleration.json").read_text())
    assert list(summary["plans"]) == ["plain", "core 5", "random 5"]  # 50 of 96 leave too few others
    assert summary["plans"]["core 5"]["full heads"] == pytest.approx(5 / 96, abs=1e-4)
    assert summary["plans"]["core 5"]["stored cache"] == 1
    names = [measurement.name for measurement in study.findings[5].measurements]
    for plan in ("core 5", "random 5"):
        assert f"change of accuracy, published plan, {plan}" in names
    save(study, tmp_path, {"data": "scenes"})
    text = html.unescape((tmp_path / "study.html").read_text())
    assert "The paper has no numbers about this model." in text
    # As a model of the paper: of each part, what can be compared, or why nothing can.
    study_json = tmp_path / "study.json"
    write_summary(study_json, read_summary(study_json) | {"model": "Qwen/Qwen3-VL-4B-Instruct"})
    text = html.unescape(page(tmp_path).html())
    for part in ("scan", "mask", "key-tokens", "published"):
        assert f"{part}: the run is on few, many" in text or f"{part}: the paper prints nothing" in text


def test_plans_of_the_paper_need_long_prompts_and_enough_heads():
    assert published_counts(4608, 1152) == ()
    assert published_counts(4609, 1152) == (20, 30, 50, 100, 150, 200)
    assert published_counts(4609, 96) == (20, 30)
    assert published_counts(4609, 39) == ()


def test_an_untrained_model_is_the_same_every_time_and_leaves_chance_alone(toy_model: HookedMLLM):
    assert untrained(toy_model, 3).cfg.model_name == f"{toy_model.cfg.model_name}, untrained, seed 3"
    rng_state = torch.random.get_rng_state()
    first, second = (dict(untrained(toy_model, 0).hf_model.named_parameters()) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = dict(untrained(toy_model, 1).hf_model.named_parameters())
    assert not any(torch.equal(first[name], other[name]) for name in first if first[name].std() > 0)
    assert torch.equal(rng_state, torch.random.get_rng_state())
    trained = dict(toy_model.hf_model.named_parameters())
    assert not any(torch.equal(first[name], trained[name]) for name in first if first[name].std() > 0)


def test_all_but_some_heads_blinded_is_the_knock_out_of_the_others(toy_model: HookedMLLM):
    samples = list(toy.scenes(6, 0))
    heads = cl.HeadSet.parse("L3H14, L3H0, L2H10")
    results = cl.run_ablation(toy_model, samples, {"blind": [heads]}, "blind", max_new_tokens=2)
    hooks = cl.attention_knockout(heads, "from_question", "image")
    evaluation = cl.evaluate(toy_model, list(cl.prepare_batches(toy_model, samples, 6, "prepare")), hooks, 2)
    assert results.values["blind"][:, 0].nan_to_num().tolist() == evaluation.scores.tolist()
    assert results.accuracies("blind", "") < results.accuracies("plain", "")


def test_answers_that_cannot_be_scored_are_refused_before_any_work(toy_model: HookedMLLM, tmp_path: Path):
    pictures, texts = study_samples(4)
    with_boxes = {name: [replace(sample, scoring="box") for sample in dataset] for name, dataset in pictures.items()}
    with pytest.raises(ValueError, match="state the unit of the model's boxes"):
        run_study(toy_model, with_boxes, texts, tmp_path, SMALL_BUDGET)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("groups", "first"), [("", "024"), ("ppqqr", "014"), ("pqpqr", "024")])
def test_every_other_picture_describes_the_heads_that_the_rest_chose(groups: str, first: str):
    scores = replace(head_scores(torch.rand(5, 2, 3)), groups=tuple(groups))
    halves = [every_other({"ram": scores}, start)["ram"].samples for start in (0, 1)]
    assert "".join(halves[0]) == first
    assert sorted(halves[0] + halves[1]) == list("01234")
