"""Acceleration from made-up accuracies and speeds, and the file that keeps measured speeds."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from corelens import HookedMLLM, SparseResults, toy
from corelens.experiments.speed import Speed
from corelens.sparse import Full, HeadPlan
from corelens.study.acceleration import Timing, acceleration, measure_timing


def test_acceleration_needs_speed_and_accuracy():
    def sparse_results(core: float) -> SparseResults:
        accuracies = {"plain": 0.9, "core 5%": core, "random 5%": 0.2}
        values = {name: (torch.arange(100) < 100 * accuracy).float()[:, None] for name, accuracy in accuracies.items()}
        plans: Mapping[str, Sequence[HeadPlan]] = {name: [] for name in values}
        recall = {name: torch.ones(100, 1) for name in values}
        return SparseResults(plans, values, tuple(map(str, range(100))), ("a",) * 100, {}, recall)

    def timing(ratio: float) -> Timing:
        rounds = [
            {"plain": Speed(seconds * ratio, 1.0, 1), "core 5%": Speed(seconds, 1.0, 1)} for seconds in (1.0, 1.1, 1.2)
        ]
        return Timing(rounds, 9, "an abacus")

    finding = acceleration(sparse_results(0.9), timing(2.0))
    assert finding.verdict == "supported"
    assert "9 positions, the longest, on an abacus" in finding.notes[0]
    assert acceleration(sparse_results(0.9), timing(1.1)).verdict == "not supported"
    assert acceleration(sparse_results(0.5), timing(2.0)).verdict == "not supported"
    two_datasets = replace(sparse_results(0.5), datasets=("short",) * 50 + ("long",) * 50)
    measurements = acceleration(two_datasets, timing(2.0)).measurements
    changes = {measurement.name: measurement.value for measurement in measurements}
    assert changes["change of accuracy"] == pytest.approx(-0.4)
    assert changes["change of accuracy, short"] == 0.0
    assert changes["change of accuracy, long"] == pytest.approx(-0.8)
    assert changes["accuracy above random heads', short"] == pytest.approx(0.6)


def test_speeds_of_another_prompt_or_of_other_plans_are_not_kept(toy_model: HookedMLLM, tmp_path: Path):
    scene, text = ({"": list(samples)} for samples in (toy.scenes(1, 0), toy.texts(1, 0, "sum")))
    plans = {"core 5%": [HeadPlan({}, Full(), name="all")]}
    one_round = measure_timing(toy_model, scene, plans, 1, tmp_path)
    two_rounds = measure_timing(toy_model, scene, plans, 2, tmp_path)
    assert two_rounds.rounds[:1] == one_round.rounds
    assert len(two_rounds.rounds) == 2
    assert measure_timing(toy_model, scene, plans, 2, tmp_path) == two_rounds
    assert measure_timing(toy_model, scene, plans, 1, tmp_path) == one_round
    assert measure_timing(toy_model, text, plans, 1, tmp_path).positions < one_round.positions
    assert set(measure_timing(toy_model, text, {}, 1, tmp_path).rounds[0]) == {"plain"}
