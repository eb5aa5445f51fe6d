"""A finished run beside the numbers that the paper prints (arXiv 2606.05843)."""

import re
from collections.abc import Iterable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import torch

from corelens.data.published import published_model, published_numbers, published_table
from corelens.experiments.comparison import load_scores
from corelens.experiments.conditions import BASELINE, read_conditions
from corelens.experiments.key_token_results import read_key_tokens
from corelens.experiments.run_folder import RunFolder, read_summary
from corelens.metrics import spearman_matrix, stable_heads
from corelens.scores import HeadScores


class ComparedNumber(NamedTuple):
    """A number of the paper and the same of a run."""

    name: str
    printed: float | int | str | None
    """None if the paper prints nothing there."""

    measured: float | int | str | None
    """None if the run did not measure it."""

    @property
    def texts(self) -> tuple[str, str, str]:
        """Name, printed number and measured number, as tables show them."""
        printed, measured = (
            "-" if number is None else number if isinstance(number, str) else f"{number:.3g}"
            for number in (self.printed, self.measured)
        )
        return self.name, printed, measured


class ComparedTable(NamedTuple):
    """Numbers of one table or figure of the paper beside those of a run."""

    table: str
    """Name in `published_numbers()["tables"]`."""

    where: str
    """Section, figure or table of the paper."""

    of: str
    """Quantity and unit of the numbers."""

    dataset: str
    """Data sets of the run."""

    numbers: tuple[ComparedNumber, ...]
    note: str = ""
    """Difference between the run and the paper that the numbers do not show."""


def compare_with_published(
    run: str | PathLike[str], model: str, metric: str | None = None
) -> tuple[ComparedTable, ...]:
    """Put a run beside what the paper prints about a model.

    Args:
        run: Folder of a finished scan, ablation, sparse evaluation or scan of key tokens.
        model: Model of the paper, as for `published_model`.
        metric: Metric of a scan; the first by default.

    Raises:
        ValueError: If the paper prints nothing of the kind about the model, or nothing about the data sets of the run;
            the message names what there is.
    """
    folder = RunFolder.load(run)
    model = published_model(model)
    work = folder.manifest["work"]
    if work == "scan":
        return tuple(_scan_tables(load_scores(run, metric), model))
    if work == "ablate":
        return (_ablation_table(folder, model),)
    if work == "accelerate":
        return tuple(_acceleration_tables(folder, model))
    if work == "key-tokens":
        return tuple(_key_token_tables(folder, model))
    raise ValueError(
        f"{run} is a run of {work}, of which the paper prints no numbers; it does of scan, ablate and accelerate."
    )


def _scan_tables(scores: HeadScores, model: str) -> Iterator[ComparedTable]:
    """Agreement of data sets, and depth."""
    tables = published_numbers()["tables"]
    has = [table for table in ("spearman", "stable_heads", "depth") if model in tables[table]["models"]]
    if not has:
        published_table("spearman", model)  # whose error names the models that have one
    listed = [
        name
        for table in has
        for name in (published_table(table, model).get("datasets") or published_table(table, model))
    ]
    names = _matches(scores.datasets, dict.fromkeys(listed))
    by_dataset = {printed: scores.for_dataset(name) for printed, name in names.items()}
    if "spearman" in has and len(by_dataset) > 1:
        yield _correlations(by_dataset, model)
        yield _stable_heads(by_dataset, model)
    if "depth" in has:
        yield _depth(by_dataset, model)


def _correlations(by_dataset: dict[str, HeadScores], model: str) -> ComparedTable:
    printed = published_table("spearman", model)
    matrix = spearman_matrix(torch.stack([scores.per_head for scores in by_dataset.values()]))
    order, names = list(by_dataset), printed["datasets"]
    numbers = [
        ComparedNumber(
            f"{row} and {column}",
            printed["values"][first][second],
            float(matrix[order.index(row), order.index(column)]) if {row, column} <= by_dataset.keys() else None,
        )
        for first, row in enumerate(names)
        for second, column in enumerate(names[:first])
    ]
    return _table(
        "spearman", _run_names(by_dataset), numbers, f"Scores of the run: {next(iter(by_dataset.values())).metric}."
    )


def _stable_heads(by_dataset: dict[str, HeadScores], model: str) -> ComparedTable:
    printed = published_table("stable_heads", model)
    stable = stable_heads(torch.stack([scores.per_head for scores in by_dataset.values()]))
    n, (first, last) = len(by_dataset), printed["most_in_layers"]
    in_all = (stable.matrix == n).nonzero()[:, 0]
    inside = ((in_all >= first) & (in_all <= last)).sum().item()
    numbers = [
        ComparedNumber("heads in the top 5 % of all", printed["heads"], stable.n_heads[n]),
        ComparedNumber("the same by chance", None, round(stable.by_chance[n], 4)),
        ComparedNumber(f"of them in layers {first} to {last}", "most", f"{inside} of {len(in_all)}"),
    ]
    n_printed = len(printed["datasets"])
    note = "" if n == n_printed else f"The run has {n} of the paper's {n_printed} data sets."
    return _table("stable_heads", _run_names(by_dataset), numbers, note)


def _depth(by_dataset: dict[str, HeadScores], model: str) -> ComparedTable:
    numbers = []
    for dataset, (first, last) in published_table("depth", model).items():
        share = None
        if scores := by_dataset.get(dataset):
            inside = [first <= head.layer <= last for head in scores.top()]
            share = f"{sum(inside)} of the {len(inside)} top heads are there"
        numbers.append(ComparedNumber(dataset, f"layers {first} to {last}", share))
    return _table("depth", _run_names(by_dataset), numbers, "Top heads of the run: five percent of all.")


def _run_names(by_dataset: dict[str, HeadScores]) -> str:
    return ", ".join(scores.datasets[0] for scores in by_dataset.values())


def _ablation_table(folder: RunFolder, model: str) -> ComparedTable:
    """Accuracy without the top heads, by their number."""
    rows = published_table("ablation", model)
    results = read_conditions(folder)
    dataset = _matched_dataset(results.datasets, "ablation")
    tops = {len(sets[0]): name for name, sets in results.conditions.items() if re.match(r"top\b", name)}
    conditions = {0: BASELINE} | tops
    numbers = []
    for row in rows:
        n, name = row["heads"], conditions.get(row["heads"])
        accuracy = None if name is None else 100 * results.accuracies(name, dataset)[0]
        printed = row.get("accuracy", f"below {row.get('accuracy_below')}")
        numbers.append(ComparedNumber(f"top {n} heads" if n else "no head", printed, accuracy))
    missing = sorted(row["heads"] for row in rows if row["heads"] not in conditions)
    notes = []
    if (method := folder.manifest["how"]) != "uniform_all_keys":
        notes.append(f"The run ablates heads by {method}, the paper by uniform_all_keys (algorithm 2).")
    if missing:
        has = ", ".join(map(str, sorted(tops))) or "no"
        notes.append(f"The run has {has} top heads, and not {', '.join(map(str, missing))}.")
    return _table("ablation", dataset, numbers, " ".join(notes))


def _acceleration_tables(folder: RunFolder, model: str) -> Iterator[ComparedTable]:
    """Accuracy and speed-up by the number of full heads."""
    tables = published_numbers()["tables"]
    summary = read_summary(folder.folder / "acceleration.json", "data", "plans", "positions")
    n_layers, n_heads = folder.manifest["heads"]
    plans = {
        round(plan["full heads"] * n_layers * n_heads): name
        for name, plan in summary["plans"].items()
        if re.match(r"core\b", name)
    }
    names = _matches(summary["data"], [tables[table]["dataset"] for table in ("mlvu", "videomme")])
    for printed_dataset, dataset in names.items():
        table = next(name for name in ("mlvu", "videomme") if tables[name]["dataset"] == printed_dataset)
        rows = published_table(table, model)
        conditions = summary["data"][dataset]["conditions"]
        numbers = []
        for index, row in enumerate(rows):
            name = plans.get(row["full_heads"]) if index else BASELINE
            label = f"{row['full_heads']} full heads ({row['share']:g} %)" if index else "all heads full"
            accuracy = None if name is None else 100 * conditions[name]["accuracy"]
            numbers.append(ComparedNumber(f"{label}, accuracy", row["accuracy"], accuracy))
            if index and "prefill_speedup" in row:
                speedup = None if name is None else summary["plans"][name]["prefill"]
                numbers.append(ComparedNumber(f"{label}, prefill speed-up", row["prefill_speedup"], speedup))
        note = f"Speed-ups of the run are for a prompt of {summary['positions']:,} positions."
        if not {row["full_heads"] for row in rows[1:]} & plans.keys():
            note += f" The run has plans of {', '.join(map(str, sorted(plans))) or 'no'} full heads."
        yield _table(table, dataset, numbers, note)


def _key_token_tables(folder: RunFolder, model: str) -> Iterator[ComparedTable]:
    """Key token ratio of few heads, and coverage of many."""
    ratio, coverage = published_table("key_token_ratio", model), published_table("key_token_coverage", model)
    key_tokens = read_key_tokens(folder)
    dataset = _matched_dataset(key_tokens.ratios.datasets, "key_token_ratio")
    key_tokens = key_tokens.for_dataset(dataset)
    n = ratio["heads"]
    numbers = []
    for kind, rate in key_tokens.hit_rates(n).items():
        name = kind if kind == "chance" else f"{kind} {n} heads"
        numbers.append(ComparedNumber(f"{name}, mean ratio", ratio.get(kind), 100 * rate.ratio))
        numbers.append(ComparedNumber(f"{name}, hits", None, 100 * rate.hits))
    note = "The paper's figure names the ratio, its appendix the hit rate: either may be printed."
    yield _table("key_token_ratio", dataset, numbers, note)
    chance = key_tokens.chance_curve()
    low, high = coverage["coverage"]
    curves = {kind: key_tokens.curve(kind) for kind in key_tokens.coverage} | {"chance": chance}
    numbers = [
        ComparedNumber(
            f"{kind}, {size} heads",
            f"{low} to {high}" if kind == "top" else None,
            100 * float(curve.mean[size - 1]) if size <= len(curve.mean) else None,
        )
        for kind, curve in curves.items()
        for size in coverage["heads"]
    ]
    yield _table("key_token_coverage", dataset, numbers)


def _matched_dataset(datasets: Iterable[str], table: str) -> str:
    """The run's data set that a table of the paper is about."""
    return next(iter(_matches(datasets, [published_numbers()["tables"][table]["dataset"]]).values()))


def _matches(datasets: Iterable[str], printed: Iterable[str]) -> dict[str, str]:
    """Data sets of a run by the paper's names: the same letters, or as its beginning (`mmlongbench-doc`).

    Raises:
        ValueError: If there is none.
    """
    datasets, printed = list(dict.fromkeys(datasets)), list(printed)
    found = {}
    for name in printed:
        candidates = [dataset for dataset in datasets if _letters(dataset).startswith(_letters(name))]
        if candidates:
            found[name] = min(candidates, key=len)
    if not found:
        raise ValueError(
            f"the run is on {', '.join(filter(None, datasets)) or 'data without a name'}, and the paper's numbers are "
            f"on {', '.join(printed)}."
        )
    return found


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", Path(name).name.lower())


def _table(table: str, dataset: str, numbers: Sequence[ComparedNumber], note: str = "") -> ComparedTable:
    about = published_numbers()["tables"][table]
    return ComparedTable(table, about["where"], about["of"], dataset, tuple(numbers), note)
