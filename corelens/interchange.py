"""Head scores in the forms that others read and write."""

import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from einops import repeat

from corelens.heads import Head
from corelens.scores import HeadScores


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
