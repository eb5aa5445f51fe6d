"""Head activations measured on a sample set, means or random draws, that replace those of other prompts."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from corelens.data import Sample, prepare_batches
from corelens.hooks.positions import PassState, PositionSelector
from corelens.model import HookedMLLM
from corelens.tokens import Role, TokenMap

Point = Literal["z", "o_in", "q"]


@dataclass(frozen=True, eq=False)
class ReferenceActivations:
    """Activations of every head on a sample set: means, or a number of draws."""

    values: dict[str, Float[Tensor, "draw role head d_head"]] = field(repr=False)
    """Values by hook name. One role if all positions are pooled, else every `Role`; NaN where a role did not occur, and
    for padding, which is given zeros: nothing attends to it."""

    point: Point
    """The hook point at which they were measured."""

    measured_by: Literal["mean_activations", "resample_activations"]
    seed: int = 0
    """Seed of the choice among draws."""

    def check(self, name: str, where: PositionSelector, state: PassState) -> None:
        """Raise a ValueError if nothing was measured for that hook point, or for a role at those positions."""
        if name not in self.values:
            raise ValueError(f"nothing was measured at {name}, but at {', '.join(self.values)}: is it another model?")
        positions = torch.arange(state.n_prompt)
        roles = self._role_indices(state, positions)
        unmeasured = self.values[name].isnan().flatten(2).any(-1).all(0).cpu()
        if len(unmeasured) > 1:
            unmeasured[Role.PADDING] = False
        if (missing := unmeasured[roles] & where.select(state, positions).cpu()).any():
            role = Role(int(roles[missing][0]))
            raise ValueError(f"nothing was measured for {role.name.lower()} positions: no sample of the set has any.")

    def at(
        self, name: str, state: PassState, positions: Int[Tensor, "position"]
    ) -> Float[Tensor, "sample position head d_head"]:
        """Replacement values at some positions of the sequence; the same draw every time for the same position."""
        values = self.values[name]
        roles = self._role_indices(state, positions)
        occurs = ~values.isnan().flatten(2).any(-1).cpu()
        generator = torch.Generator().manual_seed(self.seed)
        n = int(positions.max()) + 1
        random_integers = torch.randint(2**31, (n, state.n_samples), generator=generator)[positions].T
        nth = random_integers % occurs.sum(0).clamp(min=1)[roles]
        draw = occurs.to(torch.uint8).argsort(dim=0, descending=True, stable=True)[nth, roles]
        # No NaN: a masked key that holds it would still make attention NaN.
        return values[draw.to(values.device), roles.to(values.device)].nan_to_num()

    def _role_indices(self, state: PassState, positions: Int[Tensor, "position"]) -> Int[Tensor, "sample position"]:
        """Indices into the role axis; generated positions count as the prompt's last one."""
        if all(values.shape[1] == 1 for values in self.values.values()):
            return torch.zeros(state.n_samples, len(positions), dtype=torch.long)
        if state.tokens is None:
            raise ValueError("activations by role need a token map, and these inputs have none: use model.prepare.")
        return state.tokens.role.cpu().long()[:, positions.clamp(max=state.n_prompt - 1)]


@torch.no_grad()
def mean_activations(
    model: HookedMLLM, samples: Iterable[Sample], point: Point = "z", by_role: bool = False, batch_size: int = 16
) -> ReferenceActivations:
    """Average every head's activations in float32 over the positions of all samples that are not padding.

    Args:
        model: The model.
        samples: The sample set.
        point: Head outputs before (`z`) or after a gate (`o_in`), or queries (`q`).
        by_role: True to average the positions of each `Role` by themselves.
        batch_size: Samples per pass; for queries it is one.
    """
    sums: dict[str, Tensor] = {}
    counts = torch.zeros(len(Role) if by_role else 1, device=model.device)

    def begin(tokens: TokenMap) -> Callable[..., None]:
        weights = _role_weights(tokens, by_role)
        counts.add_(weights.sum((0, 1)))

        def add(z: Tensor, hook: Any) -> None:
            total = einsum(weights.to(z.device), z.float(), "batch position role, batch position head d -> role head d")
            sums[hook.name] = sums.get(hook.name, 0) + total

        return add

    _measure(model, samples, point, batch_size, begin)
    values = {name: (total / counts[:, None, None].to(total))[None] for name, total in sums.items()}
    return ReferenceActivations(values, point, "mean_activations")


@torch.no_grad()
def resample_activations(
    model: HookedMLLM,
    samples: Iterable[Sample],
    point: Point = "z",
    by_role: bool = False,
    batch_size: int = 16,
    seed: int = 0,
) -> ReferenceActivations:
    """Draw every head's activations at one random position of each sample; all heads share the position.

    Args:
        model: The model.
        samples: The sample set.
        point: As for `mean_activations`.
        by_role: True to draw one position of each `Role`, for positions of that role.
        batch_size: Samples per pass; for queries it is one.
        seed: Seed of the draws, and later of the choice among them.
    """
    draws: dict[str, list[Tensor]] = {}
    generator = torch.Generator().manual_seed(seed)

    def begin(tokens: TokenMap) -> Callable[..., None]:
        weights = _role_weights(tokens, by_role).cpu()
        order = torch.rand(weights.shape, generator=generator).masked_fill(weights == 0, -1)
        position = order.argmax(1)  # [batch role]
        absent = ~(weights > 0).any(1)

        def keep(z: Tensor, hook: Any) -> None:
            draw = z[torch.arange(len(z))[:, None], position].float()
            draws.setdefault(hook.name, []).append(draw.masked_fill(absent[..., None, None].to(z.device), torch.nan))

        return keep

    _measure(model, samples, point, batch_size, begin)
    values = {name: torch.cat(batches) for name, batches in draws.items()}
    return ReferenceActivations(values, point, "resample_activations", seed)


def _measure(
    model: HookedMLLM,
    samples: Iterable[Sample],
    point: Point,
    batch_size: int,
    begin: Callable[[TokenMap], Callable[..., None]],
) -> None:
    """Run all samples with a hook at the point of every layer; `begin` makes the hook function of a batch."""
    names = [name for name in model.attn_names(point) if name in model.hook_dict]
    if not names:
        raise ValueError(f"no layer has hook_{point}: nothing stands between head outputs (z) and W_O.")
    # Queries are rotated by their positions, and some models count padding as such.
    batch_size = 1 if point == "q" else batch_size
    for _, inputs in prepare_batches(model, samples, batch_size, f"outputs ({point})"):
        function = begin(inputs.tokens)
        with model.hooks(fwd_hooks=[(name, function) for name in names]):
            model(inputs)


def _role_weights(tokens: TokenMap, by_role: bool) -> Float[Tensor, "batch position role"]:
    """One at the role of each position that is not padding, else zero; a single role if positions are pooled."""
    mask = ~tokens.padding[..., None]
    return (one_hot(tokens.role.long(), len(Role)) * mask if by_role else mask).float()
