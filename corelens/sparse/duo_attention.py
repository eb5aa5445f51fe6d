"""Plans and scores in the files of DuoAttention, which its kernels and those of engines that follow it read.

A folder holds `full_attention_heads.tsv`, a row for each layer with a number for each KV head, and `config.json`, of
which readers need `sink_size` and `recent_size`.

Source: Xiao et al. 2024 (arXiv 2410.10819) and its code, `load_attn_pattern` and `DuoAttentionStaticKVCache`.
"""

import io
import json
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from einops import repeat
from transformers import PreTrainedModel

from corelens.files import parse_json, write_file
from corelens.scores import HeadScores
from corelens.sparse.plan import HeadPlan
from corelens.sparse.resolve import resolve
from corelens.sparse.rules import Full, Streaming

HEADS, CONFIG = "full_attention_heads.tsv", "config.json"


def save_duo_attention(plan: HeadPlan, hf_model: PreTrainedModel, folder: str | PathLike[str]) -> None:
    """Write a plan for DuoAttention's kernels: 1 for each KV head that is stored whole, 0 for those that stream.

    Args:
        plan: A plan of heads that attend to everything and of heads that stream, such as `hybrid` makes. Its window
            holds the query, and `recent_size` the tokens before it, so that this is one less.
        hf_model: The model, whose layers must all follow the plan and have as many KV heads.
        folder: Folder that is written.

    Raises:
        ValueError: If DuoAttention has no such plan; the message names what it lacks.
    """
    resolved = resolve(plan, hf_model)
    n_layers = hf_model.config.get_text_config().num_hidden_layers
    if missing := sorted(set(range(n_layers)) - set(resolved.layers)):
        raise ValueError(f"layer {missing[0]} follows no plan, and DuoAttention's files have a row for every layer.")
    if len(numbers := {layer.n_kv_heads for layer in resolved.layers.values()}) > 1:
        raise ValueError(f"layers have {sorted(numbers)} KV heads, and DuoAttention's files as many in every row.")
    rules = {rule for layer in resolved.layers.values() for rule in layer.rules}
    streaming = [rule for rule in rules if isinstance(rule, Streaming)]
    if others := [rule for rule in rules if not isinstance(rule, Full | Streaming)]:
        raise ValueError(f"DuoAttention has no heads that are {others[0]}; its heads are full, or stream by tokens.")
    if len(streaming) != 1 or streaming[0].keep_text:
        raise ValueError(
            f"DuoAttention has one rule for all heads that stream, which keeps no text, and the plan has "
            f"{streaming or 'none'}."
        )
    (rule,) = streaming
    table = np.array([[head in layer.full_kv_heads for head in range(layer.n_kv_heads)]
                      for _, layer in sorted(resolved.layers.items())])  # fmt: skip
    text = io.StringIO()
    np.savetxt(text, table, fmt="%d", delimiter="\t")
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_file(Path(folder) / HEADS, text.getvalue())
    config = {"model_name": hf_model.config.name_or_path, "sink_size": rule.sink, "recent_size": rule.window - 1}
    write_file(Path(folder) / CONFIG, json.dumps(config, indent=1))


def load_duo_attention(folder: str | PathLike[str], group_size: int) -> tuple[HeadScores, Streaming]:
    """Read gates of KV heads as scores of their query heads, and the rule of heads that stream.

    Args:
        folder: A folder of DuoAttention, such as those of its `attn_patterns`.
        group_size: Query heads that share a KV head.

    Returns:
        Scores of one sample, which is the folder; heads that share keys have the same.

    Raises:
        ValueError: If the files hold something else.
        OSError: If they cannot be read.
    """
    try:
        gates = np.loadtxt(Path(folder) / HEADS, delimiter="\t", ndmin=2, dtype=np.float32)
        config = parse_json((Path(folder) / CONFIG).read_bytes())
        rule = Streaming(config["sink_size"], config["recent_size"] + 1)
        if not np.isfinite(gates).all() or not gates.size:
            raise ValueError("a gate is no number")
    except (KeyError, TypeError, ValueError) as cause:
        raise ValueError(f"{folder} does not hold DuoAttention's {HEADS} and {CONFIG}: {cause}") from cause
    values = repeat(torch.from_numpy(gates), "layer kv_head -> 1 layer (kv_head group)", group=group_size)
    return HeadScores(values, "DuoAttention's gate", (str(folder),), str(config.get("model_name") or "")), rule
