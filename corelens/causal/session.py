"""One batch of prompts, prepared for many interventions: each pass runs only what its intervention changes.

A sweep over heads would run one whole pass per head, and nearly all of it would be the same. `Session` computes once:

    vision tower -> prefix: keys and values [sample prefix ...] -> residual stream after every layer [sample suffix ...]
    once            once, if the model allows a prefix             once, in the pass without intervention

and for an intervention that first changes layer L

    positions:   0 ... first                        first ... end
    layers < L   keys and values of the prefix      outputs replayed
    layers >= L  keys and values of the prefix      run again, for several interventions in one batch

An intervention that also acts before the question cannot use the prefix. It runs the whole prompt from layer L on, with
the vision tower and the layers below L replayed. What a model does not compute the same this way (layers that share
keys, prompts that look ahead) is detected by passes that change nothing, and is then run in full.

Interventions share a pass as copies of the batch, and `CopyHooks` runs each hook function on its own copy. The copies
of a sample are neighbours, `[sample copy]`, so that rows `copy::n_copies` of the batch are one copy.

Read on: `hf/prefix_cache.py` and `hf/module_outputs.py` for what is cached, `experiments/sweep.py` for its main user.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_map

from corelens.heads import Head
from corelens.hf.module_outputs import RecordedOutputs, record_outputs, replay_outputs, vision_towers
from corelens.hf.prefix_cache import PrefixCache
from corelens.hooks.connect import begin_pass
from corelens.hooks.points import hook_name, layer_of
from corelens.hooks.positions import Intervention, PassState, PositionSelector
from corelens.inputs.prepare import PreparedInputs, repeat_inputs
from corelens.interventions import FwdHooks
from corelens.model import HookedMLLM

POSITIONS_PER_PASS = 1024
"""Maximum number of positions in a pass that several interventions on one whole prompt share. More would keep any
device busy with one of them: sharing would cost memory and save no time."""


class Session:
    """Logits of a model under one intervention after another, the same as in a pass of its own for each.

    Everything before the question is computed once, if the model allows that. An intervention that acts at later
    positions alone runs these; any other runs the whole prompt. In both, layers before the first that is changed are
    not run again. The session holds the keys and values of the prefix and the residual stream after every layer from
    the question on; the whole prompt's stream only once an intervention needs it.

    Hooks that are active while the session is made have to be active while it is used.
    """

    @torch.no_grad()
    def __init__(self, model: HookedMLLM, inputs: PreparedInputs) -> None:
        """Run the prompts once.

        Args:
            model: The model.
            inputs: A batch of prompts, with answers appended or without.
        """
        self.model, self.inputs = model, inputs
        self.prefix = prefix_if_possible(model, inputs)
        if self.prefix is None:
            self.plain = self._whole_prompt_outputs[0]
        else:
            with record_outputs(self._layers) as suffix_outputs:
                self.plain = self.model(inputs, prefix=self.prefix)
            self._suffix_outputs = suffix_outputs
        self._can_skip_layers = self._replay_is_exact()

    @property
    def first(self) -> int:
        """The first position whose logits the session returns."""
        return 0 if self.prefix is None else self.prefix.length

    @torch.no_grad()
    def logits(self, fwd_hooks: FwdHooks) -> Float[Tensor, "sample position vocabulary"]:
        """Logits from `first` on under an intervention."""
        return self.logits_of_each([fwd_hooks])[0]

    @torch.no_grad()
    def logits_of_each(self, interventions: Sequence[FwdHooks]) -> list[Float[Tensor, "sample position vocabulary"]]:
        """Logits from `first` on under each of some interventions, in one batch where that is possible.

        Memory grows with the number of interventions: this many copies of the prefix's keys and values exist while
        one layer runs. Where whole prompts run, short ones of a batch of one alone share passes, of up to
        `POSITIONS_PER_PASS` positions.
        """
        if self.prefix is not None and all(self._acts_after_prefix(hooks) for hooks in interventions):
            run, n_copies = self._run_suffix, len(interventions)
        else:
            run, n_copies = self._run_whole_prompt, self._max_copies
        results = []
        for start in range(0, len(interventions), n_copies or 1):
            group = interventions[start : start + n_copies]
            hooks_of_all = _copy_hooks(group)
            if hooks_of_all is None:
                results += [run(hooks, 1) for hooks in group]
            else:
                logits = run(hooks_of_all, len(group))
                results += [logits[copy :: len(group)] for copy in range(len(group))]
        return results

    @property
    def _layers(self) -> list[Any]:
        return [site.block for site in self.model.hf_layers]

    def _acts_after_prefix(self, hooks: FwdHooks) -> bool:
        """True if an intervention acts at no position of the prefix."""
        assert self.prefix is not None
        state = begin_pass(self.model.hf_model, self.model.hf_layers, self.inputs, self.inputs.tokens, self.prefix)
        cached_positions = torch.arange(state.n_cached)
        return all(
            _in_decoder(name)
            and isinstance(function, Intervention)
            and not function.where.select(state, cached_positions).any()
            for name, function in hooks
        )

    def _replay_is_exact(self) -> bool:
        """True if running the last layer alone gives the same logits.

        It does not where that layer attends to keys of other layers (Gemma 3n and 4).
        """
        self._can_skip_layers = True
        if self.prefix is None:
            return self._gives_plain_logits(self._run_whole_prompt, 1)
        return self._gives_plain_logits(self._run_suffix, 2)

    @cached_property
    def _max_copies(self) -> int:
        """Maximum number of whole prompts in a pass."""
        n_samples, n_positions = self.inputs.shape
        n_copies = POSITIONS_PER_PASS // n_positions if n_samples == 1 else 1
        return n_copies if n_copies > 1 and self._gives_plain_logits(self._run_whole_prompt, 2) else 1

    def _gives_plain_logits(self, run: Callable[[FwdHooks, int], Tensor], n_copies: int) -> bool:
        """True if a pass that starts at the last layer and changes nothing gives the logits without intervention."""
        no_change: FwdHooks = [(hook_name(len(self._layers) - 1, "resid_pre"), lambda stream, hook: None)]
        try:
            logits = run(no_change, n_copies).float()
        except (KeyError, RuntimeError, ValueError):
            return False
        expected = _repeat_samples(self.plain, n_copies).float()
        return bool((logits - expected).norm() < torch.finfo(self.plain.dtype).eps ** 0.5 * expected.norm())

    def _first_layer(self, hooks: FwdHooks) -> int:
        """The first layer that has to run under these hooks; the number of layers if none has."""
        if not self._can_skip_layers:
            return 0
        return min((layer_of(name) for name, _ in hooks if _in_decoder(name)), default=len(self._layers))

    def _run_suffix(self, hooks: FwdHooks, n_copies: int) -> Float[Tensor, "batch position vocabulary"]:
        """Logits of a pass after the prefix, over copies of every sample."""
        assert self.prefix is not None
        replayed = {
            layer: [_repeat_samples(output, n_copies) for output in self._suffix_outputs[layer]]
            for layer in self._layers[: self._first_layer(hooks)]
        }
        with self.model.hooks(fwd_hooks=hooks), replay_outputs(replayed):
            return self._logits(self.prefix.suffix_inputs(self.inputs, n_copies), self.prefix)

    def _run_whole_prompt(self, hooks: FwdHooks, n_copies: int) -> Float[Tensor, "batch position vocabulary"]:
        """Logits of a pass over whole prompts, over copies of the batch."""
        only_decoder = all(_in_decoder(name) for name, _ in hooks)
        layers_to_run = set(self._layers[self._first_layer(hooks) :])
        replayed = {
            module: [_tile_batch(output, n_copies) for output in outputs]
            for module, outputs in self._whole_prompt_outputs[1].items()
            if only_decoder and module not in layers_to_run
        }
        with self.model.hooks(fwd_hooks=hooks), replay_outputs(replayed):
            return self._whole_prompt_logits(n_copies)

    def _whole_prompt_logits(self, n_copies: int = 1) -> Float[Tensor, "batch position vocabulary"]:
        n_logits = self.inputs.shape[1] - self.first
        parameters = inspect.signature(self.model.hf_model.forward).parameters
        options = {"logits_to_keep": n_logits} if "logits_to_keep" in parameters else {}
        copies = dict(self.inputs) if n_copies == 1 else repeat_inputs(self.inputs, n_copies)
        return self._logits({**copies, **options})[:, -n_logits:]

    def _logits(
        self, tensors: Mapping[str, Any], prefix: PrefixCache | None = None
    ) -> Float[Tensor, "batch position vocabulary"]:
        """Logits of copies of the batch; hooks select positions of the batch itself."""
        with self.model.connected(self.inputs, self.inputs.tokens, prefix):
            return self.model.hf_model(**tensors).logits

    @cached_property
    def _whole_prompt_outputs(self) -> tuple[Tensor, RecordedOutputs]:
        """Logits of whole prompts, and the outputs of the vision tower and of every layer."""
        with torch.no_grad(), record_outputs([*vision_towers(self.model.hf_model), *self._layers]) as outputs:
            logits = self._whole_prompt_logits()
        return logits, outputs


def prefix_if_possible(model: HookedMLLM, inputs: PreparedInputs) -> PrefixCache | None:
    """The prefix of some prompts; None if the model has to run them whole."""
    try:
        return model.prefix(inputs)
    except ValueError:
        return None


@dataclass(frozen=True, eq=False)
class CopyHooks:
    """Hook functions of one hook point, each of which acts on its own copy of the samples of a batch."""

    functions: dict[int, list[Callable[..., Any]]]
    """Hook functions by number of the copy."""

    n_copies: int
    where: PositionSelector | None

    @property
    def heads(self) -> Iterable[Head]:
        """The heads of all functions."""
        return [head for function in self._all_functions for head in getattr(function, "heads", ())]

    @property
    def _all_functions(self) -> list[Callable[..., Any]]:
        return [function for functions in self.functions.values() for function in functions]

    def check(self, state: PassState) -> None:
        """Raise a ValueError if one of the functions cannot act in a pass in this state."""
        for function in self._all_functions:
            if isinstance(function, Intervention):
                function.check(state)

    def __call__(self, tensor: Tensor, hook: Any) -> Tensor:
        edited = tensor.clone()
        for copy, functions in self.functions.items():
            rows = tensor[copy :: self.n_copies].clone()
            hook.ctx["copy"] = copy, self.n_copies
            for function in functions:
                result = function(rows, hook=hook)
                rows = rows if result is None else result
            edited[copy :: self.n_copies] = rows
        del hook.ctx["copy"]
        return edited


def _copy_hooks(interventions: Sequence[FwdHooks]) -> FwdHooks | None:
    """One intervention that applies each of some to its own copy of a batch; None if that is not possible."""
    if len(interventions) == 1:
        return interventions[0]
    if not all(
        _in_decoder(name) and isinstance(function, Intervention) for hooks in interventions for name, function in hooks
    ):
        # Nothing is known of how these functions act on a batch.
        return None
    functions_by_name: dict[str, dict[int, list[Any]]] = {}
    for copy, hooks in enumerate(interventions):
        for name, function in hooks:
            functions_by_name.setdefault(name, {}).setdefault(copy, []).append(function)
    copy_hooks: FwdHooks = []
    for name, functions in functions_by_name.items():
        wheres = [function.where for copy_functions in functions.values() for function in copy_functions]
        by_row = name.endswith((".hook_attn_scores", ".hook_pattern"))
        if by_row and any(where.prompt is not wheres[0].prompt or where.phase != wheres[0].phase for where in wheres):
            # Each function would need rows of its own.
            return None
        copy_hooks.append((name, CopyHooks(functions, len(interventions), wheres[0] if by_row else None)))
    return copy_hooks


def _in_decoder(name: Any) -> bool:
    return isinstance(name, str) and name.startswith("blocks.")


def _repeat_samples(output: Any, n_copies: int) -> Any:
    """Copies of every sample, one after another: [sample copy]."""
    return tree_map(lambda leaf: leaf.repeat_interleave(n_copies, 0) if isinstance(leaf, Tensor) else leaf, output)


def _tile_batch(output: Any, n_copies: int) -> Any:
    """Copies of the whole batch, one after another: [copy sample]."""
    return tree_map(lambda leaf: torch.cat([leaf] * n_copies) if isinstance(leaf, Tensor) else leaf, output)
