"""Application of a head plan to a model: `with apply(model, plan): model.generate(...)`."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel

from corelens.errors import docs_link
from corelens.hf.architecture import decoder_configs
from corelens.hf.versions import CACHE, given_cache
from corelens.hooks.taps import NAME, PACKED, SPARSE, attention_implementation
from corelens.hooks.threads import lock_of
from corelens.model import HookedMLLM
from corelens.sparse.attention import PassTokens, PlannedAttention, head_sparse_attention, head_sparse_mask
from corelens.sparse.cache import HeadSparseCache
from corelens.sparse.cost_model import dimensions, pays_from, rates
from corelens.sparse.plan import HeadPlan
from corelens.sparse.resolve import ResolvedPlan, resolve

REWINDING_ARGUMENTS = ("assistant_model", "prompt_lookup_num_tokens")
"""Arguments of generate that roll tokens back, which a ring that has overwritten older ones cannot."""


@contextmanager
def apply(model: HookedMLLM | PreTrainedModel, plan: HeadPlan, *, force: bool = False) -> Iterator["ActivePlan"]:
    """Make heads follow a plan until the block ends: in passes, and in `generate`, with a cache that fits the plan.

    Works on HookedMLLM and on plain Hugging Face models, greedily, with beams or sampling, in batches with padding on
    the left, with chunked prefill and in several turns. Attention cannot be hooked meanwhile.

    Args:
        model: The model.
        plan: Rules of the heads.
        force: True if `generate` follows the plan also where the cost model predicts that this takes longer than the
            model as it is; otherwise it warns and generates without the plan there. Passes always follow it.

    Yields:
        The active plan, which makes caches for conversations.

    Raises:
        ValueError: If the plan does not fit the model; later, in passes, if padding stands elsewhere than on the left,
            or if generation has to roll tokens back (assisted decoding) or needs another cache.
        RuntimeError: If a plan or hooks are already active.
    """
    hf_model = model.hf_model if isinstance(model, HookedMLLM) else model
    configs = decoder_configs(hf_model)
    original_attention = [(config, config._attn_implementation_internal) for config in configs]
    active = ActivePlan(resolve(plan, hf_model), hf_model, original_attention, force)
    AttentionInterface.register(SPARSE, head_sparse_attention)
    AttentionMaskInterface.register(SPARSE, head_sparse_mask)
    with lock_of(hf_model), ExitStack() as cleanup:
        if any(config._attn_implementation_internal in (NAME, PACKED, SPARSE) for config in configs):
            raise RuntimeError("a plan or hooks are already active on this model: end their block first.")
        for layer, module in active.plan.modules.items():
            module.__dict__["_corelens_planned"] = PlannedAttention(active.plan.layers[layer], active.tokens)
            cleanup.callback(module.__dict__.pop, "_corelens_planned")
        if any(layer.streaming and layer.streaming.keep_text for layer in active.plan.layers.values()):
            cleanup.callback(_track_text(active).remove)
        hf_model.__dict__["generate"] = active.generate
        cleanup.callback(hf_model.__dict__.pop, "generate")
        cleanup.enter_context(attention_implementation([(config, SPARSE) for config in configs]))
        yield active


@dataclass
class ActivePlan:
    """A plan that a model follows."""

    plan: ResolvedPlan
    model: PreTrainedModel
    original_attention: Sequence[tuple[PreTrainedConfig, str | None]]
    """Attention implementations of the model without a plan."""

    force: bool = False
    tokens: PassTokens = field(default_factory=PassTokens)

    def cache(self, reserved: int = 0, static: bool = False) -> HeadSparseCache:
        """Return an empty cache, for conversations of several turns: `generate(cache=cache)`.

        Args:
            reserved: Number of positions allocated from the beginning; more positions cost copies.
            static: True if the cache holds these positions at most, so that decoding can be compiled.
        """
        return HeadSparseCache(self.model.config, self.plan.layers, reserved, static)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Call Hugging Face's `generate` of the model, with a cache that fits the plan."""
        settings = kwargs.get("generation_config") or (args[1:2] or [None])[0] or self.model.generation_config
        cache: Any = given_cache(kwargs)
        if rewinding := next((n for n in REWINDING_ARGUMENTS if kwargs.get(n) or getattr(settings, n, None)), None):
            raise ValueError(
                f"{rewinding} rolls tokens back, and heads that keep a window have overwritten the earlier ones."
            )
        if (implementation := kwargs.get("cache_implementation")) not in (None, "dynamic", "static"):
            raise ValueError(
                f"cache_implementation={implementation!r}: a plan brings its own cache, dynamic or static."
            )
        if cache is not None and not (isinstance(cache, HeadSparseCache) and cache.plans == self.plan.layers):
            raise ValueError("this cache was not made for the plan: take the cache() that apply gives, or none.")
        prompt = kwargs.get("input_ids", kwargs.get("inputs", args[0] if args else kwargs.get("inputs_embeds")))
        n_prompt = 0 if prompt is None else prompt.shape[1]
        n_new = kwargs.get("max_new_tokens", settings.max_new_tokens)
        max_length = kwargs.get("max_length", settings.max_length) if n_new is None else n_prompt + n_new
        if cache is None and not self.force and n_prompt and (warning := self._cost_warning(n_prompt)):
            warnings.warn(warning, stacklevel=2)
            with attention_implementation(self.original_attention):
                return type(self.model).generate(self.model, *args, **kwargs)  # pyright: ignore
        if cache is None and kwargs.get("use_cache", settings.use_cache) is not False:
            # Checkpoints may name a cache of their own.
            cache = self.cache(max_length or 0, implementation == "static")
            kwargs |= {CACHE: cache, "cache_implementation": None}
        self.tokens.n_prompt = n_prompt
        try:
            # Hugging Face types generate for a mixin.
            return type(self.model).generate(self.model, *args, **kwargs)  # pyright: ignore
        finally:
            self.tokens.n_prompt = None

    def _cost_warning(self, n_prompt: int) -> str:
        """Warning that the plan costs more than it saves; empty where it pays, or where its cost is not known."""
        try:
            pays = self._pays_from
        except ValueError:
            # The cost of a model with experts is not known.
            return ""
        if pays is not None and n_prompt >= pays:
            return ""
        lengths = "at no length" if pays is None else f"from about {pays:,} positions on"
        return (
            f"This plan is predicted to pay {lengths}, and the prompt has {n_prompt:,}. The model generates without "
            f"it; apply(..., force=True) follows it. {docs_link('short')}"
        )

    @cached_property
    def _pays_from(self) -> int | None:
        dtype, device = self.model.dtype, self.model.device
        # The vision tower costs the same with a plan and without.
        sizes = dimensions(self.model.config.get_text_config(decoder=True), value_bytes=dtype.itemsize)
        return pays_from(sizes, self.plan.shares, rates(dtype, str(device)))


def _track_text(active: ActivePlan) -> Any:
    """Attach a hook that notes before each pass which of its tokens are text of the prompt; return its handle."""
    config = active.model.config
    media_tokens = [getattr(config, name, None) for name in ("image_token_id", "video_token_id")]
    media_tokens = [token for token in media_tokens if token is not None]
    if not media_tokens:
        raise ValueError(
            f"the configuration of {type(active.model).__name__} names no image or video token, so a plan cannot keep "
            f"the text: use keep_text=False."
        )

    def note_text(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None:
            raise ValueError("a plan that keeps text needs input_ids, and this pass has none.")
        cache = given_cache(kwargs)
        first = 0 if cache is None else cache.get_seq_length()
        # Outside of generate, single tokens are taken for generated ones.
        in_prompt = ids.shape[1] > 1 if active.tokens.n_prompt is None else first < active.tokens.n_prompt
        active.tokens.text = ~torch.isin(ids, torch.tensor(media_tokens, device=ids.device)) if in_prompt else None

    return active.model.register_forward_pre_hook(note_text, with_kwargs=True)
