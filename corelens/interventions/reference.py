"""Head activations measured on a sample set, means or those of single samples, that replace those of other prompts."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from corelens.data import Sample, prepare_batches
from corelens.errors import check_choice
from corelens.hooks.attention import in_float32
from corelens.hooks.positions import PassState, PositionName, PositionSelector
from corelens.model import HookedMLLM
from corelens.tokens import Role, TokenMap

Point = Literal["z", "o_in", "q"]


N_KEPT = 64
"""Positions of each role that are kept of a sample to resample from, counted from its last one."""

N_DONORS = 100
"""Samples that are kept to resample from. Both limits are for memory: in half precision, 200 positions of as many
samples are about 5 GB for a model of 32 layers of 32 heads of 128."""


@dataclass(frozen=True, eq=False)
class ReferenceActivations:
    """Activations of every head that were measured on a sample set: means, or those of each sample."""

    values: dict[str, Float[Tensor, "row head d_head"]] = field(repr=False)
    """Values by hook name."""

    rows: Int[Tensor, "sample role distance"] = field(repr=False)
    """Row of a position of a role, by its distance from the last one; -1 where there is none. Means count as a single
    sample with one position of each role, or with one that stands for all roles."""

    point: Point
    """The hook point at which they were measured."""

    measured_by: Literal["mean_activations", "resample_activations"]
    prompts: tuple[str, ...] = ("",)
    """Digest of each sample's prompt, as in `TokenMap.prompts`."""

    seed: int = 0
    """Seed of the choice among samples."""

    def check(self, name: str, where: PositionSelector, state: PassState) -> None:
        """Raise a ValueError if nothing was measured for that hook point, or for a role at those positions."""
        if name not in self.values:
            raise ValueError(f"nothing was measured at {name}, but at {', '.join(self.values)}: is it another model?")
        if self.rows.numel() == 1:
            return
        for sample, prompt in enumerate(self._prompts(state)):
            if all(other == prompt for other in self.prompts):
                raise ValueError(f"sample {sample} is the only one that was measured, and resampling needs others.")
        positions = torch.arange(state.n_prompt)
        role, _ = _addresses(state, positions)
        needed = where.select(state, positions).cpu() & (role != Role.PADDING)
        if (missing := needed & (self._rows(state, positions) < 0)).any():
            lacking = Role(int(role[missing][0])).name.lower()
            raise ValueError(f"nothing was measured for {lacking} positions: no sample of the set has any.")

    def at(
        self, name: str, state: PassState, positions: Int[Tensor, "position"]
    ) -> Float[Tensor, "sample position head d_head"]:
        """Replacement values at some positions of the sequence; the same every time for the same prompt and position.

        Padding is given zeros: it is read by nothing, and NaN would spoil what is.
        """
        values = self.values[name]
        rows = self._rows(state, positions).to(values.device)
        return values[rows.clamp(min=0)].masked_fill((rows < 0)[..., None, None], 0)

    def _rows(self, state: PassState, positions: Int[Tensor, "position"]) -> Int[Tensor, "sample position"]:
        """Rows of the values for some positions; -1 where nothing was measured."""
        if self.rows.numel() == 1:
            return torch.zeros(state.n_samples, len(positions), dtype=torch.long)
        role, distance = _addresses(state, positions)
        n_measured = (self.rows >= 0).sum(-1)
        donors = torch.stack([self._donors(prompt, n_measured) for prompt in self._prompts(state)])
        donor = donors.gather(1, role)
        # A donor with fewer positions of the role is begun again from its last one.
        return self.rows[donor, role, distance % n_measured[donor, role].clamp(min=1)]

    def _donors(self, prompt: str, n_measured: Int[Tensor, "sample role"]) -> Int[Tensor, "role"]:
        """For each role, the first other sample that has such positions, in an order drawn for the prompt."""
        seed = int(blake2b(f"{self.seed} {prompt}".encode(), digest_size=7).hexdigest(), 16)
        order = torch.randperm(len(self.prompts), generator=torch.Generator().manual_seed(seed))
        others = order[[self.prompts[number] != prompt for number in order.tolist()]]
        return others[(n_measured[others] > 0).to(torch.uint8).argmax(0)]

    def _prompts(self, state: PassState) -> tuple[str, ...]:
        """Digests of the prompts of a pass; their numbers in the batch if they are not known."""
        known = state.tokens.prompts if state.tokens is not None else ()
        return known or tuple(map(str, range(state.n_samples)))


def _addresses(
    state: PassState, positions: Int[Tensor, "position"]
) -> tuple[Int[Tensor, "sample position"], Int[Tensor, "sample position"]]:
    """Role of some positions, and their distance from the last position of that role.

    Positions of an answer, generated or appended, count as the prompt's last one.
    """
    if state.tokens is None:
        raise ValueError("activations by role need a token map, and these inputs have none: use model.prepare.")
    role = state.tokens.role.cpu().long()
    last = state.tokens.last.cpu().to(torch.uint8).argmax(1)
    in_prompt = positions.clamp(max=state.n_prompt - 1)
    of_answer = (positions >= state.n_prompt) | (role[:, in_prompt] == Role.ANSWER)
    index = torch.where(of_answer, last[:, None], in_prompt)
    return role.gather(1, index), _distances(role).gather(1, index)


def _distances(role: Int[Tensor, "batch position"]) -> Int[Tensor, "batch position"]:
    """Number of later positions of the same role."""
    so_far = one_hot(role, len(Role)).flip(1).cumsum(1).flip(1)
    return so_far.gather(-1, role[..., None])[..., 0] - 1


@torch.no_grad()
def mean_activations(
    model: HookedMLLM,
    samples: Iterable[Sample],
    point: Point = "z",
    by_role: bool = False,
    batch_size: int = 16,
    positions: PositionName | None = None,
) -> ReferenceActivations:
    """Average every head's activations in float32 over the positions of all samples that are not padding.

    Heads do something else at pictures, of which most positions are, than at a question. Where only some positions are
    replaced, means of these, or by role, are what is usual there.

    Args:
        model: The model.
        samples: The sample set.
        point: Head outputs before (`z`) or after a gate (`o_in`), or queries (`q`).
        by_role: True to average the positions of each `Role` by themselves.
        batch_size: Samples per pass; for queries it is one.
        positions: The positions to average, such as those that are replaced; None for all.

    Raises:
        ValueError: If no sample has such positions, or the model no such hook point.
    """
    if positions is not None:
        check_choice("positions", positions, PositionName)
    sums: dict[str, Tensor] = {}
    counts = torch.zeros(len(Role) if by_role else 1, device=model.device)

    def begin(tokens: TokenMap) -> Callable[..., None]:
        weights = _role_weights(tokens, by_role)
        if positions is not None:
            weights = weights * getattr(tokens, positions)[..., None]
        counts.add_(weights.sum((0, 1)))

        def add(z: Tensor, hook: Any) -> None:
            total = einsum(weights.to(z.device), z.float(), "batch position role, batch position head d -> role head d")
            sums[hook.name] = sums.get(hook.name, 0) + total

        return add

    _measure(model, samples, point, batch_size, begin)
    if not counts.any():
        raise ValueError(f"positions={positions!r}: no sample has any, so there is nothing to average.")
    values = {name: total / counts[:, None, None].to(total) for name, total in sums.items()}
    rows = torch.where(counts.cpu() > 0, torch.arange(len(counts)), -1)
    return ReferenceActivations(values, rows[None, :, None], point, "mean_activations")


@torch.no_grad()
def resample_activations(
    model: HookedMLLM, samples: Iterable[Sample], point: Point = "z", batch_size: int = 16, seed: int = 0
) -> ReferenceActivations:
    """Keep every head's activations on each sample, to replace those of other samples at corresponding positions.

    Positions correspond that have one role and as many later positions of that role. Each prompt is given those of one
    sample, drawn for it, and never its own; another seed draws others. Of a larger set, 100 random samples are kept
    (`N_DONORS`); of each role the last 64 positions (`N_KEPT`), which are used in turn for earlier ones.

    Args:
        model: The model.
        samples: The sample set.
        point: As for `mean_activations`.
        batch_size: Samples per pass; for queries it is one.
        seed: Seed of the choice among samples.
    """
    listed = list(samples)
    order = torch.randperm(len(listed), generator=torch.Generator().manual_seed(seed))
    donors = [listed[number] for number in order[:N_DONORS].sort().values.tolist()]
    kept_values: dict[str, list[Tensor]] = {}
    rows: list[Tensor] = []
    prompts: list[str] = []
    n_rows = 0

    def begin(tokens: TokenMap) -> Callable[..., None]:
        nonlocal n_rows
        role = tokens.role.cpu().long()
        distance = _distances(role)
        kept = (distance < N_KEPT) & (role != Role.PADDING)
        sample, _ = kept.nonzero(as_tuple=True)
        of_batch = torch.full((len(role), len(Role), N_KEPT), -1)
        of_batch[sample, role[kept], distance[kept]] = n_rows + torch.arange(len(sample))
        rows.append(of_batch)
        prompts.extend(tokens.prompts)
        n_rows += len(sample)

        def keep(z: Tensor, hook: Any) -> None:
            kept_values.setdefault(hook.name, []).append(z[kept.to(z.device)].cpu())

        return keep

    _measure(model, donors, point, batch_size, begin)
    values = {name: torch.cat(batches) for name, batches in kept_values.items()}
    return ReferenceActivations(values, torch.cat(rows), point, "resample_activations", tuple(prompts), seed)


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
        function = in_float32(begin(inputs.tokens))
        with model.hooks(fwd_hooks=[(name, function) for name in names]):
            model(inputs)


def _role_weights(tokens: TokenMap, by_role: bool) -> Float[Tensor, "batch position role"]:
    """One at the role of each position that is not padding, else zero; a single role if positions are pooled."""
    mask = ~tokens.padding[..., None]
    return (one_hot(tokens.role.long(), len(Role)) * mask if by_role else mask).float()
