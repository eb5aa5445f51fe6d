"""A plan at work: `with apply(model, plan): model.generate(...)`."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from threading import RLock
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel

from corelens.errors import docs_link
from corelens.hf.architecture import decoder_configs
from corelens.hooks.taps import NAME, PACKED, SPARSE, attention_implementation
from corelens.model import LOCKS, HookedMLLM
from corelens.sparse.attention import PlannedAttention, Tokens, head_sparse_attention, head_sparse_mask
from corelens.sparse.cache import HeadSparseCache
from corelens.sparse.cost_model import dimensions, pays_from, rates
from corelens.sparse.plan import HeadPlan
from corelens.sparse.resolve import ResolvedPlan, resolve

REWINDING_ARGUMENTS = ("assistant_model", "prompt_lookup_num_tokens")
"""Arguments of generate that take tokens back, which a ring that has overwritten older ones cannot."""


@dataclass
class ActivePlan:
    """A plan at work on a model."""

    plan: ResolvedPlan
    model: PreTrainedModel
    original_attention: Sequence[tuple[PreTrainedConfig, str | None]]
    """The attention functions of the model without a plan."""

    force: bool = False
    tokens: Tokens = field(default_factory=Tokens)

    def cache(self, reserved: int = 0, static: bool = False) -> HeadSparseCache:
        """An empty cache, for conversations of several turns: `generate(past_key_values=cache)`.

        Args:
            reserved: For how many positions there is room from the beginning; more positions cost copies.
            static: Whether there is room for these positions only, so that decoding can be compiled.
        """
        return HeadSparseCache(self.model.config, self.plan.layers, reserved, static)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Hugging Face's `generate` of the model, with a cache that fits the plan."""
        settings = kwargs.get("generation_config") or (args[1:2] or [None])[0] or self.model.generation_config
        given: Any = kwargs.get("past_key_values")
        if named := next((n for n in REWINDING_ARGUMENTS if kwargs.get(n) or getattr(settings, n, None)), None):
            raise ValueError(f"{named} takes tokens back, and heads that keep a window have forgotten what was before.")
        if (kind := kwargs.get("cache_implementation")) not in (None, "dynamic", "static"):
            raise ValueError(f"cache_implementation={kind!r}: a plan brings its own cache, dynamic or static.")
        if given is not None and not (isinstance(given, HeadSparseCache) and given.plans == self.plan.layers):
            raise ValueError("past_key_values was not made for this plan: take the cache() that apply gives, or none.")
        prompt = kwargs.get("input_ids", kwargs.get("inputs", args[0] if args else kwargs.get("inputs_embeds")))
        n_prompt = 0 if prompt is None else prompt.shape[1]
        new = kwargs.get("max_new_tokens", settings.max_new_tokens)
        longest = kwargs.get("max_length", settings.max_length) if new is None else n_prompt + new
        if given is None and not self.force and n_prompt and (warning := self._does_not_pay(n_prompt)):
            warnings.warn(warning, stacklevel=2)
            with attention_implementation(self.original_attention):
                return type(self.model).generate(self.model, *args, **kwargs)  # pyright: ignore
        if given is None and kwargs.get("use_cache", settings.use_cache) is not False:
            # Checkpoints may name a cache of their own.
            kwargs |= {"past_key_values": self.cache(longest or 0, kind == "static"), "cache_implementation": None}
        self.tokens.n_prompt = n_prompt
        try:
            # Hugging Face types generate for a mixin.
            return type(self.model).generate(self.model, *args, **kwargs)  # pyright: ignore
        finally:
            self.tokens.n_prompt = None

    def _does_not_pay(self, n_prompt: int) -> str:
        """What to warn of where a plan is not worth following; empty where it is, or where nobody can say."""
        try:
            pays = self._pays_from
        except ValueError:
            # The cost of a model with experts is not known.
            return ""
        if pays is not None and n_prompt >= pays:
            return ""
        said = "at no length" if pays is None else f"from about {pays:,} positions on"
        return (
            f"This plan is predicted to pay {said}, and the prompt has {n_prompt:,}. The model generates without it; "
            f"apply(..., force=True) follows it. {docs_link('short')}"
        )

    @cached_property
    def _pays_from(self) -> int | None:
        dtype, device = self.model.dtype, self.model.device
        # The vision tower costs the same with a plan and without.
        sizes = dimensions(self.model.config.get_text_config(decoder=True), value_bytes=dtype.itemsize)
        return pays_from(sizes, self.plan.shares, rates(dtype, str(device)))


@contextmanager
def apply(model: HookedMLLM | PreTrainedModel, plan: HeadPlan, *, force: bool = False) -> Iterator[ActivePlan]:
    """Has heads follow a plan until the block ends: in passes, and in `generate`, with a cache that keeps what is seen.

    Works on HookedMLLM and on plain Hugging Face models, greedily, with beams or sampling, in batches with padding on
    the left, with chunked prefill and in several turns. Attention cannot be hooked meanwhile.

    Args:
        model: The model.
        plan: What each head may see.
        force: Whether `generate` follows the plan also where the cost model says that this takes longer than the model
            as it is; otherwise it warns there and does without. Passes always follow it.

    Raises:
        ValueError: If the plan does not fit the model; later, in passes, if padding stands elsewhere than on the left,
            or if generation asks for what takes tokens back (assisted decoding) or for another cache.
        RuntimeError: If a plan or hooks are already at work.
    """
    hf_model = model.hf_model if isinstance(model, HookedMLLM) else model
    configs = decoder_configs(hf_model)
    before = [(config, config._attn_implementation_internal) for config in configs]
    applied = ActivePlan(resolve(plan, hf_model), hf_model, before, force)
    AttentionInterface.register(SPARSE, head_sparse_attention)
    AttentionMaskInterface.register(SPARSE, head_sparse_mask)
    with LOCKS.setdefault(hf_model, RLock()), ExitStack() as undone:
        if any(config._attn_implementation_internal in (NAME, PACKED, SPARSE) for config in configs):
            raise RuntimeError("a plan or hooks are already at work on this model: end their block first.")
        for layer, module in applied.plan.modules.items():
            module.__dict__["_corelens_planned"] = PlannedAttention(applied.plan.layers[layer], applied.tokens)
            undone.callback(module.__dict__.pop, "_corelens_planned")
        if any(layer.streaming and layer.streaming.keep_text for layer in applied.plan.layers.values()):
            undone.callback(_following_text(applied).remove)
        hf_model.__dict__["generate"] = applied.generate
        undone.callback(hf_model.__dict__.pop, "generate")
        undone.enter_context(attention_implementation([(config, SPARSE) for config in configs]))
        yield applied


def _following_text(applied: ActivePlan) -> Any:
    """Says before each pass which of its tokens are text of the prompt."""
    config = applied.model.config
    visual = [getattr(config, name, None) for name in ("image_token_id", "video_token_id")]
    visual = [number for number in visual if number is not None]
    if not visual:
        raise ValueError(
            f"{type(applied.model).__name__} does not say which tokens are pictures, so a plan cannot keep the others."
        )

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None:
            raise ValueError("a plan that keeps text needs input_ids, and this pass has none.")
        past = kwargs.get("past_key_values")
        first = 0 if past is None else past.get_seq_length()
        # Outside of generate, single tokens are taken for generated ones.
        prompt = ids.shape[1] > 1 if applied.tokens.n_prompt is None else first < applied.tokens.n_prompt
        applied.tokens.text = ~torch.isin(ids, torch.tensor(visual, device=ids.device)) if prompt else None

    return applied.model.register_forward_pre_hook(note, with_kwargs=True)
