"""The command ablate: against the functions that it calls, its warnings and its errors."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch.testing import assert_close

import corelens as cl
from corelens import HookedMLLM, toy
from corelens.experiments.controls import write_matched_random
from corelens.reports import write_report
from tests.helpers.cli import invoke_on_toy, json_of, text_of

N_DRAWS = 10
"""The fewest draws of write-matched heads: more only where time is left."""


@pytest.fixture(scope="module")
def ranking(toy_model: HookedMLLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scores") / "ram_last.safetensors"
    cl.scan(toy_model, toy.scenes(20, seed=5), "ram_last").save(path)
    return path


def test_the_ablation_of_the_command_is_answers_without_each_set_of_heads(
    toy_model: HookedMLLM, ranking: Path, tmp_path: Path
):
    result = json_of(
        "ablate", "--data", "scenes=12", "--scores", ranking, "--top", "5%", "--limit", 12, "--out", tmp_path / "run"
    )
    assert list(result["data"]) == ["scenes", "copy", "recall", "sum"]
    scores = cl.HeadScores.load(ranking)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["chosen_by"] == result["chosen by"] == f"{scores.metric} of corelens/toy"
    batches = list(cl.prepare_batches(toy_model, toy.scenes(12, seed=0), 12, "prepare"))
    plain = cl.evaluate(toy_model, batches, max_new_tokens=32)
    conditions = result["data"]["scenes"]["conditions"]
    kinds = ["top", "write-matched", "next-ranked", "random", "random, same layers", "bottom"]
    assert list(conditions) == ["plain", *(f"{kind} 5%" for kind in kinds)]
    conditions = {name.removesuffix(" 5%"): condition for name, condition in conditions.items()}
    norms = cl.scan(toy_model, list(toy.scenes(12, seed=0)), "question_write_norm")
    for name, condition in conditions.items():
        if name != "plain":
            sets = [cl.HeadSet.parse(heads) for heads in result["heads"][f"{name} 5%"]]
            written = [sum(bool(norms.per_head[head] > 0) for head in heads) for heads in sets]
            assert condition["heads that write"] == written
    assert conditions["write-matched"]["heads that write"] == [5] * N_DRAWS
    assert max(conditions["random"]["heads that write"]) < 5  # most heads of this model write nothing
    assert conditions["plain"] == {"accuracy": round(plain.accuracy, 4), "unreadable": 0.0}
    for name, heads in {"top": scores.top(), "next-ranked": scores.next(), "bottom": scores.bottom()}.items():
        without = cl.evaluate(toy_model, batches, cl.ablate(heads), max_new_tokens=32)
        pair = cl.causal.PairedDifference(plain.scores, without.scores)
        assert result["heads"][f"{name} 5%"] == [str(heads)]
        assert_close(conditions[name]["accuracy"], without.accuracy, atol=1e-4, rtol=0)
        assert_close(conditions[name]["change"], pair.mean, atol=1e-4, rtol=0)
        assert_close(conditions[name]["interval"], list(pair.interval()), atol=1e-4, rtol=0)
        assert_close(conditions[name]["p"], pair.p_value(), atol=1e-4, rtol=0)
    matched = write_matched_random(scores.top(), norms, range(N_DRAWS))
    assert result["heads"]["write-matched 5%"] == [str(heads) for heads in matched]
    for name, draw in {"random": scores.random, "random, same layers": scores.layer_matched_random}.items():
        expected = [
            cl.evaluate(toy_model, batches, cl.ablate(draw(seed)), max_new_tokens=32).accuracy for seed in range(5)
        ]
        assert_close(conditions[name]["of each draw"], expected, atol=1e-4, rtol=0)
    of_matched = conditions["write-matched"]["of each draw"]
    n_as_costly = sum(accuracy <= conditions["top"]["accuracy"] for accuracy in of_matched)
    assert result["data"]["scenes"]["write-matched draws as costly as top"] == {"5%": [n_as_costly, N_DRAWS]}
    # It cannot see, and can answer.
    assert conditions["top"]["accuracy"] < 0.5 * conditions["plain"]["accuracy"]
    lost = {
        task: of["conditions"]["plain"]["accuracy"] - of["conditions"]["top 5%"]["accuracy"]
        for task, of in result["data"].items()
    }
    assert lost["copy"] < 0.5 * lost["scenes"]
    assert result["data"]["copy"]["conditions"]["top 5%"]["accuracy"] > 0.5
    again = text_of(
        invoke_on_toy(
            "ablate",
            "--data",
            "scenes=12",
            "--scores",
            ranking,
            "--top",
            "0.05",
            "--limit",
            12,
            "--out",
            tmp_path / "run",
        )
    )
    assert "scenes: 12 samples, accuracy in percent" in again
    assert f"top 5%: {scores.top()}" in again
    assert "random 5%: 5 draws" in again
    assert f"{n_as_costly} of {N_DRAWS} draws of write-matched 5% cost as much as top 5%, or more." in again
    one_more = invoke_on_toy(
        "ablate", "--data", "scenes=12", "--heads", "L0H1", "--limit", 12, "--out", tmp_path / "run"
    )
    assert "corelens/toy' and is None; conditions.top 5% was ['" in text_of(one_more)


@pytest.mark.parametrize("command", ["ablate", "accelerate"])
def test_scores_of_another_model_are_taken_with_a_warning(command: str, ranking: Path, tmp_path: Path):
    scores = cl.HeadScores.load(ranking)
    replace(scores, model="corelens/toy-worlds").save(tmp_path / "other.safetensors")
    # Without samples: the message comes before any work.
    arguments = (command, "--data", "scenes=0", "--out", tmp_path / "run", "--scores")
    assert "Warning" not in text_of(invoke_on_toy(*arguments, ranking))
    assert "ranks the heads of 'corelens/toy-worlds', and the model is 'corelens/toy'." in text_of(
        invoke_on_toy(*arguments, tmp_path / "other.safetensors")
    )


def test_heads_tested_on_the_samples_that_chose_them_are_warned_of(ranking: Path, tmp_path: Path):
    (sample_id,) = cl.HeadScores.load(ranking).samples[:1]
    replace(cl.HeadScores.load(ranking), samples=("another", *cl.HeadScores.load(ranking).samples[1:])).save(
        tmp_path / "other.safetensors"
    )
    arguments = ("ablate", "--data", "scenes=1", "--limit", "1", "--top", "1", "--seed", sample_id.split("-")[2])
    ran = text_of(invoke_on_toy(*arguments, "--out", tmp_path / "run", "--scores", ranking))
    assert "Warning: 1 of 1 samples also chose the heads" in ran
    assert "<h2>Warnings</h2>" in Path(write_report(tmp_path / "run")).read_text()
    # So do others about the same picture.
    scores = cl.HeadScores.load(ranking)
    numbers = tuple(map(str, range(len(scores.samples))))
    replace(scores, samples=numbers, groups=(sample_id, *numbers[1:])).save(tmp_path / "grouped.safetensors")
    assert "Warning: 1 of 1 samples also chose the heads" in text_of(
        invoke_on_toy(*arguments, "--out", tmp_path / "grouped", "--scores", tmp_path / "grouped.safetensors")
    )
    assert "also chose" not in text_of(
        invoke_on_toy(*arguments, "--out", tmp_path / "other", "--scores", tmp_path / "other.safetensors")
    )


def test_controls_that_need_more_heads_than_there_are_are_named(ranking: Path, tmp_path: Path):
    # Without samples: the message comes before any work.
    arguments = ("ablate", "--data", "scenes=0", "--out", tmp_path / "run", "--scores", ranking)
    left_out = "Left out: next-ranked 90%; random 90%; random, same layers 90%. There are too few heads"
    assert left_out in text_of(invoke_on_toy(*arguments, "--top", "0.9"))
    assert "Left out" not in text_of(invoke_on_toy(*arguments, "--top", "0.05,1%"))
    published = text_of(invoke_on_toy(*arguments))
    assert "Doses: " not in published
    assert "Left out: random, same layers" in published


@pytest.mark.parametrize(("n_heads", "message"), [(48, "5, 10, 20 of the"), (20, "5, 10 of the"), (9, "none of the")])
def test_published_doses_without_enough_others_are_left_out(n_heads: int, message: str, tmp_path: Path):
    scores = cl.HeadScores(torch.rand(1, 1, n_heads), "mass", ("a",), "corelens/toy")
    scores.save(tmp_path / "few.safetensors")
    arguments = ("ablate", "--data", "scenes=0", "--out", tmp_path / "run", "--scores", tmp_path / "few.safetensors")
    output = text_of(invoke_on_toy(*arguments))
    assert f"Doses: {message} paper's 5, 10, 20, 30: of {n_heads} heads, as many others must be left" in output
    assert ("give numbers of heads, such as 5" in output) == (n_heads == 9)


@pytest.mark.parametrize("how", ["uniform", "uniform_all_keys"])
def test_uniform_attention_by_numbers_of_heads(
    how: Literal["uniform", "uniform_all_keys"], toy_model: HookedMLLM, ranking: Path, tmp_path: Path
):
    arguments = ("--data", "scenes=6", "--limit", 6, "--scores", ranking, "--top", "1,2", "--how", how)
    result = json_of("ablate", *arguments, "--out", tmp_path / "run")
    conditions, scores = result["data"]["scenes"]["conditions"], cl.HeadScores.load(ranking)
    assert result["how"] == how
    batches = list(cl.prepare_batches(toy_model, toy.scenes(6, seed=0), 1, "prepare"))
    for n in (1, 2):
        assert result["heads"][f"top {n}"] == [str(scores.top(n))]
        expected = cl.evaluate(toy_model, batches, cl.ablate(scores.top(n), how), max_new_tokens=32).accuracy
        assert_close(conditions[f"top {n}"]["accuracy"], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--heads", "L1H1", "--data", "scenes=0"), "scenes=0: scenes needs a number of samples"),
        ((), "give either heads or the scores that rank them"),
        (("--heads", "L1H1", "--scores", "x"), "give either heads or the scores that rank them"),
        (("--heads", "L1H1", "--top", "0.1"), "the number of top heads of a ranking; give --scores"),
        (("--heads", "L3"), "'L3' is not a head"),
        (("--heads", ""), "names no head"),
        (("--heads", "L9H0"), "16 heads, counted from zero. (corelens explain head)"),
        (("--heads", "L1H1", "--how", "median"), "'median' is not one of 'zero'"),
        (("--heads", "L1H1", "--phase", "later"), "'later' is not one of 'prefill', 'decode', 'both'"),
        (("--heads", "L1H1", "--box-unit", "inches"), "'inches' is not one of 'pixels'"),
        (("--scores", "nowhere.safetensors"), "there is no file nowhere.safetensors"),
        (("--scores", __file__), "holds no head scores"),
        (("--scores", str(Path(__file__).parent)), "is a folder; name one of its scores: none"),
        (("--scores", "RANKING", "--top", "97"), "n=97 means 97 of 96 heads"),
        (("--scores", "RANKING", "--top", "0"), "n=0 means 0 of 96 heads; it must be between 1 and 96"),
        (("--scores", "RANKING", "--top", "1.0"), "'1.0' is neither a number of heads, such as 5, nor a share"),
        (("--scores", "RANKING", "--top", "5,many"), "'many' is neither a number of heads"),
        (
            ("--scores", "RANKING", "--top", "5,5%"),
            "give numbers of heads, such as 5, or shares, such as 0.05, not both",
        ),
    ],
)
def test_mistakes_are_named_before_anything_is_written(
    arguments: tuple[str, ...], message: str, ranking: Path, tmp_path: Path
):
    options = [str(ranking) if word == "RANKING" else word for word in arguments]
    result = invoke_on_toy("ablate", "--data", "scenes=2", *options, "--out", tmp_path / "run")
    assert result.exit_code == 2, result.output
    assert message in text_of(result)
    assert not (tmp_path / "run").exists()
