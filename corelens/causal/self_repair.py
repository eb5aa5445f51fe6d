"""Direct effect, total effect and self-repair: what an intervention on heads takes, and what later parts make up."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from corelens.causal.logit_direction import LogitDirection, at_last_position
from corelens.causal.stream_parts import names_of_parts, stream_parts
from corelens.heads import Head, HeadSet
from corelens.inputs.prepare import PreparedInputs
from corelens.interventions import FwdHooks
from corelens.model import HookedMLLM

LAST_NORM = "last norm"
"""Name of the change by the last norm, which divides by another scale."""


@dataclass(frozen=True, eq=False)
class SelfRepair:
    """Change of the answer's logit under an intervention, divided among what changed."""

    changes: Float[Tensor, "sample part"]
    """Change of what each part adds to the logit; they sum to `total`."""

    parts: tuple[str, ...]
    """`L3H2`, `L3 MLP` and so on, in the order of the model, and `last norm`."""

    heads: tuple[Head, ...]
    """The heads on which the intervention acts."""

    @property
    def direct(self) -> Float[Tensor, "sample"]:
        """Change by the heads themselves: as if nothing read what they write but the last norm, and its scale held."""
        own = {str(head) for head in self.heads}
        return self.changes[:, [part in own for part in self.parts]].sum(-1)

    @property
    def total(self) -> Float[Tensor, "sample"]:
        """Change of the logit."""
        return self.changes.sum(-1)

    @property
    def made_up(self) -> Float[Tensor, "sample"]:
        """Change by all else: of the other sign than `direct` where the model repairs itself, of the same sign where
        later parts had amplified the heads."""
        return self.total - self.direct

    def table(self, n: int = 10) -> list[dict[str, Any]]:
        """The `n` parts that make up most of the mean direct effect, as rows with `part` and `change`."""
        own = {str(head) for head in self.heads}
        sign = -1.0 if self.direct.mean() > 0 else 1.0
        means = zip(self.parts, self.changes.mean(0).tolist(), strict=True)
        others = [{"part": part, "change": change} for part, change in means if part not in own]
        return sorted(others, key=lambda row: -sign * row["change"])[:n]

    def backup_heads(self, n: int = 10) -> HeadSet:
        """The heads among the parts that make up most of the mean direct effect, most first; at most `n`."""
        sign = -1.0 if self.direct.mean() > 0 else 1.0
        names = [row["part"] for row in self.table(len(self.parts)) if sign * row["change"] > 0]
        heads = [Head.parse(name) for name in names if " " not in name and "H" in name]
        return HeadSet(tuple(heads[:n]), f"backup of {', '.join(map(str, self.heads))}")


@torch.no_grad()
def self_repair(
    model: HookedMLLM, inputs: PreparedInputs, fwd_hooks: FwdHooks, others: Int[Tensor, "sample"] | None = None
) -> SelfRepair:
    r"""Divide the effect of an intervention on heads into their direct effect and what other parts make up.

    $$\Delta = \sum_p u \cdot (x'_p - x_p) + \Big(\frac{1}{s'} - \frac{1}{s}\Big)\, s\, u \cdot x'$$

    $x_p$ is what part $p$ adds to the residual stream at the prompt's last position, without and with ($'$) the
    intervention; $u$ is the direction that raises the logit of the answer's first token, with the last norm at the
    scale $s$ that it has without the intervention. The last term is what that norm's other scale makes of it. The logit
    is that before a factor or a soft cap.

    Args:
        model: The model.
        inputs: Prompts with answers appended.
        fwd_hooks: An intervention on heads, such as `ablate(heads)`.
        others: Tokens whose logit is taken off the answer's, one for each sample; None for the logit itself.

    Raises:
        ValueError: If a prompt has no answer, the hooks name no heads, or the insides of a layer of such a head are not
            known, so that the head is no part of its own.

    Source:
        McGrath et al. 2023, "The Hydra effect: emergent self-repair in language model computations"; that the last norm
        repairs, too, is from Rushing and Nanda 2024, "Explorations of self-repair in language models".
    """
    heads = HeadSet(tuple(dict.fromkeys(head for _, hook in fwd_hooks for head in getattr(hook, "heads", ()))))
    if not len(heads):
        raise ValueError("these hooks name no heads: give an intervention on heads, such as ablate(heads).")
    model.check_heads(heads)
    _check_known(
        heads, [head for head in heads if {"attn_out", "mlp_out"} <= model.hf_layers[head.layer].points.keys()]
    )
    clean, stream = _parts_at_last(model, inputs, [])
    _check_known(heads, [head for head in heads if str(head) in clean])
    direction = LogitDirection.of(model, inputs, stream, others)
    changed, changed_stream = _parts_at_last(model, inputs, fwd_hooks)
    u = direction.vector
    nothing = torch.zeros_like(u)
    changes = {
        name: ((changed.get(name, nothing).to(u) - clean.get(name, nothing).to(u)) * u).sum(-1)
        for name in clean | changed
    }
    new = LogitDirection.of(model, inputs, changed_stream, others).vector
    changes[LAST_NORM] = (at_last_position(inputs, changed_stream).to(u) * (new - u)).sum(-1)
    return SelfRepair(torch.stack([*changes.values()], -1), tuple(changes), heads.heads)


def _check_known(heads: HeadSet, known: list[Head]) -> None:
    """Raise a ValueError if some heads are no parts of their own."""
    if unknown := [head for head in heads if head not in known]:
        raise ValueError(
            f"what {unknown[0]} adds to the residual stream is not known, and all of its layer is one part: it has no "
            f"direct effect of its own here."
        )


def _parts_at_last(
    model: HookedMLLM, inputs: PreparedInputs, fwd_hooks: FwdHooks
) -> tuple[dict[str, Float[Tensor, "sample d_model"]], Float[Tensor, "sample position d_model"]]:
    """Output of each part at the prompt's last position, and the stream behind the last layer."""
    n_layers = len(model.hf_layers)
    names = names_of_parts(model, n_layers)
    with model.hooks(fwd_hooks=fwd_hooks):
        _, cache = model.run_with_cache(inputs, names_filter=names)
    at_last = {name: at_last_position(inputs, cache[name])[:, None] for name in names}
    parts = {name: value[:, 0] for name, value in stream_parts(model, at_last, n_layers)}
    return parts, cache[names[0]]
