"""Heads and hook points that a model does not have, and why."""

from collections.abc import Collection, Iterable, Sequence
from difflib import get_close_matches

from corelens.heads import Head
from corelens.refusals import see
from corelens.sites import LayerSite


def check_heads(heads: Iterable[Head], sites: Sequence[LayerSite]) -> None:
    """Raises a ValueError that names the first head that the layers do not have."""
    for head in heads:
        site = sites[head.layer] if 0 <= head.layer < len(sites) else None
        if site is None:
            n_heads = max(layer.attentions["attn"].n_heads for layer in sites if "attn" in layer.attentions)
            reason = f"the model has {len(sites)} layers of {n_heads} heads, counted from zero"
        elif "attn" in site.missing:
            reason = site.missing["attn"]
        elif 0 <= head.head < site.attentions["attn"].n_heads:
            continue
        else:
            reason = f"layer {head.layer} has {site.attentions['attn'].n_heads} heads, counted from zero"
        raise ValueError(f"{head} does not exist: {reason}. {see('head')}")


def check_name(name: str, existing: Collection[str], sites: Sequence[LayerSite], no_vision: str) -> None:
    """Raises a ValueError if there is no such hook point.

    Args:
        name: Of a hook point.
        existing: The names that there are.
        sites: The decoder's layers.
        no_vision: Why the vision tower has no hook points; empty if it has some.
    """
    if name in existing:
        return
    if name.startswith("vision.") and no_vision:
        raise ValueError(f"there is no hook point {name!r}: {no_vision} {see('hook-point')}")
    match name.split("."):
        case ["blocks", layer, point, *_] if layer.isdecimal() and int(layer) < len(sites):
            site = sites[int(layer)]
            reason = site.missing.get(point.removeprefix("hook_"))
            if name.endswith(".hook_o_in") and point in site.attentions:
                reason = "nothing stands between what the heads of this layer find, hook_z, and their W_O"
        case _:
            reason = None
    if reason:
        raise ValueError(f"there is no hook point {name!r}: {reason}. {see('hook-point')}")
    near = get_close_matches(name, existing, n=3, cutoff=0)
    raise ValueError(f"there is no hook point {name!r}; the nearest are {', '.join(near)}. {see('hook-point')}")
