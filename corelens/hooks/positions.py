"""Where in the sequence a pass stands, and at which positions something acts or somebody looks."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from corelens.errors import docs_link
from corelens.heads import Head
from corelens.tokens import TokenMap

Phase = Literal["prefill", "decode", "both"]
"""The positions of the prompt, those generated after it, or both."""

PositionName = Literal[
    "system", "context", "question", "image", "video", "structural", "answer", "last", "from_question"
]
"""Positions of a prompt by what they are: the masks of `TokenMap`."""

Positions = Bool[Tensor, "batch position"] | PositionName
"""Positions of a prompt, as a mask or by name. A name fits every prompt that `prepare` made."""


@dataclass
class PassState:
    """Which positions of the sequence the present pass computes; a hook finds it as `hook.ctx["progress"]`."""

    n_samples: int = 1
    n_prompt: int = 0
    """Positions of the prompt; all later ones are generated."""

    tokens: TokenMap | None = None
    """What the prompt's positions are, if `prepare` said so."""

    n_cached: int = 0
    """Positions that a cache holds already."""

    n_computed: int = 0

    cross_attention_layers: frozenset[int] = frozenset()
    """Layers whose attention has something else than the sequence for its keys."""

    prefix_hooks: tuple[Callable[..., Any], ...] = ()
    """Hook functions that acted while the cached positions were computed."""

    def positions(self, length: int) -> Int[Tensor, "position"]:
        """Which positions of the sequence an axis of that length runs over, of queries or of keys.

        Sliding caches drop the first keys: axes end where the pass ends.
        """
        begin = max(self.n_cached + self.n_computed - length, 0)
        return torch.arange(begin, begin + length)

    def check_keys(self, layer: int) -> None:
        """Raises a ValueError if keys of a layer are not positions of the sequence."""
        if layer in self.cross_attention_layers:
            raise ValueError(
                f"layer {layer} attends to the encoder, so that its keys are not positions of the sequence and cannot "
                f"be chosen as such."
            )

    def mask(self, positions: Positions, called: str = "positions") -> Bool[Tensor, "batch position"]:
        """Positions of the prompt as a mask; errors name them as they are `called`.

        Raises:
            ValueError: If the name is not known, nothing says what the prompt's positions are, or a mask is none or of
                another prompt.
        """
        if isinstance(positions, str):
            if positions not in get_args(PositionName):
                raise ValueError(
                    f"{called}={positions!r} is not known; the names are {', '.join(get_args(PositionName))}."
                )
            if self.tokens is None:
                raise ValueError(
                    f"{called}={positions!r} needs a token map, and these inputs have none: use model.prepare, or "
                    f"give a mask [batch position]."
                )
            positions = getattr(self.tokens, positions)
        if not isinstance(positions, Tensor) or positions.dtype != torch.bool:
            raise ValueError(
                f"{called} must be a name or a boolean mask, e.g. inputs.tokens.question, and is "
                f"{getattr(positions, 'dtype', type(positions).__name__)}."
            )
        if positions.shape != (self.n_samples, self.n_prompt):
            raise ValueError(
                f"{called} has shape {tuple(positions.shape)}, and the inputs have (batch, position) = "
                f"{(self.n_samples, self.n_prompt)}: it belongs to another prompt. {docs_link('other-prompt')}"
            )
        return positions


@dataclass(frozen=True, eq=False)
class PositionSelector:
    """Positions at which something acts, or whose attention rows somebody wants to see."""

    prompt: Positions | None = field(default=None, repr=False)
    """Of the prompt; None for all."""

    phase: Phase = "both"

    def __post_init__(self) -> None:
        if self.phase not in ("prefill", "decode", "both"):
            raise ValueError(f"phase={self.phase!r} is not known; the phases are prefill, decode and both.")
        if self.phase == "decode" and self.prompt is not None:
            raise ValueError("phase='decode' acts on generated positions alone and takes no positions of the prompt.")

    def check(self, progress: PassState) -> None:
        """Raises a ValueError where a pass that begins like this cannot act at these positions."""
        cached = self.select(progress, torch.arange(progress.n_cached))
        if cached.any():
            sample, position = cached.nonzero()[0].tolist()
            raise ValueError(
                f"an intervention acts at position {position} of sample {sample}, which is in a cache that was made "
                f"without it: the first {progress.n_cached} positions are not computed again. Make the cache under the "
                f"intervention, or choose later positions, e.g. positions='question'. {docs_link('cached')}"
            )

    def select(self, progress: PassState, positions: Int[Tensor, "position"]) -> Bool[Tensor, "sample position"]:
        """Which of some positions of the sequence are meant, for every sample of the prompt."""
        in_prompt = (positions < progress.n_prompt).expand(progress.n_samples, -1)
        if self.phase == "decode":
            return ~in_prompt
        chosen = in_prompt
        if self.prompt is not None:
            mask = progress.mask(self.prompt)
            in_prompt = in_prompt.to(mask.device)
            chosen = in_prompt & mask[:, positions.clamp(max=progress.n_prompt - 1)]
        return chosen | ~in_prompt if self.phase == "both" else chosen


@runtime_checkable
class Intervention(Protocol):
    """A hook function that says what it acts on, so that mistakes are found before anything runs."""

    @property
    def heads(self) -> Iterable[Head]:
        """The heads that it changes."""
        ...

    @property
    def where(self) -> PositionSelector:
        """The positions at which it acts; on scores and patterns, it is shown these rows alone."""
        ...

    def check(self, progress: PassState) -> None:
        """Raises a ValueError if a pass that begins like this cannot be intervened in."""
        ...

    def __call__(self, tensor: Tensor, hook: Any) -> Tensor | None: ...


def batch_shape(tensors: Mapping[str, Any]) -> tuple[int, int]:
    """Batch and number of positions of the sequence, cached positions included."""
    given = tensors.get("decoder_input_ids")
    given = tensors.get("input_ids") if given is None else given
    given = tensors.get("inputs_embeds") if given is None else given
    if given is None:
        raise ValueError("the inputs hold neither `input_ids` nor `inputs_embeds`.")
    past, mask = tensors.get("past_key_values"), tensors.get("attention_mask")
    n_cached = 0 if past is None else int(past.get_seq_length())
    if n_cached and mask is not None and "decoder_input_ids" not in tensors:
        # Ids are those after the cache in passes, and may be all of them in `generate`; the mask is always whole.
        return given.shape[0], mask.shape[-1]
    return given.shape[0], given.shape[1] + n_cached


def repeat_per_row(chosen: Shaped[Tensor, "sample *rest"], tensor: Tensor) -> Shaped[Tensor, "batch *rest"]:
    """Repeats what is said of samples for a batch in which each of them stands several times, one after another."""
    return chosen.repeat_interleave(len(tensor) // len(chosen), 0).to(tensor.device)
