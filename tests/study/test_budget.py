"""Planned work of a study, counted by hand."""

from dataclasses import replace
from pathlib import Path

import pytest

from corelens import Sample
from corelens.study.budget import Throughput, halves, planned_work
from tests.helpers.studies import SMALL_BUDGET, study_samples


def test_halves_share_no_sample_and_pieces_count_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pictures, texts = study_samples(9)
    scanned, tested = halves(pictures)
    assert [(len(scanned[name]), len(tested[name])) for name in scanned] == [(5, 4), (5, 4)]
    assert not {sample.id for sample in scanned["few"]} & {sample.id for sample in tested["few"]}
    works = planned_work(pictures, texts, SMALL_BUDGET, 96)
    assert (works["scan"].samples, works["scan"].conditions) == (10, 1)
    assert (works["ablate"].samples, works["ablate"].conditions) == (8, 1 + 5 + 2 + 2 * 2)
    assert (works["ablate-texts"].samples, works["ablate-texts"].conditions) == (9, 1 + 5)
    assert (works["mask"].samples, works["mask"].conditions) == (8, 1 + 3 * 2)
    assert (works["query-tokens"].samples, works["query-tokens"].conditions) == (8, 1 + 3 * 2)
    # Two data sets whose scenes ask for a digit or a colour, and too few of each.
    assert (works["tasks"].samples, works["tasks"].total) == (0, 0)
    assert (works["unnamed-tasks"].samples, works["unnamed-tasks"].total) == (0, 0)
    assert planned_work(*study_samples(40), SMALL_BUDGET, 96)["tasks"].conditions == 1 + 2 * 4
    assert (works["effects"].samples, works["effects"].conditions) == (4, 96)
    assert planned_work(pictures, texts, SMALL_BUDGET, 12)["mask"].conditions == 1 + 3
    assert works["ablate"].remaining(tmp_path) == works["ablate"].total == 8 * 12
    throughput = Throughput(2.0, 3.0)
    assert throughput.remaining_seconds(works["scan"], tmp_path) == 20
    (tmp_path / "ablate" / "parts").mkdir(parents=True)
    (tmp_path / "ablate" / "parts" / "00000.parquet").touch()
    assert throughput.remaining_seconds(works["ablate"], tmp_path) == 0  # a shard holds sixteen samples
    assert throughput.remaining_seconds(works["ablate-texts"], tmp_path) == 3 * 9 * 6
    monkeypatch.setattr("corelens.experiments.throughput.DRAWS_SECONDS", 60.0)
    assert replace(SMALL_BUDGET, n_matched=100).affordable(throughput, 8).n_matched == 10  # 24 seconds a draw
    assert replace(SMALL_BUDGET, n_matched=100).affordable(Throughput(2.0, 0.5), 8).n_matched == 15
    assert SMALL_BUDGET.affordable(Throughput(2.0, 0.5), 8).n_matched == SMALL_BUDGET.n_matched
    with pytest.raises(ValueError, match="few has 3 samples; a study needs four or more of each"):
        halves({"few": pictures["few"][:3]})


def numbered(groups: str) -> list[Sample]:
    """Samples about pictures with these names, or with none where there is a dot."""
    return [
        Sample(str(number), "?", "", about={} if name == "." else {"group": name}) for number, name in enumerate(groups)
    ]


@pytest.mark.parametrize(
    ("samples", "first"),
    [
        ({"a": "........."}, {"a": "02468"}),
        ({"a": "ppqqrrss"}, {"a": "0145"}),
        ({"a": "pqrspqrs"}, {"a": "0246"}),
        ({"a": "pppppqrs"}, {"a": "012346"}),
        # A document in two data sets is in one half of both.
        ({"a": "ppqqrrss", "b": "qprs"}, {"a": "0145", "b": "12"}),
        ({"a": "pqrs", "b": "rqxyz"}, {"a": "02", "b": "024"}),
    ],
)
def test_no_picture_is_in_both_halves(samples: dict[str, str], first: dict[str, str]):
    scanned, tested = halves({name: numbered(groups) for name, groups in samples.items()})
    assert {name: "".join(sample.id for sample in half) for name, half in scanned.items()} == first
    groups = [{sample.group for half in of_half.values() for sample in half} for of_half in (scanned, tested)]
    assert not groups[0] & groups[1]
    assert sum(map(len, [*scanned.values(), *tested.values()])) == sum(map(len, samples.values()))


def test_a_study_needs_four_pictures_of_each_data_set():
    with pytest.raises(ValueError, match="a has 9 samples of 3 groups; a study needs four or more of each"):
        halves({"a": numbered("pppqqqrrr")})
    with pytest.raises(ValueError, match="b has 5 samples of 4 groups, of which 3 and 1 are in the halves; a study"):
        halves({"a": numbered("pqrsvw"), "b": numbered("prrvx")})
