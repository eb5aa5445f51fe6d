"""Positions of the sequence: those that a pass computes, and those that a hook or intervention selects."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from corelens.errors import check_choice, docs_link
from corelens.heads import Head
from corelens.hf.versions import given_cache
from corelens.tokens import TokenMap

Phase = Literal["prefill", "decode", "both"]
"""The positions of the prompt, those generated after it, or both."""

PositionName = Literal[
    "system", "context", "question", "image", "video", "structural", "answer", "last", "from_question"
]
"""Names of groups of prompt positions: the masks of `TokenMap`."""

Positions = Bool[Tensor, "batch position"] | PositionName
"""Positions of a prompt, as a mask or by name. A name fits every prompt that `prepare` made."""


@dataclass
class PassState:
    """Positions of the sequence that the present pass computes; hooks find it as `hook.ctx["state"]`."""

    n_samples: int = 1
    n_prompt: int = 0
    """Positions of the prompt; all later ones are generated."""

    tokens: TokenMap | None = None
    """Token map of the prompt, if `prepare` made the inputs."""

    n_cached: int = 0
    """Number of positions that a cache holds already."""

    n_computed: int = 0
    """Number of positions that the pass computes."""

    cross_attention_layers: frozenset[int] = frozenset()
    """Layers whose keys are not positions of the sequence."""

    prefix_hooks: tuple[Callable[..., Any], ...] = ()
    """Hook functions that acted while a prefix was computed."""

    preallocated: bool = False
    """True if the cache also holds positions that are empty as yet."""

    def positions(self, length: int) -> Int[Tensor, "position"]:
        """Positions of the sequence along an axis of queries or keys with that length.

        Sliding caches drop the first keys: axes end where the pass ends.
        """
        begin = max(self.n_cached + self.n_computed - length, 0)
        return torch.arange(begin, begin + length)

    def check_keys(self, layer: int) -> None:
        """Raise a ValueError if keys of a layer are not positions of the sequence."""
        if layer in self.cross_attention_layers:
            raise ValueError(
                f"layer {layer} attends to the encoder, so that its keys are not positions of the sequence and cannot "
                f"be chosen as such."
            )

    def mask(self, positions: Positions, argument: str = "positions") -> Bool[Tensor, "batch position"]:
        """Positions of the prompt as a mask; errors name the `argument`.

        Raises:
            ValueError: If the name is not known, the inputs have no token map, or the mask is not boolean or of another
                prompt.
        """
        if isinstance(positions, str):
            check_choice(argument, positions, PositionName)
            if self.tokens is None:
                raise ValueError(
                    f"{argument}={positions!r} needs a token map, and these inputs have none: use model.prepare, or "
                    f"give a mask [batch position]."
                )
            positions = getattr(self.tokens, positions)
        if not isinstance(positions, Tensor) or positions.dtype != torch.bool:
            raise ValueError(
                f"{argument} must be a name or a boolean mask, e.g. inputs.tokens.question, and is "
                f"{getattr(positions, 'dtype', type(positions).__name__)}."
            )
        if positions.shape != (self.n_samples, self.n_prompt):
            raise ValueError(
                f"{argument} has shape {tuple(positions.shape)}, and the inputs have (batch, position) = "
                f"{(self.n_samples, self.n_prompt)}: it belongs to another prompt. {docs_link('other-prompt')}"
            )
        return positions


@dataclass(frozen=True, eq=False)
class PositionSelector:
    """Positions at which an intervention acts, or whose attention rows a hook gets."""

    prompt: Positions | None = field(default=None, repr=False)
    """Positions of the prompt; None for all."""

    phase: Phase = "both"

    def __post_init__(self) -> None:
        check_choice("phase", self.phase, Phase)
        if self.phase == "decode" and self.prompt is not None:
            raise ValueError("phase='decode' acts on generated positions alone and takes no positions of the prompt.")

    def check(self, state: PassState) -> None:
        """Raise a ValueError if the positions are in the cache already when the pass begins."""
        cached = self.select(state, torch.arange(state.n_cached))
        if cached.any():
            sample, position = cached.nonzero()[0].tolist()
            raise ValueError(
                f"an intervention acts at position {position} of sample {sample}, which is in a cache that was made "
                f"without it: the first {state.n_cached} positions are not computed again. Make the cache under the "
                f"intervention, or choose later positions, e.g. positions='question'. {docs_link('cached')}"
            )

    def select(self, state: PassState, positions: Int[Tensor, "position"]) -> Bool[Tensor, "sample position"]:
        """Mask of the selected ones among some positions of the sequence."""
        in_prompt = (positions < state.n_prompt).expand(state.n_samples, -1)
        if self.phase == "decode":
            return ~in_prompt
        selected = in_prompt
        if self.prompt is not None:
            mask = state.mask(self.prompt)
            in_prompt = in_prompt.to(mask.device)
            selected = in_prompt & mask[:, positions.clamp(max=state.n_prompt - 1)]
        return selected | ~in_prompt if self.phase == "both" else selected


@runtime_checkable
class Intervention(Protocol):
    """Hook function that declares its heads and positions, so that mistakes are found before a pass runs."""

    @property
    def heads(self) -> Iterable[Head]:
        """Heads that it changes."""
        ...

    @property
    def where(self) -> PositionSelector:
        """Positions at which it acts; on scores and patterns, it gets these rows alone."""
        ...

    def check(self, state: PassState) -> None:
        """Raise a ValueError if it cannot act in a pass that begins in this state."""
        ...

    def __call__(self, tensor: Tensor, hook: Any) -> Tensor | None: ...


def batch_shape(tensors: Mapping[str, Any]) -> tuple[int, int]:
    """Number of samples and of positions of the sequence, cached positions included."""
    names = ("decoder_input_ids", "input_ids", "inputs_embeds")
    sequence = next((tensors[name] for name in names if tensors.get(name) is not None), None)
    if sequence is None:
        raise ValueError("the inputs hold neither `input_ids` nor `inputs_embeds`.")
    past, mask = given_cache(tensors), tensors.get("attention_mask")
    n_cached = 0 if past is None else int(past.get_seq_length())
    if n_cached and mask is not None and "decoder_input_ids" not in tensors:
        # Ids are those after the cache in passes, and may be all of them in `generate`; the mask is always whole.
        return sequence.shape[0], mask.shape[-1]
    return sequence.shape[0], sequence.shape[1] + n_cached


def repeat_per_row(values: Shaped[Tensor, "sample *rest"], tensor: Tensor) -> Shaped[Tensor, "batch *rest"]:
    """Repeat values of samples for the rows of a batch that holds several rows of each sample (beams, copies)."""
    return values.repeat_interleave(len(tensor) // len(values), 0).to(tensor.device)
