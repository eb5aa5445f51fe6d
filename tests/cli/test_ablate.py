"""The commands sweep and ablate: against the functions they stand for, killed and resumed, and their mistakes."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from typer.testing import CliRunner

import corelens as cl
from corelens import toy
from corelens.cli import app
from corelens.cli.options import texts
from corelens.data import score
from corelens.data.synthetic.text import plain_text
from corelens.experiments.ablation import run_ablation
from corelens.experiments.run_folder import RunFolder, Shard
from corelens.experiments.sweep import run_sweep
from corelens.metrics import bootstrap_interval
from tests.experiments.test_scan import content
from tests.helpers import processors, tiny


def invoke(command: str, *arguments: object) -> Any:
    return CliRunner().invoke(app, [command, "--model", "corelens/toy", *map(str, arguments)])


def found(command: str, *arguments: object) -> Any:
    ran = invoke(command, *arguments, "--json")
    assert ran.exit_code == 0, ran.output
    return json.loads(ran.stdout)


def said(ran: Any) -> str:
    return " ".join(ran.output.replace("│", "").split())


@pytest.mark.parametrize(
    "command",
    [
        ("sweep", "--data", "scenes=12"),
        ("ablate", "--data", "scenes=24", "--heads", "L3H14,L0H11", "--limit", "24"),
    ],
    ids=lambda command: command[0],
)
def test_a_killed_run_ends_with_the_same_bytes(command: tuple[str, ...], tmp_path: Path):
    found(*command, "--out", tmp_path / "whole")
    expected = content(tmp_path / "whole")
    n_parts = len([name for name in expected if name.startswith("parts/")])
    arguments = [
        sys.executable,
        "-m",
        "corelens.cli",
        *command,
        "--model",
        "corelens/toy",
        "--out",
        tmp_path / "killed",
    ]
    parts = tmp_path / "killed" / "parts"
    with (tmp_path / "said").open("w") as log, subprocess.Popen(arguments, stdout=log, stderr=log) as running:
        while running.poll() is None and not list(parts.glob("*.parquet")):
            time.sleep(0.01)
        running.send_signal(signal.SIGKILL)
    assert 0 < len(list(parts.glob("*.parquet"))) < n_parts, (tmp_path / "said").read_text()
    found(*command, "--out", tmp_path / "killed")
    assert content(tmp_path / "killed") == expected


# --- sweep -----------------------------------------------------------------------------------------------------------


def test_the_sweep_of_the_command_is_the_sweep(toy_model: Any, tmp_path: Path):
    out = tmp_path / "run"
    listed = found("sweep", "--data", "scenes=9", "--limit", 5, "--out", out)
    expected = cl.sweep(toy_model, list(toy.scenes(5, seed=0))).scores()
    scores = cl.HeadScores.load(out / "sweep.safetensors")
    assert_close(scores.values, expected.values, atol=1e-5, rtol=1e-4)
    assert (scores.samples, scores.datasets, scores.metric) == (expected.samples, ("scenes",) * 5, expected.metric)
    assert [one["heads"] for one in listed["units"]] == [str(head) for head in scores.ranked()]
    costliest = listed["units"][0]
    low, high = bootstrap_interval(scores.values)
    head = scores.ranked()[0]
    assert_close(costliest["interval"], [float(low[head]), float(high[head])], atol=1e-4, rtol=0)
    assert costliest["interval"][0] <= costliest["drop"] <= costliest["interval"][1]
    again = invoke("sweep", "--data", "scenes=9", "--limit", 5, "--out", out)
    assert "5 samples, each head removed by itself (zero)" in said(again)
    assert costliest["name"] in said(again)
    assert "how was 'zero' and is 'mean'" in said(invoke("sweep", "--data", "scenes=5", "--how", "mean", "--out", out))
    assert "holds a run of corelens sweep, not of scan" in said(invoke("scan", "--data", "scenes=5", "--out", out))


@pytest.mark.parametrize("how", ["mean", "resample"])
def test_groups_are_swept_with_what_the_samples_put_in_their_place(toy_model: Any, how: Any, tmp_path: Path):
    samples = list(toy.scenes(5, seed=0))
    instead = {"mean": cl.mean_activations, "resample": cl.resample_activations}[how](toy_model, samples)
    expected = cl.sweep(
        toy_model, samples, partial(cl.ablate, method=how, reference=instead, positions="from_question"), per="group"
    )
    swept = run_sweep(toy_model, samples, how, "group", tmp_path / "run")
    assert [str(unit) for unit in swept.units] == [str(unit) for unit in expected.units]
    assert_close(swept.drop, expected.drop, atol=1e-5, rtol=1e-4)
    assert not (tmp_path / "run" / "sweep.safetensors").exists()


def test_samples_that_cannot_be_swept_are_left_out_with_their_reason(toy_model: Any, tmp_path: Path):
    first, second, third = toy.scenes(3, seed=0)
    mixed = [replace(first, images=(tmp_path / "nowhere.png",)), second, replace(third, answer="")]
    for _ in range(2):  # the second time from the folder
        with pytest.warns(UserWarning, match="2 of 3 samples cannot be measured"):
            swept = run_sweep(toy_model, mixed, per="layer", out=tmp_path / "run")
        assert swept.samples == (second.id,)
        assert "there is no picture file" in swept.skipped[first.id]
        assert "has no token" in swept.skipped[third.id]
        assert_close(swept.values, run_sweep(toy_model, [second], per="layer").values)


# --- ablate ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranking(toy_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scores") / "ram.safetensors"
    cl.scan(toy_model, toy.scenes(20, seed=5)).save(path)
    return path


def test_the_ablation_of_the_command_is_answers_without_each_set_of_heads(
    toy_model: Any, ranking: Path, tmp_path: Path
):
    result = found("ablate", "--data", "scenes=12", "--scores", ranking, "--limit", 12, "--out", tmp_path / "run")
    assert list(result["data"]) == ["scenes", "copy", "recall", "sum"]
    scores = cl.HeadScores.load(ranking)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["chosen_by"] == result["chosen by"] == f"{scores.metric} of corelens/toy"
    batches = list(cl.prepare_batches(toy_model, toy.scenes(12, seed=0), 12, "prepare"))
    plain = cl.evaluate(toy_model, batches, max_new_tokens=32)
    conditions = result["data"]["scenes"]["conditions"]
    assert list(conditions) == ["plain", "top", "next-ranked", "random", "random, same layers", "bottom"]
    assert conditions["plain"] == {"accuracy": round(plain.accuracy, 4), "unreadable": 0.0}
    for name, heads in {"top": scores.top(), "next-ranked": scores.next(), "bottom": scores.bottom()}.items():
        without = cl.evaluate(toy_model, batches, cl.ablate(heads), max_new_tokens=32)
        pair = cl.causal.PairedDifference(plain.scores, without.scores)
        assert result["heads"][name] == [str(heads)]
        assert_close(conditions[name]["accuracy"], without.accuracy, atol=1e-4, rtol=0)
        assert_close(conditions[name]["change"], pair.mean, atol=1e-4, rtol=0)
        assert_close(conditions[name]["interval"], list(pair.interval()), atol=1e-4, rtol=0)
        assert_close(conditions[name]["p"], pair.p_value(), atol=1e-4, rtol=0)
    for name, draw in {"random": scores.random, "random, same layers": scores.layer_matched_random}.items():
        expected = [
            cl.evaluate(toy_model, batches, cl.ablate(draw(seed)), max_new_tokens=32).accuracy for seed in range(5)
        ]
        assert_close(conditions[name]["of each draw"], expected, atol=1e-4, rtol=0)
    # It cannot see, and can answer.
    assert conditions["top"]["accuracy"] < 0.5 * conditions["plain"]["accuracy"]
    lost = {
        task: of["conditions"]["plain"]["accuracy"] - of["conditions"]["top"]["accuracy"]
        for task, of in result["data"].items()
    }
    assert lost["copy"] < 0.5 * lost["scenes"]
    assert result["data"]["copy"]["conditions"]["top"]["accuracy"] > 0.5
    again = said(invoke("ablate", "--data", "scenes=12", "--scores", ranking, "--limit", 12, "--out", tmp_path / "run"))
    assert "scenes: 12 samples, accuracy in percent" in again
    assert f"top: {scores.top()}" in again
    assert "random: 5 draws" in again
    one_more = invoke("ablate", "--data", "scenes=12", "--heads", "L0H1", "--limit", 12, "--out", tmp_path / "run")
    assert "corelens/toy' and is None; conditions.top was ['" in said(one_more)


def test_answers_that_cannot_be_read_are_wrong_and_counted_apart(toy_model: Any, tmp_path: Path):
    asked = [replace(sample, scoring="numeric") for sample in toy.scenes(8, seed=0)]
    conditions = {"some": [cl.HeadSet.parse("L3H14"), cl.HeadSet.parse("L0H11")]}
    ablated = run_ablation(toy_model, {"x": asked}, conditions, "mean", "decode", out=tmp_path / "run")
    batches = list(cl.prepare_batches(toy_model, asked, 8, "prepare"))
    plain = cl.evaluate(toy_model, batches, max_new_tokens=32)
    assert 0 < ablated.unreadable("plain", "x") == 1 - plain.parsed.float().mean().item() < 1
    assert ablated.accuracies("plain", "x") == [plain.accuracy]
    instead = cl.mean_activations(toy_model, asked)
    for number, heads in enumerate(conditions["some"]):
        hooks = cl.ablate(heads, "mean", instead, phase="decode")
        assert ablated.accuracies("some", "x")[number] == cl.evaluate(toy_model, batches, hooks, 32).accuracy
    before, after = ablated.values["plain"].nan_to_num()[:, 0], ablated.values["some"].nan_to_num().mean(1)
    assert ablated.paired_difference("some", "x").mean == pytest.approx(float((after - before).mean()))


def test_pictures_and_plain_questions_share_a_run():
    model = cl.HookedMLLM(tiny.build("qwen3_vl"), processors.build("qwen3_vl"))
    sets = {"scenes": list(toy.scenes(3, seed=0)), "text": plain_text()[:3]}
    ablated = run_ablation(model, sets, {"one": [cl.HeadSet.parse("L1H2")]}, max_new_tokens=3)
    assert ablated.datasets == ("scenes",) * 3 + ("text",) * 3
    assert ablated.values["one"].shape == (6, 1)
    assert not ablated.skipped


def test_plain_questions_are_answered_by_their_answers_alone():
    questions = plain_text()
    assert len(questions) == len({sample.question for sample in questions}) == 20
    for sample in questions:
        assert score(sample, f"It is {sample.answer}.") == 1
        assert sum(score(sample, other.answer) or 0 for other in questions) == 1
        if sample.question.startswith("What is"):
            first, second = (int(word.rstrip("?")) for word in sample.question.split() if word.rstrip("?").isdecimal())
            assert int(sample.answer) == first + second
    assert list(texts("someone/a-model", None)) == ["text"]


@pytest.mark.parametrize("command", ["ablate", "accelerate"])
def test_scores_of_another_model_are_taken_with_a_warning(command: str, ranking: Path, tmp_path: Path):
    scores = cl.HeadScores.load(ranking)
    replace(scores, model="corelens/toy-worlds").save(tmp_path / "other.safetensors")
    # Without samples: it is said before any work.
    arguments = (command, "--data", "scenes=0", "--out", tmp_path / "run", "--scores")
    assert "Warning" not in said(invoke(*arguments, ranking))
    assert "ranks the heads of 'corelens/toy-worlds', and the model is 'corelens/toy'." in said(
        invoke(*arguments, tmp_path / "other.safetensors")
    )


def test_a_question_without_its_picture_and_a_type_without_its_model_are_refused():
    assert "say which picture the question is about" in said(invoke("explore", "--question", "which digit is red ?"))
    assert "qwen3_vl is a model type" in said(CliRunner().invoke(app, ["models", "qwen3_vl"]))


def test_heads_tested_on_the_samples_that_chose_them_are_warned_of(ranking: Path, tmp_path: Path):
    (asked,) = cl.HeadScores.load(ranking).samples[:1]
    replace(cl.HeadScores.load(ranking), samples=("another", *cl.HeadScores.load(ranking).samples[1:])).save(
        tmp_path / "other.safetensors"
    )
    arguments = ("ablate", "--data", "scenes=1", "--limit", "1", "--seed", asked.split("-")[2])
    ran = said(invoke(*arguments, "--out", tmp_path / "run", "--scores", ranking))
    assert "Warning: 1 of 1 samples also chose the heads" in ran
    assert "also chose" not in said(
        invoke(*arguments, "--out", tmp_path / "other", "--scores", tmp_path / "other.safetensors")
    )


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sweep", "--how", "median"), "'median' is not one of 'zero', 'mean', 'resample'"),
        (("sweep", "--per", "neuron"), "'neuron' is not one of 'head', 'layer', 'group'"),
        (("sweep", "--data", "scenes"), "has no place; write NAME=WHERE"),
        (("ablate", "--heads", "L1H1", "--data", "scenes=0"), "scenes=0: scenes needs a number of samples"),
        (("ablate",), "give the heads themselves or what ranks them"),
        (("ablate", "--heads", "L1H1", "--scores", "x"), "give the heads themselves or what ranks them"),
        (("ablate", "--heads", "L1H1", "--top", "0.1"), "how many heads of a ranking; give --scores"),
        (("ablate", "--heads", "L3"), "'L3' is not a head"),
        (("ablate", "--heads", ""), "names no head"),
        (("ablate", "--heads", "L9H0"), "16 heads, counted from zero. (docs/errors.md#head)"),
        (("ablate", "--heads", "L1H1", "--how", "median"), "'median' is not one of 'zero'"),
        (("ablate", "--heads", "L1H1", "--phase", "later"), "'later' is not one of 'prefill', 'decode', 'both'"),
        (("ablate", "--heads", "L1H1", "--box-unit", "inches"), "'inches' is not one of 'pixels'"),
        (("ablate", "--scores", "nowhere.safetensors"), "there is no file nowhere.safetensors"),
        (("ablate", "--scores", __file__), "holds no head scores"),
        (("ablate", "--scores", str(Path(__file__).parent)), "is a folder; name one of its scores: none"),
        (("ablate", "--scores", "RANKING", "--top", "0.9"), "n=0.9 means 87 of 96 heads"),
        (("ablate", "--scores", "RANKING", "--top", "0"), "fraction=0.0 is outside"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(
    arguments: tuple[str, ...], message: str, ranking: Path, tmp_path: Path
):
    given = [str(ranking) if one == "RANKING" else one for one in arguments]
    ran = invoke(given[0], "--data", "scenes=2", *given[1:], "--out", tmp_path / "run")
    assert ran.exit_code == 2, ran.output
    assert message in said(ran)
    assert not (tmp_path / "run").exists()


def test_samples_that_no_rule_can_score_are_refused_before_anything_runs(toy_model: Any, tmp_path: Path):
    (sample,) = toy.scenes(1, seed=0)
    with pytest.raises(ValueError, match="is scored by 'taste'; the rules of corelens are"):
        run_ablation(toy_model, [replace(sample, scoring="taste")], {}, out=tmp_path / "run")
    with pytest.raises(ValueError, match="asks for a box: state the unit of the model's boxes, by box_unit="):
        run_ablation(toy_model, [replace(sample, scoring="box")], {}, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    # The toy says no boxes.
    assert run_ablation(toy_model, [replace(sample, scoring="box")], {}, box_unit="pixels").unreadable("plain", "") == 1


def test_parts_without_a_measured_sample_are_kept(tmp_path: Path):
    empty = Shard((), (), {}, {"a": "it is gone"})
    full = Shard(("b",), ("x",), {"drop": torch.tensor([[1.5, float("nan")]])})
    with RunFolder.open(tmp_path / "run", {"work": "sweep"}) as run:
        for number, part in enumerate((empty, full)):
            run.write(number, part)
        assert run.read(0) == empty
        again = run.read(1)
        assert again is not None
    assert_close(again.values["drop"], full.values["drop"], equal_nan=True)
    whole = Shard.concatenate([empty, again])
    assert (whole.samples, whole.datasets, whole.skipped) == (("b",), ("x",), {"a": "it is gone"})
