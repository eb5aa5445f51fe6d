"""Head scores in other formats: Parquet tables, published head lists, and lists that say what they are."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from io import BytesIO
from os import PathLike
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np
import torch
from einops import repeat
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from corelens.errors import optional_import
from corelens.files import parse_json, write_file
from corelens.heads import Head, HeadSet, as_head
from corelens.scores import HeadScores

MOST_HEADS = 1_000_000
"""Most heads of the model that a list without a model may be of: the largest have some 20,000."""


FORMAT = "corelens head list 1"
"""Mark and version of a file that holds a `HeadList`."""


class ListedHead(BaseModel):
    """A head of a `HeadList`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    head: str = Field(pattern=r"^L[0-9]{1,6}H[0-9]{1,6}$")
    score: float = Field(allow_inf_nan=False)
    low: float | None = None
    """Bounds of an interval that holds for all heads of the model at once; None where there is none."""
    high: float | None = None


class HeadList(BaseModel):
    """Heads of a model, best first, with what others need to use and to question the list.

    As a file it is JSON; `HeadList.model_json_schema()` is its schema, which docs/head-list.schema.json holds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["corelens head list 1"] = FORMAT
    model: str = Field(min_length=1)
    """Name or path of the model."""
    revision: str = ""
    """Commit of its weights, if known."""
    n_layers: int = Field(gt=0)
    n_heads: int = Field(gt=0)
    """Number of heads of the layer with most."""
    metric: str = Field(min_length=1)
    definition: str = Field(min_length=1)
    """The score in words, and its source."""
    choices: dict[str, Any] = {}
    """Query tokens, evidence rule and whatever else shaped the scores."""
    aggregation: str = "mean"
    datasets: tuple[str, ...] = Field(min_length=1)
    n_samples: int = Field(gt=0)
    seed: int | None = None
    """Seed by which the samples were drawn; None if they were not drawn."""
    interval: str = ""
    """Method of the intervals; empty if there are none."""
    versions: dict[str, str]
    """Versions of the packages that measured."""
    heads: tuple[ListedHead, ...] = Field(min_length=1)

    @classmethod
    def of(
        cls, scores: HeadScores, heads: HeadSet, definition: str, datasets: Sequence[str], **provenance: Any
    ) -> "HeadList":
        """Describe some heads of scores.

        Args:
            scores: The scores.
            heads: The heads, best first, such as `scores.top(10)`.
            definition: What the score is, and its source.
            datasets: Names of the data sets of the samples.
            provenance: `seed` and `revision`, if known.

        Raises:
            ValueError: If a head has no score, or the scores name no model.
        """
        if not scores.model:
            raise ValueError("these scores name no model, and a list is of one: replace(scores, model=...).")
        if missing := [str(head) for head in heads if head not in scores.ranked()]:
            raise ValueError(f"{missing[0]} has no {scores.metric}, so that it cannot be listed.")
        low, high = scores.interval
        _, n_layers, n_heads = scores.values.shape
        return cls(
            model=scores.model,
            n_layers=n_layers,
            n_heads=n_heads,
            metric=scores.metric,
            definition=definition,
            choices=scores.choices,
            aggregation=scores.aggregation,
            datasets=tuple(datasets),
            n_samples=len(scores.samples),
            interval="" if low.isnan().all() else "95 %, bootstrap over samples, for all heads at once",
            versions={package: version(package) for package in ("corelens", "torch", "transformers")},
            heads=tuple(
                ListedHead(
                    head=str(head), score=float(scores.per_head[head]), low=_known(low[head]), high=_known(high[head])
                )
                for head in heads
            ),
            **provenance,
        )

    def head_set(self) -> HeadSet:
        """The heads in order."""
        name = f"{len(self.heads)} heads of {self.model} by {self.metric}"
        return HeadSet(tuple(Head.parse(row.head) for row in self.heads), name)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the list as JSON."""
        write_file(path, self.model_dump_json(indent=1) + "\n")

    def save_vllm_hook(
        self, path: str | PathLike[str], queries: Literal["last_token", "all_tokens"] = "last_token"
    ) -> None:
        """Write a configuration of vLLM-Hook, a plug-in by which vLLM shows the attention of listed heads.

        Args:
            path: The JSON file, for its folder `model_configs/attention_tracker` or `model_configs/core_reranker`.
            queries: Prompt tokens whose queries it keeps.

        Source: github.com/IBM/vLLM-Hook, model_configs.
        """
        listed = [list(head) for head in self.head_set()]
        note = (
            f"{self.metric} of {self.n_samples} samples of {', '.join(self.datasets)}, by corelens: {self.definition}"
        )
        config = {
            "model_info": {"name": Path(path).stem, "model_id": self.model, "note": note},
            "params": {"important_heads": listed},
            "hookq": {"hookq_mode": queries},
        }
        write_file(path, json.dumps(config, indent=1))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "HeadList":
        """Read a list that `save` wrote, or others of that form.

        Raises:
            ValueError: If the file holds something else; names the first field that is wrong.
            OSError: If it cannot be read.
        """
        try:
            found = cls.model_validate_json(Path(path).read_bytes())
            found.head_set()  # an error if a head is there twice
        except ValidationError as cause:
            first, *_ = cause.errors()
            place = ".".join(map(str, first["loc"])) or "the file"
            raise ValueError(f"{path} does not hold a head list: {place}: {first['msg']}.") from cause
        except ValueError as cause:
            raise ValueError(f"{path} does not hold a head list: {cause}") from cause
        return found


def _known(number: torch.Tensor) -> float | None:
    return None if number.isnan() else float(number)


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
    content = BytesIO()
    parquet.write_table(pa.concat_tables(tables), content)
    write_file(path, content.getvalue())


def save_head_score_list(scores: HeadScores, path: str | PathLike[str]) -> None:
    """Write the format of MMRetHeads (arXiv 2605.27243): `{"head_score_list": [["layer-head", score], ...]}`.

    Heads are listed best first with one number each, so the samples are lost.
    """
    rows = [[f"{layer}-{head}", float(scores.per_head[layer, head])] for layer, head in scores.ranked()]
    write_file(path, json.dumps({"head_score_list": rows}))


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
    2506.05344); a `HeadList`. Without, best first: `["L21H10", ...]`, `[[21, 10], ...]`, what `HeadSet.save` writes,
    and configurations of vLLM-Hook.

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
        saved = parse_json(path.read_bytes(), _with_unique_keys)
        if isinstance(saved, dict) and saved.get("format") == FORMAT:
            return {Head.parse(row.head): row.score for row in HeadList.load(path).heads}
        if isinstance(saved, dict) and isinstance(parameters := saved.get("params"), dict):
            return _head_set(parameters.get("important_heads"), path.name)
        if isinstance(saved, dict) and "heads" in saved:
            return _head_set(saved["heads"], saved.get("name"))
        rows = saved.get("head_score_list", list(saved.items())) if isinstance(saved, dict) else saved
        if not isinstance(rows, list) or not rows:
            raise ValueError("it lists no head")
        if all(isinstance(row, str) or _is_pair(row, int) for row in rows):
            return _head_set(rows, path.name)
        if wrong := [row for row in rows if not (_is_pair(row, object) and isinstance(row[0], str))]:
            raise ValueError(f"{wrong[0]!r:.80} is not a head with its score")
        heads = {_parse_head(name): _mean_score(score) for name, score in rows}
    except ValueError as cause:
        raise ValueError(
            f'{path} does not hold a list of heads such as {{"head_score_list": [["21-10", 0.5], ...]}}, '
            f'{{"21-10": [0.4, 0.6], ...}} or ["L21H10", ...]: {cause}'
        ) from cause
    if len(heads) < len(rows):
        raise ValueError(f"{path} lists a head twice.")
    n_layers, n_heads = _shape_of(heads)
    if n_layers * n_heads > MOST_HEADS:
        raise ValueError(
            f"{path} lists heads up to layer {n_layers - 1} and number {n_heads - 1}, and no model has that many."
        )
    return heads


def _with_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Object of JSON, which may not have two values of one key: the first would be lost."""
    if len(keys := dict(pairs)) < len(pairs):
        raise ValueError("a key is there twice")
    return keys


def _is_pair(row: Any, kind: type) -> bool:
    return isinstance(row, list | tuple) and len(row) == 2 and all(isinstance(part, kind) for part in row)


def _head_set(heads: Any, name: Any) -> HeadSet:
    if not isinstance(heads, list) or not heads or not isinstance(name, str):
        raise ValueError("it has no list of heads with a name")
    return HeadSet(tuple(map(_parse_head, heads)), name)


def _mean_score(scores: Any) -> float:
    """Mean score of the trials of a head, or its score."""
    trials = scores if isinstance(scores, list) else [scores]
    numbers = [trial for trial in trials if isinstance(trial, float | int) and not isinstance(trial, bool)]
    # Integers of JSON have any length.
    if not numbers or len(numbers) < len(trials) or not all(abs(number) <= sys.float_info.max for number in numbers):
        raise ValueError(f"{scores!r:.80} is no finite score")
    return fmean(numbers)


def _parse_head(name: Any) -> Head:
    """Parse a head written as L21H10, as 21-10, or as layer and head."""
    if not isinstance(name, str):
        return as_head(name)
    return Head.parse(f"L{name.strip().replace('-', 'H', 1)}" if "-" in name else name)
