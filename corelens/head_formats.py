"""Head scores in the forms that others read and write."""

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from einops import repeat

from corelens.errors import optional_import
from corelens.heads import Head, HeadSet
from corelens.scores import HeadScores


def to_parquet(scores: Sequence[HeadScores], path: str | PathLike[str]) -> None:
    """Writes a table with a row for every metric, sample and head; pandas, polars and DuckDB read it.

    Columns: `model`, `metric`, `dataset`, `sample`, `layer`, `head`, `score`. Heads without a score have no row.
    """
    with optional_import("app"):
        import pyarrow as pa
        from pyarrow import parquet

    tables = []
    for one in scores:
        n_samples, n_layers, n_heads = one.values.shape
        layer = repeat(np.arange(n_layers), "layer -> sample layer head", sample=n_samples, head=n_heads)
        head = repeat(np.arange(n_heads), "head -> sample layer head", sample=n_samples, layer=n_layers)
        sample = repeat(np.arange(n_samples), "sample -> sample layer head", layer=n_layers, head=n_heads)
        values = one.values.cpu().numpy()
        known = ~np.isnan(values)
        tables.append(
            pa.table(
                {
                    "model": pa.repeat(one.model, int(known.sum())),
                    "metric": pa.repeat(one.metric, int(known.sum())),
                    "dataset": pa.array(one.datasets or [""] * n_samples).take(pa.array(sample[known])),
                    "sample": pa.array(one.samples).take(pa.array(sample[known])),
                    "layer": layer[known].astype(np.int32),
                    "head": head[known].astype(np.int32),
                    "score": values[known],
                }
            )
        )
    parquet.write_table(pa.concat_tables(tables), path)


def save_head_score_list(scores: HeadScores, path: str | PathLike[str]) -> None:
    """Writes the form that MMRetHeads (arXiv 2605.27243) publish: `{"head_score_list": [["layer-head", score], ...]}`.

    Best first; one number per head, so the samples are lost.
    """
    rows = [[f"{layer}-{head}", float(scores.per_head[layer, head])] for layer, head in scores.ranked()]
    Path(path).write_text(json.dumps({"head_score_list": rows}))


def load_head_score_list(path: str | PathLike[str], metric: str = "published score") -> HeadScores:
    """Reads published scores as scores of one sample, which is the file; see `load_published`.

    Raises:
        ValueError: If the file does not hold such scores.
    """
    found = _read(Path(path))
    if isinstance(found, HeadSet):
        raise ValueError(f"{path} names heads without scores.")
    return _as_scores(found, path, metric, (max(found).layer + 1, max(head.head for head in found) + 1))


def load_published(path: str | PathLike[str], layers: int, heads: int) -> HeadScores | HeadSet:
    """Reads what others publish about the heads of a model.

    With scores: `{"head_score_list": [["21-10", 0.5], ...]}`, or that list alone (MMRetHeads, arXiv 2605.27243);
    `{"21-10": [0.4, 0.6], ...}`, a score for each trial, or one (retrieval heads, arXiv 2404.15574; SparseMM, arXiv
    2506.05344). Without, best first: `["L21H10", ...]`, `[[21, 10], ...]`, and what `HeadSet.save` writes.

    Args:
        path: A JSON file. Layers and heads count from zero.
        layers: How many the model has.
        heads: How many a layer has.

    Raises:
        ValueError: If the file holds something else, or heads that the model does not have; states both sizes.
        OSError: If it cannot be read.
    """
    found = _read(Path(path))
    own = max(found).layer + 1, max(head.head for head in found) + 1
    if own != (layers, heads) and len(found) == own[0] * own[1] and min(own) > 1:
        raise ValueError(
            f"{path} scores all heads of {own[0]} layers of {own[1]} heads, and the run has {layers} layers of {heads}."
        )
    if outside := [str(head) for head in found if head.layer >= layers or head.head >= heads]:
        raise ValueError(
            f"{path} lists {outside[0]}, and the run has {layers} layers of {heads} heads: the list goes on to layer "
            f"{own[0] - 1} and head {own[1] - 1}, counted from zero. Is it of another model?"
        )
    return found if isinstance(found, HeadSet) else _as_scores(found, path, "published score", (layers, heads))


def _as_scores(
    found: Mapping[Head, float], path: str | PathLike[str], metric: str, shape: tuple[int, int]
) -> HeadScores:
    values = torch.full((1, *shape), torch.nan)
    for head, score in found.items():
        values[0, head.layer, head.head] = score
    return HeadScores(values, metric, (str(path),))


def _read(path: Path) -> dict[Head, float] | HeadSet:
    """Heads with their scores, or without."""
    try:
        saved = json.loads(path.read_text())
        if isinstance(saved, dict) and "heads" in saved:
            return _some(path, HeadSet(tuple(map(_head, saved["heads"])), str(saved["name"])))
        rows = saved.get("head_score_list", list(saved.items())) if isinstance(saved, dict) else saved
        if all(isinstance(row, str) or all(isinstance(one, int) for one in row) for row in rows):
            return _some(path, HeadSet(tuple(map(_head, rows)), path.name))
        scores = {_head(name): fmean(score if isinstance(score, list) else [score]) for name, score in rows}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as cause:
        raise ValueError(
            f'{path} does not hold a list of heads such as {{"head_score_list": [["21-10", 0.5], ...]}}, '
            f'{{"21-10": [0.4, 0.6], ...}} or ["L21H10", ...]: {cause}'
        ) from cause
    if len(scores) < len(rows) or not np.isfinite(list(scores.values())).all():
        raise ValueError(f"{path} lists a head twice, or a score that is no finite number.")
    return _some(path, scores)


def _some(path: Path, found: Any) -> Any:
    if not found:
        raise ValueError(f"{path} lists no head.")
    return found


def _head(name: str | Sequence[int]) -> Head:
    """As L21H10, 21-10, or layer and head."""
    if isinstance(name, str) and "-" not in name:
        return Head.parse(name)
    layer, head = map(int, name.split("-") if isinstance(name, str) else name)
    if min(layer, head) < 0:
        raise ValueError(f"layer {layer} and head {head} must count from zero.")
    return Head(layer, head)
