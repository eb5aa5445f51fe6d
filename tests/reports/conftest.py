"""Runs that the reports are of. As in `tests/conftest.py`, nothing here imports corelens at module level."""

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="package")
def runs(toy_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished scan, ablation, sweep and scan of key tokens."""
    import corelens as cl
    from corelens import toy
    from corelens.experiments.key_tokens import rank_and_draw, scan_key_tokens
    from corelens.experiments.sweep import run_sweep

    folder = tmp_path_factory.mktemp("runs")
    datasets = {"few": list(toy.scenes(6, 0, n_things=3)), "many": list(toy.scenes(6, 1))}
    scores = cl.scan_metrics(toy_model, datasets, ["ram", "write_ram", "spatial_entropy"], out=folder / "scan")
    norms = cl.scan(toy_model, datasets["many"], "question_write_norm")
    texts = list(toy.texts(5, 0, "copy"))
    conditions = scores["ram"].controls(0.05, range(2))
    cl.run_ablation(
        toy_model,
        {"many": datasets["many"], "copy": texts},
        conditions,
        max_new_tokens=4,
        write_norm=norms,
        out=folder / "ablate",
    )
    scan_key_tokens(
        toy_model,
        {name: data[:4] for name, data in datasets.items()},
        rank_and_draw(scores["ram"], 4),
        out=folder / "key-tokens",
    )
    run_sweep(toy_model, list(toy.scenes(2, 0)), out=folder / "sweep")
    return folder
