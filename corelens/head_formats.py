"""Head scores in other formats: Parquet tables, and the head lists that papers publish."""

import json
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from einops import repeat

from corelens.errors import optional_import
from corelens.heads import Head, HeadSet
from corelens.scores import HeadScores


def to_parquet(scores: Sequence[HeadScores], path: str | PathLike[str]) -> None:
    """Write a table with a row for every metric, sample and head; pandas, polars and DuckDB read it.

    Columns: `model`, `metric`, `dataset`, `sample`, `layer`, `head`, `score`. Heads without a score have no row.
    """
    with optional_import("app"):
        import pyarrow as pa
        from pyarrow import parquet

    tables = []
    for head_scores in scores:
        n_samples, n_layers, n_heads = head_scores.values.shape
        layer = repeat(np.arange(n_layers), "layer -> sample layer head", sample=n_samples, head=n_heads)
        head = repeat(np.arange(n_heads), "head -> sample layer head", sample=n_samples, layer=n_layers)
        sample = repeat(np.arange(n_samples), "sample -> sample layer head", layer=n_layers, head=n_heads)
        values = head_scores.values.cpu().numpy()
        mask = ~np.isnan(values)
        tables.append(
            pa.table(
                {
                    "model": pa.repeat(head_scores.model, int(mask.sum())),
                    "metric": pa.repeat(head_scores.metric, int(mask.sum())),
                    "dataset": pa.array(head_scores.datasets or [""] * n_samples).take(pa.array(sample[mask])),
                    "sample": pa.array(head_scores.samples).take(pa.array(sample[mask])),
                    "layer": layer[mask].astype(np.int32),
                    "head": head[mask].astype(np.int32),
                    "score": values[mask],
                }
            )
        )
    parquet.write_table(pa.concat_tables(tables), path)


def save_head_score_list(scores: HeadScores, path: str | PathLike[str]) -> None:
    """Write the format of MMRetHeads (arXiv 2605.27243): `{"head_score_list": [["layer-head", score], ...]}`.

    Heads are listed best first with one number each, so the samples are lost.
    """
    rows = [[f"{layer}-{head}", float(scores.per_head[layer, head])] for layer, head in scores.ranked()]
    Path(path).write_text(json.dumps({"head_score_list": rows}))


def load_head_score_list(path: str | PathLike[str], metric: str = "published score") -> HeadScores:
    """Read published scores as scores of one sample, which is the file; see `load_published`.

    Raises:
        ValueError: If the file does not hold such scores.
    """
    published = _read(Path(path))
    if isinstance(published, HeadSet):
        raise ValueError(f"{path} names heads without scores.")
    return _as_scores(published, path, metric, _shape_of(published))


def load_published(path: str | PathLike[str], layers: int, heads: int) -> HeadScores | HeadSet:
    """Read a published list of a model's heads, with scores or without.

    With scores: `{"head_score_list": [["21-10", 0.5], ...]}`, or that list alone (MMRetHeads, arXiv 2605.27243);
    `{"21-10": [0.4, 0.6], ...}`, a score for each trial, or one (retrieval heads, arXiv 2404.15574; SparseMM, arXiv
    2506.05344). Without, best first: `["L21H10", ...]`, `[[21, 10], ...]`, and what `HeadSet.save` writes.

    Args:
        path: A JSON file. Layers and heads count from zero.
        layers: Number of layers of the model.
        heads: Number of heads of a layer.

    Returns:
        Scores of one sample, which is the file, or a head set if the list has no scores.

    Raises:
        ValueError: If the file holds something else, or heads that the model does not have; states both sizes.
        OSError: If it cannot be read.
    """
    published = _read(Path(path))
    n_layers, n_heads = _shape_of(published)
    if (n_layers, n_heads) != (layers, heads) and len(published) == n_layers * n_heads and min(n_layers, n_heads) > 1:
        raise ValueError(
            f"{path} scores all heads of {n_layers} layers of {n_heads} heads, and the run has {layers} layers of "
            f"{heads}."
        )
    if outside := [str(head) for head in published if head.layer >= layers or head.head >= heads]:
        raise ValueError(
            f"{path} lists {outside[0]}, and the run has {layers} layers of {heads} heads: the list goes on to layer "
            f"{n_layers - 1} and head {n_heads - 1}, counted from zero. Is it of another model?"
        )
    if isinstance(published, HeadSet):
        return published
    return _as_scores(published, path, "published score", (layers, heads))


def _shape_of(heads: Iterable[Head]) -> tuple[int, int]:
    """Smallest numbers of layers and of heads a layer that all these heads fit into."""
    layers, numbers = zip(*heads, strict=True)
    return max(layers) + 1, max(numbers) + 1


def _as_scores(
    score_of: Mapping[Head, float], path: str | PathLike[str], metric: str, shape: tuple[int, int]
) -> HeadScores:
    values = torch.full((1, *shape), torch.nan)
    for head, score in score_of.items():
        values[0, head.layer, head.head] = score
    return HeadScores(values, metric, (str(path),))


def _read(path: Path) -> dict[Head, float] | HeadSet:
    """Heads of a list with their scores, or a head set if it has none."""
    try:
        saved = json.loads(path.read_text())
        if isinstance(saved, dict) and "heads" in saved:
            rows, heads = saved["heads"], HeadSet(tuple(map(_parse_head, saved["heads"])), str(saved["name"]))
        else:
            rows = saved.get("head_score_list", list(saved.items())) if isinstance(saved, dict) else saved
            if all(isinstance(row, str) or all(isinstance(number, int) for number in row) for row in rows):
                heads = HeadSet(tuple(map(_parse_head, rows)), path.name)
            else:
                heads = {
                    _parse_head(name): fmean(score if isinstance(score, list) else [score]) for name, score in rows
                }
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as cause:
        raise ValueError(
            f'{path} does not hold a list of heads such as {{"head_score_list": [["21-10", 0.5], ...]}}, '
            f'{{"21-10": [0.4, 0.6], ...}} or ["L21H10", ...]: {cause}'
        ) from cause
    if isinstance(heads, dict) and (len(heads) < len(rows) or not np.isfinite(list(heads.values())).all()):
        raise ValueError(f"{path} lists a head twice, or a score that is no finite number.")
    if not heads:
        raise ValueError(f"{path} lists no head.")
    return heads


def _parse_head(name: str | Sequence[int]) -> Head:
    """Parse a head written as L21H10, as 21-10, or as layer and head."""
    if isinstance(name, str) and "-" not in name:
        return Head.parse(name)
    layer, head = map(int, name.split("-") if isinstance(name, str) else name)
    if min(layer, head) < 0:
        raise ValueError(f"layer {layer} and head {head} must count from zero.")
    return Head(layer, head)
