"""Projections, norms and MLP of a decoder layer, by the names that Hugging Face's models give them.

What these names do not tell is refused with a reason: `W_Q` of keys that a convolution changes is not what a head does.
"""

import inspect
import re
from collections.abc import Mapping
from typing import Literal, get_args

from torch import nn

from corelens.hf.layers import ExpertsModule, HeadRows, HookLocation, MLPModule
from corelens.hf.projections import inner_widths

Part = Literal["q", "k", "v"]

PROJECTIONS = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("q", "k", "v"))
"""Names of the projections of queries, keys and values."""

FUSED_PROJECTIONS: dict[str, Literal["by part", "by head"]] = {"qkv_proj": "by part", "query_key_value": "by head"}
"""Names of projections that make all three, and the order of their rows: those of all queries, then of all keys, then
of all values; or for each head those of its query, its key and its value."""

HEAD_NORMS: dict[str, tuple[Part, ...]] = {
    "q_norm": ("q",), "k_norm": ("k",), "v_norm": ("v",), "qk_norm": ("q", "k"), "q_layernorm": ("q",),
    "k_layernorm": ("k",), "query_layernorm": ("q",), "key_layernorm": ("k",),
}  # fmt: skip
"""Names of norms over queries, keys and values, and which of these they act on."""


def head_rows(module: nn.Module, n_heads: int, gated: bool) -> tuple[dict[Part, HeadRows], str]:
    """Rows of projections that make queries, keys and values; or the reason why they are not known."""
    n_kv_heads = n_heads // getattr(module, "num_key_value_groups", 1)
    name = type(module).__name__
    before, _, _ = ".".join((*names_in_forward(module), "")).partition("ALL_ATTENTION_FUNCTIONS.")
    mixed = [
        part
        for part, child in module.named_modules()
        if re.search("conv|clip", type(child).__name__, re.IGNORECASE)
        or (part in before.split(".") and part not in HEAD_NORMS and "norm" in type(child).__name__.lower())
    ]
    if mixed:
        return {}, f"{', '.join(mixed)} of {name} stand between its projections and its attention"
    for fused, order in FUSED_PROJECTIONS.items():
        _, n_rows = inner_widths(getattr(module, fused, nn.Identity())) or (0, 0)
        if not n_rows:
            continue
        if order == "by head":
            return {
                part: HeadRows(module, fused, n_heads, 0, n_rows, at, 3) for at, part in enumerate(get_args(Part))
            }, ""
        d_head = n_rows // (n_heads + 2 * n_kv_heads)
        query, key = n_heads * d_head, n_kv_heads * d_head
        return {
            "q": HeadRows(module, fused, n_heads, 0, query),
            "k": HeadRows(module, fused, n_kv_heads, query, key),
            "v": HeadRows(module, fused, n_kv_heads, query + key, key),
        }, ""
    for names in PROJECTIONS:
        rows = [(inner_widths(getattr(module, part, None) or nn.Identity()) or (0, 0))[1] for part in names]
        if not all(rows):
            continue
        # Some make a query and its gate, head by head.
        n_parts = 2 if gated and rows[0] // n_heads == 2 * (rows[1] // n_kv_heads) else 1
        if rows[0] // n_heads != n_parts * (rows[1] // n_kv_heads):
            break
        return {
            "q": HeadRows(module, names[0], n_heads, 0, rows[0], 0, n_parts),
            "k": HeadRows(module, names[1], n_kv_heads, 0, rows[1]),
            "v": HeadRows(module, names[2], n_kv_heads, 0, rows[2]),
        }, ""
    linear = [part for part, child in module.named_children() if inner_widths(child)]
    return {}, f"which rows of {', '.join(linear)} of {name} make queries, keys and values by head is not known"


def head_norms(module: nn.Module) -> dict[Part, nn.Module]:
    """Norms of queries, keys and values of an attention module."""
    norms = {name: getattr(module, name, None) for name in HEAD_NORMS if name in names_in_forward(module)}
    return {part: norm for name, norm in norms.items() if isinstance(norm, nn.Module) for part in HEAD_NORMS[name]}


MLPS = ("mlp", "feed_forward", "ffn", "mixer")
MLP_PROJECTIONS = (
    ("up_proj", "down_proj", "gate_proj"), ("w3", "w2", "w1"), ("gate_up_proj", "down_proj", "gate_up_proj"),
    ("fc1", "fc2", ""), ("up_proj", "down_proj", ""), ("dense_h_to_4h", "dense_4h_to_h", ""),
)  # fmt: skip
"""Names of the projections into an MLP, out of it, and of its gate, by the names of dense MLPs."""


ROUTERS = (("gate",), ("router",), ("text_moe.gate", "vision_moe.gate"))
"""Names of the modules that choose experts, in a mixture of them: one, or one for words and one for visual tokens."""


def _mlp(block: nn.Module) -> nn.Module:
    """MLP of a layer; the layer itself, where it has the projections of one (OPT)."""
    return next((part for name in MLPS if isinstance(part := getattr(block, name, None), nn.Module)), block)


def experts_module(block: nn.Module) -> ExpertsModule | None:
    """Mixture of experts of a layer, if it has one whose routers are known."""
    # Gemma 4's layers have theirs beside the MLP.
    for module in (_mlp(block), block):
        parts = dict(module.named_modules())
        for names in ROUTERS:
            routers = [parts[name] for name in names if type(parts.get(name)).__name__.endswith("Router")]
            if len(routers) == len(names):
                return ExpertsModule(module, *routers)
    return None


def dense_mlp(layer: int, block: nn.Module) -> tuple[MLPModule | None, str]:
    """Dense MLP of a layer, or the reason why it has none whose neurons are known."""
    module = _mlp(block)
    names = [name for name, part in module.named_children() if inner_widths(part) and "attn" not in name]
    for w_in, w_out, w_gate in MLP_PROJECTIONS:
        if set(names) == {w_in, w_out, w_gate} - {""}:
            return MLPModule(module, w_in, w_out, w_gate, fused=w_in == w_gate), ""
    if any(name in ("experts", "router", "text_moe") for name, _ in module.named_children()):
        return None, (
            f"the MLP of layer {layer} ({type(module).__name__}) is a mixture of experts, and neurons of one "
            f"expert are none of another"
            + (f": blocks.{layer}.mlp.hook_expert_weights has those of each token" if experts_module(block) else "")
        )
    return None, f"which projections of {type(module).__name__} in layer {layer} make its neurons is not known"


INPUT_NORMS: dict[Literal["ln1", "ln2"], tuple[str, ...]] = {
    "ln1": ("input_layernorm", "operator_norm", "attention_layernorm"),
    "ln2": ("pre_feedforward_layernorm", "post_attention_layernorm", "ffn_norm", "feedforward_layernorm"),
}
"""Names of the norms of what attention and MLP read from the residual stream, by TransformerLens's names."""

INPUT_OF = {"ln1": "attention", "ln2": "MLP"}


def input_norms(
    block: nn.Module, points: Mapping[str, HookLocation]
) -> tuple[dict[Literal["ln1", "ln2"], nn.Module], dict[str, str]]:
    """Norms of what attention and MLP read from the residual stream, and the reason for each that is not known."""
    used = names_in_forward(block)
    norms: dict[Literal["ln1", "ln2"], nn.Module] = {
        part: getattr(block, name) for part, names in INPUT_NORMS.items() for name in names[::-1] if name in used
    }
    # Where a norm of this name is behind attention, the MLP reads from another.
    if "resid_mid" not in points or points["resid_mid"].module is not norms.get("ln2"):
        norms.pop("ln2", None)
    reasons = {
        part: f"which norm of {type(block).__name__} stands before its {INPUT_OF[part]} is not known"
        for part in INPUT_NORMS.keys() - norms.keys()
    }
    return norms, reasons


def names_in_forward(module: nn.Module) -> tuple[str, ...]:
    """Global names and attributes in a module's forward, in order of first use."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return () if code is None else code.co_names
