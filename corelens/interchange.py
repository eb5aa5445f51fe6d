"""Head scores in the forms that others read and write."""

import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from einops import repeat

from corelens.heads import Head
from corelens.metrics.stability import jaccard, rank_biased_overlap, spearman
from corelens.scores import HeadScores


class Agreement(NamedTuple):
    """How far two data sets, models or metrics agree about heads."""

    jaccard: float
    """Of the top sets."""

    spearman: float
    """Over all heads that both score."""

    rank_biased_overlap: float
    """Of the rankings, where the top counts most."""


def agreement(one: HeadScores, other: HeadScores, n: float | int = 0.05) -> Agreement:
    """How far two scores of the same heads agree; `n` is the size of the top sets.

    Raises:
        ValueError: If they do not score the same heads.
    """
    if one.values.shape[1:] != other.values.shape[1:] or not torch.equal(one.exist, other.exist):
        raise ValueError(
            f"these scores are of {one.n_heads} and {other.n_heads} heads in {tuple(one.values.shape[1:])} and "
            f"{tuple(other.values.shape[1:])} layers and heads: only scores of the same heads can be compared."
        )
    return Agreement(
        jaccard(set(one.top(n)), set(other.top(n))),
        spearman(one.per_head, other.per_head),
        rank_biased_overlap(one.ranked(), other.ranked()),
    )


def to_parquet(scores: Sequence[HeadScores], path: str | PathLike[str]) -> None:
    """Writes a table with a row for every metric, sample and head; pandas, polars and DuckDB read it.

    Columns: `model`, `metric`, `dataset`, `sample`, `layer`, `head`, `score`. Heads without a score have no row.
    """
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
    """Reads a published `head_score_list` as scores of one sample, which is the file.

    Raises:
        ValueError: If the file does not hold such a list.
    """
    try:
        saved = json.loads(Path(path).read_text())
        rows = saved["head_score_list"] if isinstance(saved, dict) else saved
        found = {Head(*map(int, name.split("-"))): float(score) for name, score in rows}
    except (KeyError, TypeError, ValueError, AttributeError) as cause:
        raise ValueError(f'{path} does not hold a head_score_list of the form [["layer-head", score], ...].') from cause
    if not found:
        raise ValueError(f"{path} lists no head.")
    values = torch.full((1, max(found).layer + 1, max(head.head for head in found) + 1), torch.nan)
    for head, score in found.items():
        values[0, head.layer, head.head] = score
    return HeadScores(values, metric, (str(path),))


