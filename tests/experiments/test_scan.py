"""Scans against whole patterns, answers against generation, and run folders that survive being killed."""

import dataclasses
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from typer.testing import CliRunner

from corelens import Box, Evidence, HeadScores, HookedMLLM, Role, TokenMap, metrics, scan
from corelens.causal.answers import answer_positions, append_answers, greedy_answers
from corelens.cli import app
from corelens.experiments import scan as scan_module
from corelens.experiments.head_metrics import DESCRIPTIVE_METRICS
from corelens.experiments.run_folder import RunFolder
from corelens.experiments.scan import OTHER_QUESTIONS, scan_metrics
from corelens.inputs.prepare import PreparedInputs
from corelens.metrics import Metric, localization_heads
from tests.helpers import processors, tiny
from tests.helpers.questions import samples


@pytest.fixture(scope="module", params=["qwen3_vl", "llava"])
def seeing(request: pytest.FixtureRequest) -> Any:
    return HookedMLLM(tiny.build(request.param), processors.build(request.param))


# --- measures --------------------------------------------------------------------------------------------------------


def whole(model: Any, inputs: Any) -> Any:
    """Everything that a pass shows, S x S patterns included."""
    with torch.no_grad():
        return model.run_with_cache(inputs)


def by_hand(model: Any, metric: Any, sample: Any, question: str | None = None) -> Tensor:
    """A metric of one sample from whole patterns, head by head: sums over the evidence, means over query tokens."""
    from corelens.causal.answers import answer_targets

    inputs = model.prepare(list(sample.images), question or sample.question)
    covers = torch.stack([inputs.tokens.in_box(region.box) for region in sample.evidence]).any(0)
    queries, n = inputs.tokens.question if metric.queries == "question" else inputs.tokens.last, covers.shape[1]
    own = metric.queries in ("generated", "uncertain")
    full = append_answers(model, inputs, greedy_answers(model, inputs, 4) if own else [sample.answer])
    logits, cache = whole(model, full)
    asked = torch.nn.functional.pad(queries, (0, full["input_ids"].shape[1] - n))
    if metric.queries in ("answer", "generated"):
        asked = answer_positions(full.tokens)
    if metric.queries == "uncertain":
        entropy = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
        asked = answer_positions(full.tokens) & (entropy == entropy[answer_positions(full.tokens)].max())
    result = torch.zeros(3, 4)
    for layer in range(3):
        sinks = torch.zeros(1, covers.shape[1], dtype=torch.bool)
        if metric.sinks == "excluded":
            resid = cache["resid_pre", layer][:, :n]
            sinks = resid.abs().amax(-1) > 4 * resid.square().mean(-1).sqrt()
        for head in range(4):
            rows = []
            for query in asked[0].nonzero().flatten().tolist():
                total = torch.tensor(0.0)
                for key in (covers & ~sinks)[0].nonzero().flatten().tolist():
                    one = cache["pattern", layer][0, head, query, key]
                    written = cache["v", layer][0, key, head // 2] @ model.blocks[layer].attn.W_O[head]
                    if metric.contribution == "write_size":
                        one = one * written.norm()
                    if metric.contribution == "write_answer":
                        token = (
                            answer_targets(full)[0, query]
                            if answer_targets(full)[0, query] >= 0
                            else full["input_ids"][0, n]
                        )
                        one = one * (model.hf_model.get_output_embeddings().weight[token] @ written)
                    total = total + one
                rows.append(total)
            result[layer, head] = torch.stack(rows).mean()
    return result


AXES = [
    dict(queries="last"),
    dict(queries="question"),
    dict(queries="answer"),
    dict(queries="generated"),
    dict(queries="uncertain"),
    dict(contribution="write_size", queries="question"),
    dict(contribution="write_answer"),
    dict(contribution="write_answer", queries="answer"),
    dict(contribution="write_answer", queries="question"),
    dict(baseline="minus_null", queries="question"),
    dict(baseline="over_generic"),
    dict(sinks="excluded"),
]


@torch.no_grad()
def test_every_axis_is_the_metric_on_whole_patterns(seeing: Any, monkeypatch: pytest.MonkeyPatch):
    # The models are too narrow for a sink at the published threshold.
    find = metrics.attention_sinks
    monkeypatch.setattr(metrics, "attention_sinks", lambda resid: find(resid, 4))
    chosen = [Metric(f"m{number}", **axes) for number, axes in enumerate(AXES)]  # pyright: ignore
    found = scan_metrics(seeing, samples(), chosen, batch_size=2, max_new_tokens=4)
    for metric in chosen:
        assert found[metric.name].samples == ("s0", "s1", "s2", "s3", "s4")
        for index, sample in enumerate(samples()):
            expected = by_hand(seeing, metric, sample)
            if metric.baseline == "minus_null":
                expected = expected - by_hand(seeing, metric, sample, OTHER_QUESTIONS["minus_null"])
            if metric.baseline == "over_generic":
                expected = expected / by_hand(seeing, metric, sample, OTHER_QUESTIONS["over_generic"])
            assert_close(found[metric.name].values[index], expected, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_descriptions_are_their_functions_on_whole_patterns(seeing: Any):
    found = scan_metrics(seeing, samples(3), list(DESCRIPTIVE_METRICS), batch_size=3)
    for index, sample in enumerate(samples(3)):
        inputs = seeing.prepare(list(sample.images), sample.question)
        _, cache = whole(seeing, inputs)
        tokens = inputs.tokens
        for layer in range(3):
            rows = cache["pattern", layer]
            expected = {
                "entropy": metrics.attention_entropy(rows, tokens.last),
                "concentration": metrics.concentration(rows, tokens.last),
                "distance": metrics.attention_distance(rows, tokens.last, torch.arange(rows.shape[-1])[None]),
                "visual_share": rows[:, :, -1, tokens.image[0]].sum(-1),
                "sink_share": torch.zeros(1, 4),
                "spatial_entropy": metrics.spatial_entropy(tokens.grid(rows[0, :, -1]))[None],
            }
            for name, values in expected.items():
                assert_close(found[name].values[index, layer], values[0], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_evidence_in_fractions(seeing: Any):
    scores = scan(seeing, samples(2), rule="fraction")
    assert (scores.choices["rule"], scores.choices["queries"]) == ("fraction", "last")
    for index, sample in enumerate(samples(2)):
        inputs = seeing.prepare(list(sample.images), sample.question)
        _, cache = whole(seeing, inputs)
        covers = torch.stack([inputs.tokens.in_box(e.box, "fraction") for e in sample.evidence]).amax(0)
        expected = metrics.retrieval_attention_mass(cache["pattern", 1], covers, inputs.tokens.last)
        assert_close(scores.values[index, 1], expected[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("metrics", [["ram"], ["ram", "vrh", "locos", "entropy"]])
def test_one_pass_serves_all_measures_and_nothing_square_is_made(seeing: Any, metrics: list[str]):
    """One forward pass, and no tensor with two axes as long as the sequence."""
    (sample,) = samples(1)
    n = seeing.prepare(list(sample.images), sample.question)["input_ids"].shape[1]

    class NoSquares(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, list | tuple) else [out]:
                if isinstance(tensor, torch.Tensor):
                    assert sum(n <= size <= n + 1 for size in tensor.shape) < 2, f"{func} made {tuple(tensor.shape)}"
            return out

    passes = []
    with seeing.hf_model.register_forward_pre_hook(lambda *args: passes.append(1)), NoSquares():
        scan_metrics(seeing, [sample], metrics)
    assert len(passes) == 1


def test_localization_is_chosen_from_its_two_measures(seeing: Any):
    found = scan_metrics(seeing, samples(), ["localization", "visual_share"])
    assert list(found) == ["localization", "visual_share"]
    share, entropy = (
        scan_metrics(seeing, samples(), [name])[name].values for name in ("visual_share", "spatial_entropy")
    )
    assert torch.equal(found["localization"].values, localization_heads(share, entropy).float())


# --- answers ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("family", [*tiny.FAMILIES, "paligemma", "mllama", "qwen3_5", "idefics3", "llama4"])
def test_positions_that_say_an_answer_attend_as_in_generation(family: str):
    from corelens.causal.answers import answer_targets

    model = HookedMLLM(tiny.build(family))
    tensors = tiny.batch(family)
    shape = tuple(tensors["input_ids"].shape)
    nothing = torch.full(shape, -1)
    tokens = TokenMap(
        role=torch.where(tensors["attention_mask"] == 1, Role.QUESTION, Role.PADDING), media=nothing, view=nothing,
        overview=nothing > 0, row=nothing, column=nothing, box=torch.full((*shape, 4), torch.nan),
        seconds=torch.full((*shape, 2), torch.nan), sizes=((), ()),
    )  # fmt: skip
    n, names = shape[1], model.attn_names("pattern")
    rows: dict[str, list[Tensor]] = {name: [] for name in names}
    with model.hooks(fwd_hooks=[(name, lambda p, hook: rows[hook.name].append(p[:, :, -1:])) for name in names]):
        generated = model.generate(
            tiny.generation_inputs(family, tensors), max_new_tokens=4, do_sample=False, eos_token_id=None
        )
    answers = generated[:, n:].tolist()
    answers[1] = answers[1][:2]  # a shorter one, padded behind
    inputs = append_answers(model, PreparedInputs(tensors, tokens), answers)
    asked = answer_positions(inputs.tokens)
    assert asked.sum(-1).tolist() == inputs.tokens.answer.sum(-1).tolist() == [4, 2]
    assert answer_targets(inputs)[asked].tolist() == answers[0] + answers[1]
    assert inputs.tokens.last.nonzero().tolist() == [[0, n - 1], [1, n - 1]]
    _, cache = model.run_with_cache(inputs, queries=asked, names_filter=names)
    for name in names:
        for step, row in enumerate(rows[name]):
            for sample in range(2):
                if step < len(answers[sample]):
                    found = cache[name][sample, :, step, : row.shape[-1]]
                    assert_close(found, row[sample, :, 0], atol=1e-5, rtol=1e-4)


def test_answers_that_cannot_follow_are_named(seeing: Any):
    (sample,) = samples(1)
    inputs = seeing.prepare(list(sample.images), sample.question)
    with pytest.raises(ValueError, match="the answer '' has no token"):
        append_answers(seeing, inputs, [""])
    with pytest.raises(ValueError, match="2 answers were given for 1 prompts"):
        append_answers(seeing, inputs, ["7", "8"])
    beside = HookedMLLM(tiny.build("florence2"))
    with pytest.raises(TypeError, match="has an encoder and a decoder: its answers do not follow the prompt"):
        append_answers(beside, inputs, ["7"])


def test_what_is_wrong_with_the_model_is_not_said_of_the_samples(seeing: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(type(seeing), "unembed", None)
    with pytest.raises(ValueError, match="has no unembedding, so no token has a direction"):
        scan(seeing, samples(2), "answer_ram")


# --- samples that cannot be measured ---------------------------------------------------------------------------------


def test_samples_that_cannot_be_measured_are_left_out_with_their_reason(
    seeing: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    good = samples(7)
    bad = {
        "no evidence": dataclasses.replace(good[0], id="no evidence", evidence=()),
        "outside": dataclasses.replace(good[1], id="outside", evidence=(Evidence(Box(0, 0, 500, 5)),)),
        "empty": dataclasses.replace(good[2], id="empty", question=""),
        "missing": dataclasses.replace(good[3], id="missing", images=(tmp_path / "nowhere.png",)),
    }
    mixed = [good[0], bad["no evidence"], good[1], bad["outside"], bad["empty"], good[2], bad["missing"], *good[3:]]
    with pytest.warns(UserWarning, match=r"4 of 11 samples cannot be measured; the first, .*\. All are in \.skipped"):
        scores = scan(seeing, mixed, batch_size=4)
    assert scores.samples == tuple(sample.id for sample in good)
    assert set(scores.skipped) == set(bad)
    for name, why in {
        "no evidence": "has no evidence", "outside": "is not a region of picture 0", "empty": "question is empty",
        "missing": "there is no picture file",
    }.items():  # fmt: skip
        assert why in scores.skipped[name]
    assert_close(scores.values, scan(seeing, good).values, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="1 of 1 samples cannot be measured; the first, empty"):
        scan(seeing, [bad["empty"]])
    with pytest.raises(ValueError, match="there are no samples"):
        scan(seeing, [])
    with pytest.raises(ValueError, match="there are no samples of none"):
        scan(seeing, {"some": good, "none": []})
    with monkeypatch.context() as patched:
        patched.setattr("jaxtyping.config.jaxtyping_disable", True)  # as it is for users
        with pytest.raises(TypeError, match=r"give a list of samples, such as \[sample\]"):
            scan(seeing, good[0])
    with pytest.raises(ValueError, match="there is no measure 'rham'; there are ram, "):
        scan(seeing, good, "rham")
    with pytest.raises(ValueError, match="measures need different names, and these are called ram, ram"):
        scan_metrics(seeing, good, ["ram", "ram"])
    with pytest.raises(ValueError, match="there is no measure; take"):
        scan_metrics(seeing, good, [])


def test_batches_shrink_when_memory_runs_out(seeing: Any, monkeypatch: pytest.MonkeyPatch):
    sizes = []
    measure = scan_module.score_heads

    def too_large(model: Any, inputs: Any, *args: Any) -> Any:
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("no memory")
        return measure(model, inputs, *args)

    expected = scan(seeing, samples(7), batch_size=1)
    monkeypatch.setattr(scan_module, "score_heads", too_large)
    scores = scan(seeing, samples(7), batch_size=7)
    assert sizes == [7, 4, 2, 2, 2, 1]
    assert scores.samples == expected.samples
    assert_close(scores.values, expected.values, atol=1e-5, rtol=1e-4)


def test_layers_may_be_offloaded():
    from accelerate import cpu_offload

    model = HookedMLLM(tiny.build("qwen3_vl"), processors.build("qwen3_vl"))
    expected = scan(model, samples(2))
    cpu_offload(model.hf_model.model.language_model.layers[1], torch.device("cpu"))
    assert any(parameter.is_meta for parameter in model.parameters())
    assert torch.equal(scan(model, samples(2)).values, expected.values)


def test_data_sets_are_kept_apart(seeing: Any):
    scores = scan(seeing, {"odd": samples()[1::2], "even": samples()[::2]})
    assert scores.datasets == ("odd", "odd", "even", "even", "even")
    assert scores.for_dataset("even").samples == ("s0", "s2", "s4")


# --- run folders -----------------------------------------------------------------------------------------------------

SCAN = """
import sys
from corelens import HookedMLLM
from corelens.experiments.scan import scan_metrics
from corelens import toy
model = HookedMLLM.from_pretrained("corelens/toy")
scan_metrics(model, toy.scenes(128, 3), ["ram", "write_ram"], out=sys.argv[1])
"""


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_a_scan_killed_at_any_moment_ends_with_the_same_bytes(tmp_path: Path):
    command = [sys.executable, "-c", SCAN]
    subprocess.run([*command, tmp_path / "whole"], check=True, capture_output=True)
    expected = content(tmp_path / "whole")
    assert set(expected) == {
        "manifest.json",
        "ram.safetensors",
        "write_ram.safetensors",
        *(f"parts/0000{number}.parquet" for number in range(4)),
    }
    rng, kills, seen = random.Random(0), 0, set()
    while True:
        said = (tmp_path / "said").open("w")
        process = subprocess.Popen([*command, tmp_path / "killed"], stdout=said, stderr=said)
        said.close()
        parts, started = tmp_path / "killed" / "parts", len(seen)
        # Wait until it works, then for a random moment of its work.
        while process.poll() is None and len(list(parts.glob("*.parquet"))) <= started:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        seen = {path.name for path in parts.glob("*.parquet")}
        assert all(expected[f"parts/{name}"] == (parts / name).read_bytes() for name in seen)
    assert process.returncode == 0, (tmp_path / "said").read_text()
    assert kills >= 2
    assert content(tmp_path / "killed") == expected


def test_finished_parts_are_read_and_give_the_same_scores(seeing: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scan_module, "SHARD_SIZE", 2)
    bad = dataclasses.replace(samples(1)[0], id="bad", evidence=())
    everything = {"x": samples(), "y": [bad]}
    with pytest.warns(UserWarning, match="1 of 6 samples cannot be measured"):
        first = scan_metrics(seeing, everything, ["ram", "entropy"], out=tmp_path / "run")
    monkeypatch.setattr(scan_module, "scan_part", None)
    with pytest.warns(UserWarning, match="1 of 6 samples cannot be measured"):
        again = scan_metrics(seeing, everything, ["ram", "entropy"], out=tmp_path / "run")
    for name in ("ram", "entropy"):
        assert torch.equal(first[name].values, again[name].values)
        assert dataclasses.replace(first[name], values=again[name].values) == again[name]
        assert torch.equal(HeadScores.load(tmp_path / "run" / f"{name}.safetensors").values, first[name].values)


def test_folders_refuse_other_scans_and_other_writers(seeing: Any, tmp_path: Path):
    from corelens import scan_metrics

    folder = tmp_path / "run"
    scan(seeing, samples(), out=folder)
    with pytest.raises(ValueError, match=r"holds another run: rule was 'overlap' and is 'centre'\. Choose"):
        scan(seeing, samples(), rule="centre", out=folder)
    with pytest.raises(
        ValueError, match=r"run: measures\.vera was None and is \{'aggregation': 'mean', .*, \.\.\.\}\. Choose"
    ):
        scan_metrics(seeing, samples(), ["ram", "vera"], out=folder)
    with pytest.raises(ValueError, match=r"holds another run: samples was 5 and is 4; samples sha256 was"):
        scan(seeing, samples(4), out=folder)
    many = {str(number): "x" * 64 for number in range(9)}
    with RunFolder.open(tmp_path / "many", {"work": "scan"} | many):
        pass
    with (
        pytest.raises(ValueError, match=r"and 3 more\. Choose another folder") as refused,
        RunFolder.open(tmp_path / "many", {"work": "scan"} | dict.fromkeys(many, "y" * 64)),
    ):
        pass
    assert len(str(refused.value)) < 800
    with (
        pytest.raises(ValueError, match="holds a run of corelens scan, not of sweep"),
        RunFolder.open(tmp_path / "many", {"work": "sweep"}),
    ):
        pass
    with (
        RunFolder.open(tmp_path / "held", {"work": "scan"}),
        pytest.raises(RuntimeError, match="another process is writing"),
        RunFolder.open(tmp_path / "held", {"work": "scan"}),
    ):
        pass
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="is not empty and holds no run"):
        scan(seeing, samples(), out=tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


# --- the command -----------------------------------------------------------------------------------------------------


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["scan", "--model", "corelens/toy", *map(str, arguments)])


def test_the_command_scores_several_data_sets_and_goes_on(tmp_path: Path):
    command = ("--data", "scenes=6", "--data", "charts=3", "--metric", "ram, visual_share", "--out", tmp_path / "run")
    first = invoke(*command, "--limit", 4, "--json")
    assert first.exit_code == 0, first.output
    found = json.loads(first.stdout)
    assert list(found) == ["ram", "visual_share"]
    assert (found["ram"]["samples"], found["ram"]["heads"], len(found["ram"]["top"])) == (7, 96, 5)
    scores = HeadScores.load(tmp_path / "run" / "ram.safetensors")
    assert scores.datasets == ("scenes",) * 4 + ("charts",) * 3
    best = found["ram"]["top"][0]
    assert best["head"] == str(scores.ranked()[0])
    assert best["interval"][0] <= best["score"] <= best["interval"][1]
    again = invoke(*command, "--limit", 4)
    assert "rho 0.5: the smallest share of heads that holds half of the measure." in again.stdout
    assert again.exit_code == 0, again.output
    assert "7 samples, 96 heads" in again.stdout
    assert best["head"] in again.stdout
    assert str(tmp_path / "run" / "ram.safetensors") in again.stdout.replace("\n", "")


@pytest.mark.parametrize(
    ("metric", "said"),
    [("rams", "there is no measure 'rams'; there are ram, "), ("ram", "holds a run of corelens sweep, not of scan")],
)
def test_what_is_wrong_is_said_before_the_model_is_loaded(
    metric: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def loaded(*_: str) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("corelens.cli.options.loaded", loaded)
    if metric == "ram":
        (tmp_path / "manifest.json").write_text('{"work": "sweep"}')
    found = invoke("--data", "scenes=2", "--metric", metric, "--out", tmp_path)
    assert found.exit_code == 2
    assert said in " ".join(found.output.split())


@pytest.mark.parametrize("manifest", ["[]", "no JSON", "{}"])
def test_a_folder_whose_manifest_is_of_something_else_is_refused_by_name(manifest: str, tmp_path: Path):
    (tmp_path / "manifest.json").write_text(manifest)
    found = invoke("--data", "scenes=2", "--out", tmp_path)
    assert found.exit_code == 2
    assert "holds no run of corelens" in " ".join(found.output.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--data", "scenes"), "has no place; write NAME=WHERE, as in scenes=200"),
        (("--data", "scenes=many"), "needs a number of samples, as in scenes=200"),
        (("--data", "scenes=0"), "scenes=0: scenes needs a number of samples, as in scenes=200"),
        (("--data", "scenes=2,toy-page=2"), "scenes takes no settings, and 'toy-page' is no data set"),
        (("--data", "scenes=2,charts=2,colour=red"), "charts takes no settings, and 'colour' is no data set"),
        (("--data", "scenes=2", "--seed", "-1"), "'--seed': Input should be greater than or equal to 0"),
        (("--data", "cocoa=here"), "is no data set that corelens knows"),
        (("--data", "refcocog=./nowhere"), "there is no folder"),
        (("--data", "scenes=2", "--metric", "rham"), "there is no measure 'rham'; there are ram, "),
        (("--data", "refcocog=.,split"), "after the place come settings, as in refcocog=PATH,split=test"),
        (("--data", "mmlongbench=.,task=none"), "task='none' is not known"),
        (("--data", "scenes=2", "--rule", "nearest"), "'nearest' is not one of 'overlap'"),
        (("--data", "scenes=2", "--batch", "0"), "is neither auto nor a number"),
    ],
)
def test_mistakes_in_the_command_are_named(arguments: tuple[str, ...], said: str, tmp_path: Path):
    found = invoke(*arguments, "--out", tmp_path / "run")
    assert found.exit_code == 2
    assert said in " ".join(found.output.replace("│", "").split())
    assert not (tmp_path / "run").exists()
