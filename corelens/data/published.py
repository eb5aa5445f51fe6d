"""Numbers that the paper prints (arXiv 2606.05843v1, CC BY 4.0), by table and model: `published.json`."""

import json
from functools import cache
from pathlib import Path
from typing import Any


def published_table(table: str, model: str) -> Any:
    """Return what a table or figure of the paper prints about a model.

    Args:
        table: `spearman`, `stable_heads`, `depth`, `ablation`, `key_token_ratio`, `key_token_coverage`, `mlvu` or
            `videomme`. Their places in the paper and units are in `published_numbers()["tables"][table]`.
        model: Name of the model, as for `published_model`.

    Raises:
        ValueError: If there is no such table or model, or the table does not have the model; names those that there
            are.

    Examples:
        >>> published_table("ablation", "Qwen/Qwen3-VL-4B-Instruct")[:2]
        [{'heads': 0, 'accuracy': 45.3}, {'heads': 5, 'accuracy': 27.0}]
    """
    tables = published_numbers()["tables"]
    if table not in tables:
        raise ValueError(f"there is no published table {table!r}; there are {', '.join(tables)}.")
    name, models = published_model(model), tables[table]["models"]
    if name not in models:
        raise ValueError(
            f"the paper prints nothing about {name} in {table!r} ({tables[table]['where']}); it does about "
            f"{', '.join(models)}."
        )
    return models[name]


def published_model(name: str) -> str:
    """Return the paper's name of a model.

    Args:
        name: That name, e.g. `Qwen3-VL-8B`; or a Hub id or folder, e.g. `Qwen/Qwen3-VL-8B-Instruct`.

    Raises:
        ValueError: If the paper has no such model; names those that it has.
    """
    last = name.rstrip("/").rpartition("/")[2].lower()
    models = published_numbers()["models"]
    for model, about in models.items():
        if last in (known.lower() for known in (model, *about["ids"])):
            return model
    raise ValueError(f"{name!r} is not a model of the paper; these are {', '.join(models)}.")


@cache
def published_numbers() -> dict[str, Any]:
    """Load all numbers, with their source and licence, models, and the place of each table in the paper."""
    return json.loads(Path(__file__).with_name("published.json").read_text())
