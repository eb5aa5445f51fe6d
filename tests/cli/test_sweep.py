"""The command sweep: against the function that it calls, and its errors."""

from pathlib import Path

import pytest
from torch.testing import assert_close

import corelens as cl
from corelens import HookedMLLM, toy
from corelens.metrics import false_discovery_rates, mean_p_values, simultaneous_interval
from tests.helpers.cli import invoke_on_toy, json_of, text_of


def test_the_sweep_of_the_command_is_the_sweep(toy_model: HookedMLLM, tmp_path: Path):
    out = tmp_path / "run"
    listed = json_of("sweep", "--data", "scenes=9", "--limit", 5, "--out", out)
    expected = cl.sweep(toy_model, list(toy.scenes(5, seed=0))).scores()
    scores = cl.HeadScores.load(out / "sweep.safetensors")
    assert_close(scores.values, expected.values, atol=1e-5, rtol=1e-4)
    assert (scores.samples, scores.datasets, scores.metric) == (expected.samples, ("scenes",) * 5, expected.metric)
    assert [one["heads"] for one in listed["units"]] == [str(head) for head in scores.ranked()]
    costliest = listed["units"][0]
    low, high = simultaneous_interval(scores.values)
    head = scores.ranked()[0]
    assert_close(costliest["interval"], [float(low[head]), float(high[head])], atol=1e-4, rtol=0)
    assert costliest["interval"][0] <= costliest["drop"] <= costliest["interval"][1]
    rates = false_discovery_rates(mean_p_values(scores.values))
    assert (listed["false discovery rate"], listed["with an effect"]) == (0.05, int((rates <= 0.05).sum()))
    again = invoke_on_toy("sweep", "--data", "scenes=9", "--limit", 5, "--fdr", "0.5", "--out", out)
    n_found = int((rates <= 0.5).sum())
    assert f"{n_found} of 96 heads have an effect, at a false discovery rate of 0.5." in text_of(again)
    assert "5 samples, each head ablated by itself (zero)" in text_of(again)
    assert costliest["name"] in text_of(again)
    assert "how was 'zero' and is 'mean'" in text_of(
        invoke_on_toy("sweep", "--data", "scenes=5", "--how", "mean", "--out", out)
    )
    assert "holds a run of corelens sweep, not of scan" in text_of(
        invoke_on_toy("scan", "--data", "scenes=5", "--out", out)
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--how", "median"), "'median' is not one of 'zero', 'mean', 'mean_by_role', 'resample'"),
        (("--fdr", "1"), "1 is not between 0 and 1"),
        (("--per", "neuron"), "'neuron' is not one of 'head', 'layer', 'group'"),
        (("--data", "scenes"), "has no place; write NAME=WHERE"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(arguments: tuple[str, ...], message: str, tmp_path: Path):
    result = invoke_on_toy("sweep", "--data", "scenes=2", *arguments, "--out", tmp_path / "run")
    assert result.exit_code == 2, result.output
    assert message in text_of(result)
    assert not (tmp_path / "run").exists()
