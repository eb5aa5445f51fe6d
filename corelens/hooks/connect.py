"""What a hooked pass changes in a Hugging Face model besides its layers, and forgets at its end."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle
from transformer_lens.hook_points import HookPoint
from transformers import PreTrainedConfig, PreTrainedModel

from corelens.hf.architecture import AttentionModule, decoder_configs
from corelens.hooks.positions import PassState
from corelens.hooks.rows import RowHook
from corelens.hooks.taps import NAME, PACKED


def attention_function_names(
    hf_model: PreTrainedModel, tapped: Iterable[AttentionModule]
) -> list[tuple[PreTrainedConfig, str]]:
    """What the attention function is called in each configuration that leads to a tapped module."""
    sites = {site.module: site for site in tapped}
    names: dict[int, tuple[PreTrainedConfig, str]] = {}
    if any(module in sites for module in hf_model.get_decoder().modules()):
        names |= {id(config): (config, NAME) for config in decoder_configs(hf_model)}
    for site in sites.values():
        names[id(site.config)] = (site.config, PACKED if site.packed else NAME)
    return list(names.values())


def track_positions(stack: nn.Module, progress: PassState) -> RemovableHandle:
    """Notes which positions each pass through the layers computes, and lets every layer compute them all."""
    takes = inspect.signature(stack.forward)

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = takes.bind_partial(*args, **kwargs).arguments
        given |= given.get("kwargs", {})
        named = ("inputs_embeds", "input_ids", "decoder_input_ids", "hidden_states")
        sequence = next(given[name] for name in named if given.get(name) is not None)
        cached = given.get("past_key_values")
        progress.n_computed = sequence.shape[1]
        progress.n_cached = 0 if cached is None else int(cached.get_seq_length())
        if "logits_to_keep" not in kwargs:
            return None
        # Told how many logits are wanted, layers that share another's keys (Gemma 4) leave out other positions.
        return args, kwargs | {"logits_to_keep": 0}

    return stack.register_forward_pre_hook(note, with_kwargs=True)


def hook_functions(points: Iterable[HookPoint]) -> Iterator[Callable[..., Any]]:
    """The forward hook functions at some points, as they were given."""
    for point in points:
        for handle in point.fwd_hooks:
            function: Any = handle.user_hook
            yield function.function if isinstance(function, RowHook) else function


def clear_context(point: HookPoint) -> None:
    """Leaves nothing of a pass at a hook point."""
    for name in ("progress", "rows", "queries", "hidden"):
        point.ctx.pop(name, None)
