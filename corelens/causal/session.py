"""One batch of prompts, prepared for many interventions: each runs only what it changes."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_map

from corelens.heads import Head
from corelens.hf.module_outputs import RecordedOutputs, record_outputs, replay_outputs, vision_towers
from corelens.hooks.connect import begin_pass
from corelens.hooks.positions import Intervention, PassState, PositionSelector
from corelens.inputs.prepare import PreparedInputs
from corelens.interventions import FwdHooks
from corelens.model import HookedMLLM

POSITIONS_PER_PASS = 1024
"""Most positions in a pass that several interventions on one whole prompt share. More would keep any device busy with
one of them: sharing would cost memory and save no time."""


class Session:
    """Answers of a model under one intervention after another, as a pass of its own would give them.

    What comes before the question is computed once, if the model allows that. An intervention that acts at later
    positions alone runs these; any other runs the whole prompt. In both, layers before the first that is changed are
    not run again. The session holds the keys and values of the prefix and the residual stream behind every layer from
    the question on; the whole prompt's stream only once an intervention needs it.

    Hooks that are active while the session is made have to be active while it is used.
    """

    @torch.no_grad()
    def __init__(self, model: HookedMLLM, inputs: PreparedInputs) -> None:
        """Runs the prompts once.

        Args:
            model: The model.
            inputs: A batch of prompts, with answers behind them or without.
        """
        self.model, self.inputs = model, inputs
        try:
            self.prefix = model.prefix(inputs)
        except ValueError:
            # Nothing before the question, or no cache to share: whole prompts it is.
            self.prefix = None
        if self.prefix is None:
            self.plain = self._vision_outputs[0]
        else:
            with record_outputs(self._layers) as recorded:
                self.plain = self.model(inputs, prefix=self.prefix)
            self._after = recorded
        self._skips = self._can_skip()

    @property
    def first(self) -> int:
        """The first position whose logits the session gives."""
        return 0 if self.prefix is None else self.prefix.length

    @torch.no_grad()
    def logits(self, fwd_hooks: FwdHooks) -> Float[Tensor, "sample position vocabulary"]:
        """Logits from `first` on under an intervention."""
        return self.logits_of_each([fwd_hooks])[0]

    @torch.no_grad()
    def logits_of_each(self, interventions: Sequence[FwdHooks]) -> list[Float[Tensor, "sample position vocabulary"]]:
        """Logits from `first` on under each of some interventions, in one batch where that is possible.

        Memory grows with the number of interventions: this many copies of the prefix's keys and values exist while
        one layer runs. Where whole prompts run, short ones of a batch of one alone share passes, of up to `PACKED`
        positions.
        """
        later = self.prefix is not None and all(self._acts_later(hooks) for hooks in interventions)
        run, size = (self._after_prefix, len(interventions)) if later else (self._through_all, self._fitting)
        found = []
        for start in range(0, len(interventions), size or 1):
            some = interventions[start : start + size]
            packed = _copy_hooks(some)
            if packed is None:
                found += [run(hooks, 1) for hooks in some]
            else:
                logits = run(packed, len(some))
                found += [logits[copy :: len(some)] for copy in range(len(some))]
        return found

    @property
    def _layers(self) -> list[Any]:
        return [site.block for site in self.model.hf_layers]

    def _acts_later(self, hooks: FwdHooks) -> bool:
        """Whether an intervention acts at no position of the prefix."""
        assert self.prefix is not None
        progress = begin_pass(self.model.hf_model, self.model.hf_layers, self.inputs, self.inputs.tokens, self.prefix)
        everywhere = torch.arange(progress.n_cached)
        return all(
            _in_decoder(name)
            and isinstance(function, Intervention)
            and not function.where.select(progress, everywhere).any()
            for name, function in hooks
        )

    def _can_skip(self) -> bool:
        """Whether the last layer alone gives the same; not where it looks at keys of others (Gemma 3n and 4)."""
        self._skips = True
        return (
            self._gives_plain(self._through_all, 1) if self.prefix is None else self._gives_plain(self._after_prefix, 2)
        )

    @cached_property
    def _fitting(self) -> int:
        """How many whole prompts a pass may hold."""
        n_samples, n = self.inputs.shape
        fitting = POSITIONS_PER_PASS // n if n_samples == 1 else 1
        return fitting if fitting > 1 and self._gives_plain(self._through_all, 2) else 1

    def _gives_plain(self, run: Callable[[FwdHooks, int], Tensor], times: int) -> bool:
        """Whether a pass in which nothing is done from the last layer on gives the plain logits."""
        last: FwdHooks = [(f"blocks.{len(self._layers) - 1}.hook_resid_pre", lambda stream, hook: None)]
        try:
            found = run(last, times).float()
        except (KeyError, RuntimeError, ValueError):
            return False
        plain = _repeated(self.plain, times).float()
        return bool((found - plain).norm() < torch.finfo(self.plain.dtype).eps ** 0.5 * plain.norm())

    def _first_layer(self, hooks: FwdHooks) -> int:
        if not self._skips:
            return 0
        return min((int(name.split(".")[1]) for name, _ in hooks if _in_decoder(name)), default=len(self._layers))

    def _after_prefix(self, hooks: FwdHooks, times: int) -> Float[Tensor, "batch position vocabulary"]:
        skipped = {
            layer: [_repeated(output, times) for output in self._after[layer]]
            for layer in self._layers[: self._first_layer(hooks)]
        }
        with self.model.hooks(fwd_hooks=hooks), replay_outputs(skipped):
            return self.model(self.inputs, prefix=self.prefix, times=times)

    def _through_all(self, hooks: FwdHooks, times: int) -> Float[Tensor, "batch position vocabulary"]:
        inside = all(_in_decoder(name) for name, _ in hooks)
        run = set(self._layers[self._first_layer(hooks) :])
        given = {
            module: [_tiled(output, times) for output in outputs]
            for module, outputs in self._vision_outputs[1].items()
            if inside and module not in run
        }
        with self.model.hooks(fwd_hooks=hooks), replay_outputs(given):
            return self._whole_pass(times)

    def _whole_pass(self, times: int = 1) -> Float[Tensor, "batch position vocabulary"]:
        n = self.inputs.shape[1] - self.first
        takes = inspect.signature(self.model.hf_model.forward).parameters
        keep = {"logits_to_keep": n} if "logits_to_keep" in takes else {}
        return self.model(self.inputs, times=times, **keep)[:, -n:]

    @cached_property
    def _vision_outputs(self) -> tuple[Tensor, RecordedOutputs]:
        """Logits of whole prompts, and what the vision tower and every layer make of them."""
        with torch.no_grad(), record_outputs([*vision_towers(self.model.hf_model), *self._layers]) as recorded:
            logits = self._whole_pass()
        return logits, recorded


@dataclass(frozen=True, eq=False)
class CopyHooks:
    """Hook functions of one hook point that act each on its own copies of the samples of a batch."""

    functions: dict[int, list[Callable[..., Any]]]
    n_copies: int
    where: PositionSelector | None

    @property
    def heads(self) -> Iterable[Head]:
        return [head for own in self.functions.values() for function in own for head in getattr(function, "heads", ())]

    def check(self, progress: PassState) -> None:
        for own in self.functions.values():
            for function in own:
                if isinstance(function, Intervention):
                    function.check(progress)

    def __call__(self, tensor: Tensor, hook: Any) -> Tensor:
        edited = tensor.clone()
        for copy, own in self.functions.items():
            part = tensor[copy :: self.n_copies].clone()
            for function in own:
                result = function(part, hook=hook)
                part = part if result is None else result
            edited[copy :: self.n_copies] = part
        return edited


def _copy_hooks(interventions: Sequence[FwdHooks]) -> FwdHooks | None:
    """One intervention that does each of some to its own copy of a batch; None if that cannot be."""
    if len(interventions) == 1:
        return interventions[0]
    if not all(
        _in_decoder(name) and isinstance(function, Intervention) for hooks in interventions for name, function in hooks
    ):
        # What they do to a batch is not known.
        return None
    by_name: dict[str, dict[int, list[Any]]] = {}
    for copy, hooks in enumerate(interventions):
        for name, function in hooks:
            by_name.setdefault(name, {}).setdefault(copy, []).append(function)
    packed: FwdHooks = []
    for name, functions in by_name.items():
        wheres = [function.where for own in functions.values() for function in own]
        of_rows = name.endswith((".hook_attn_scores", ".hook_pattern"))
        if of_rows and any(where.prompt is not wheres[0].prompt or where.phase != wheres[0].phase for where in wheres):
            # Each would have to see rows of its own.
            return None
        packed.append((name, CopyHooks(functions, len(interventions), wheres[0] if of_rows else None)))
    return packed


def _in_decoder(name: Any) -> bool:
    return isinstance(name, str) and name.startswith("blocks.")


def _repeated(output: Any, times: int) -> Any:
    return tree_map(lambda leaf: leaf.repeat_interleave(times, 0) if isinstance(leaf, Tensor) else leaf, output)


def _tiled(output: Any, times: int) -> Any:
    return tree_map(lambda leaf: torch.cat([leaf] * times) if isinstance(leaf, Tensor) else leaf, output)
