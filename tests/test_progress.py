"""Progress bars: one bar over several pieces of work."""

from typing import NoReturn

import pytest

from corelens.progress import nested_progress, progress, total_progress


def test_pieces_move_the_whole_by_what_each_unit_is_worth(capsys: pytest.CaptureFixture[str]):
    with total_progress(20, "all", "pass") as bar:
        assert nested_progress()
        bar.begin("scan", 1)
        with progress(5, "scan", "sample", finished=2) as advance:
            assert (bar.bar.n, bar.bar.initial) == (2, 2)  # what was finished before does not count for the speed
            advance(3)
        bar.begin("ablate", 3)
        with progress(5, "ablate", "sample") as advance:
            advance(4)
            advance(1)
        assert bar.bar.n == 20
    assert not nested_progress()
    output = capsys.readouterr().err
    assert "all: 100%" in output
    assert "scan:" not in output


def test_alone_a_piece_draws_its_own_bar(capsys: pytest.CaptureFixture[str]):
    with progress(5, "scan", "sample", finished=2) as advance:
        advance(3)
    assert "scan: 100%" in capsys.readouterr().err


def test_the_whole_ends_with_its_block_even_when_that_fails():
    def fail() -> NoReturn:
        with total_progress(1, "all", "pass"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not nested_progress()
