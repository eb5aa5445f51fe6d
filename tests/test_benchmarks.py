"""The protocol of the latency benchmark, at lengths that are short."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from corelens.heads import HeadSet
from corelens.hf.versions import CACHE
from corelens.sparse import Full, HeadPlan, StreamingBlocks

SCRIPT = Path(__file__).parent.parent / "benchmarks/prefill_latency.py"


def small_blocks(heads: HeadSet) -> HeadPlan:
    return HeadPlan(dict.fromkeys(heads, Full()), StreamingBlocks(1, 2, 16), "query", name=heads.name)


def test_prefill_is_timed_by_the_papers_protocol_and_running_out_of_memory_is_logged(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    script = runpy.run_path(str(SCRIPT))
    passes: list[tuple[int, bool]] = []

    def forward(model: Any, args: Any, kwargs: Any) -> None:
        planned = kwargs[CACHE] is not None
        passes.append((args[0].shape[1], planned))
        if args[0].shape[1] == 96 and not planned:
            raise torch.OutOfMemoryError("CUDA out of memory")

    def tiny(*arguments: Any) -> Any:
        model = script["language_model"](*arguments)
        model.register_forward_pre_hook(forward, with_kwargs=True)
        return model

    monkeypatch.setitem(script["SIZES"], "small", ("qwen3", (2, 32, 64, 4, 2, 8), (2,)))
    main = script["main"]
    # So that a short prompt is longer than sinks and window.
    monkeypatch.setitem(main.__globals__, "published", small_blocks)
    monkeypatch.setitem(main.__globals__, "language_model", tiny)
    options = ["--lengths", "64", "96", "--counts", "1", "4", "--figure", str(tmp_path / "figure.html")]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options])
    main()
    printed = capsys.readouterr()
    results = json.loads(printed.out.splitlines()[-1])
    # Two warm-ups and five passes, dense and under each plan.
    assert passes == [*[(64, False)] * 7, *[(64, True)] * 14, (96, False), *[(96, True)] * 14]
    assert results["96"]["dense, seconds"] is None
    assert "96 positions, dense: CUDA out of memory" in printed.err
    for count in ("1", "4"):
        measured = results["64"]["kept heads"][count]
        assert measured["speed-up"] == pytest.approx(results["64"]["dense, seconds"] / measured["seconds"])
        assert not measured["full attention"]
        assert results["96"]["kept heads"][count]["speed-up"] is None
        assert results["96"]["kept heads"][count]["seconds"] > 0
    cases = (("64", "4"), ("64", "1"), ("96", "1"))
    limits = [results[n]["kept heads"][count]["limit of arithmetic"] for n, count in cases]
    assert 1 < limits[0] < limits[1] < limits[2]
    assert "4 heads" in (tmp_path / "figure.html").read_text()
