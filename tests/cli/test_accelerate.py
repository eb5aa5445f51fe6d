"""The command accelerate: against the functions it stands for, resumed, and its mistakes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from corelens.heads import HeadSet
from corelens.model import HookedMLLM
from corelens.reports import write_report
from corelens.scores import HeadScores
from corelens.sparse import hybrid, resolve
from tests.helpers.cli import invoke_on_toy, text_of
from tests.helpers.run_folders import shards_of


def ranking(folder: Path) -> Path:
    """Scores of the shipped model in which the five heads that fetch the digit come first."""
    values = torch.rand(1, 6, 16, generator=torch.Generator().manual_seed(0)) / 2
    for place, head in enumerate(HeadSet.parse("L3H14, L3H0, L2H10, L2H4, L2H6")):
        values[0, head.layer, head.head] = 1 - place / 100
    HeadScores(values, "ram", ("a",), model="corelens/toy").save(folder / "ram.safetensors")
    return folder / "ram.safetensors"


def test_the_command_compares_plans_and_goes_on_where_it_was(toy_model: HookedMLLM, tmp_path: Path):
    options = ["--data", "scenes=18", "--scores", ranking(tmp_path), "--sink", 4, "--window", 16, "--budget", 0.05]
    options += ["--max-new-tokens", 4, "--out", tmp_path / "run"]
    ran = invoke_on_toy("accelerate", *options, "--json")
    assert ran.exit_code == 0, ran.output
    summary = json.loads(ran.stdout)
    assert json.loads((tmp_path / "run/acceleration.json").read_text()) == summary
    conditions = summary["data"]["scenes"]["conditions"]
    chosen = ("core", "write-matched", "random", "random, same layers", "bottom", "best groups", "groups by mean")
    budgeted = (*chosen, "whole layers")
    assert list(conditions) == ["plain", "none", *(f"{way} 5%" for way in budgeted), "visual tokens 5%"]
    assert conditions["plain"]["accuracy"] >= 0.9
    assert conditions["core 5%"]["change"] >= -0.1
    assert conditions["random 5%"]["change"] < -0.3
    # Most heads of this model write nothing, so that random ones are a control in name only.
    assert conditions["core 5%"]["heads that write"] == [5]
    assert max(conditions["random 5%"]["heads that write"]) < 5
    assert conditions["write-matched 5%"]["heads that write"] == [5, 5, 5]
    resolved = resolve(
        hybrid(HeadSet.parse("L3H14, L3H0, L2H10, L2H4, L2H6"), 4, 16, granularity="query"), toy_model.hf_model
    )
    core = summary["plans"]["core 5%"]
    assert core["full heads"] == round(5 / 96, 4)
    assert core["cache"] == resolved.bytes(summary["positions"] + 17)
    assert core["stored cache"] == round(resolved.share_of_cache(summary["positions"]), 4) < 1
    assert not core["full attention"]
    is_slow = all(plan.get("generation", 0) < 1.05 for name, plan in summary["plans"].items() if name != "plain")
    assert ("positions are too short to gain from one" in (tmp_path / "run/acceleration.html").read_text()) == is_slow
    page = (tmp_path / "run/acceleration.html").read_text()
    assert "times fewer bytes of keys and values" in page
    accuracies = [100 * conditions[name]["accuracy"] for name in ("plain", "core 5%", "write-matched 5%")]
    lead = "accuracy goes from {:.1f} to {:.1f} percent on scenes (as many random heads that write as much: {:.1f} on "
    assert (lead + "scenes)").format(*accuracies) in page
    assert f"{summary['plans']['plain']['cache'] / core['cache']:.1f} times fewer bytes" in page
    for name, result in conditions.items():
        assert f'<td>{name}</td><td class="number">{100 * result["accuracy"]:.1f}</td>' in page
    (tmp_path / "run/acceleration.html").unlink()
    assert write_report(tmp_path / "run") == tmp_path / "run/acceleration.html"
    assert (tmp_path / "run/acceleration.html").read_text() == page
    shards = shards_of(tmp_path / "run")
    again = invoke_on_toy("accelerate", *options)
    share = f"{100 * core['stored cache']:.1f}"
    assert re.search(rf"core 5% +\d.* 5\.2 +5 +{share} +\d\.\d\dx", again.output), again.output
    assert "…" not in again.output
    assert shards_of(tmp_path / "run") == shards
    other = invoke_on_toy("accelerate", *options[:-2], "--text", "--out", tmp_path / "run")
    assert "holds another run: plans.none was" in text_of(other)


def test_the_published_plan_is_full_attention_on_short_prompts_and_says_so(tmp_path: Path):
    options = ["--data", "scenes=4", "--scores", ranking(tmp_path), "--plan", "published", "--heads", 5, "--heads", 20]
    ran = invoke_on_toy("accelerate", *options, "--max-new-tokens", 2, "--out", tmp_path / "run")
    assert ran.exit_code == 0, ran.output
    assert "the first 512 and last 4096 tokens are all of the longest prompt, which has 7" in text_of(ran)
    assert "Pass less, such as --plan corelens --sink" in text_of(ran)
    assert "every plan is full attention, and the table compares the model with itself" in text_of(ran)
    summary = json.loads((tmp_path / "run/acceleration.json").read_text())
    assert {"core 5", "random 5", "core 20", "best groups 20", "visual tokens 20.8%"} <= summary["plans"].keys()
    for name, n in (("core 5", 5), ("random, same layers 5", 5), ("bottom 20", 20)):
        plan = summary["plans"][name]
        assert (plan["full heads"], plan["stored cache"], plan["kept attention"]) == (round(n / 96, 4), 1, 1)
        assert summary["data"]["scenes"]["conditions"][name]["change"] == 0
    page = (tmp_path / "run/acceleration.html").read_text()
    assert "the first 512 and last 4096 tokens are all of the longest prompt" in page  # as the shell warned
    assert "every plan is full attention, and the table compares the model with itself" in page
    assert "streaming in the prompt (first 4 and last 32 blocks of 128)" in page
    assert "5.2 percent of heads and 100.0 percent of the cache" in page


@pytest.mark.parametrize(("sink", "window", "said_so"), [(128, 2048, True), (4, 16, False)])
def test_plans_that_change_nothing_are_named_before_anything_runs(
    sink: int, window: int, said_so: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def stop(*_: Any, **__: Any) -> None:
        raise ValueError("enough")

    monkeypatch.setattr("corelens.experiments.sparse_eval.run_sparse_eval", stop)
    options = ["--data", "scenes=2", "--scores", ranking(tmp_path), "--sink", sink, "--window", window]
    ran = invoke_on_toy("accelerate", *options, "--out", tmp_path / "run")
    assert "enough" in text_of(ran)
    warned = "the first 128 and last 2048 tokens are all of the longest prompt, which has 77. Pass less" in text_of(ran)
    assert warned == said_so


def test_mistakes_are_said_before_anything_is_written(tmp_path: Path):
    common = ["--data", "scenes=2", "--out", tmp_path / "run", "--scores"]
    for options, words in {
        (*common, tmp_path / "none.safetensors"): "there is no file",
        (*common, __file__): "holds no head scores",
        (*common, ranking(tmp_path), "--budget", 0): "0.0 is no share of heads",
        (*common, ranking(tmp_path), "--budget", 1.5): "1.5 is no share of heads",
        (*common, ranking(tmp_path), "--window", 0): "--window",
        (*common, ranking(tmp_path), "--heads", 0): "--heads",
        (*common, ranking(tmp_path), "--heads", 97): "97 heads of 96 cannot be chosen",
        (*common, ranking(tmp_path), "--plan", "paper"): "--plan",
        (*common, ranking(tmp_path), "--plan", "published", "--sink", 4): "the published plan has 4 and 32 blocks",
    }.items():
        ran = invoke_on_toy("accelerate", *options)
        assert ran.exit_code == 2, ran.output
        assert words in text_of(ran)
    assert not (tmp_path / "run").exists()
