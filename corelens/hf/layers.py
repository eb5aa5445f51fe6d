"""Parts of a Hugging Face model at which hooks connect, as `corelens.hf.architecture` finds them."""

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn
from transformers import PreTrainedConfig

from corelens.hf.projections import inner_widths


@dataclass(frozen=True, eq=False)
class HeadRows:
    """Rows of a projection that make the queries, keys or values of each head."""

    owner: nn.Module
    """Module that holds the projection."""

    name: str
    """Name of the projection there."""

    n_heads: int
    first: int
    """First of these rows; fused projections hold those of queries, keys and values."""

    n_rows: int
    part: int = 0
    """Number of these rows among the parts of each head, where the projection also makes gates, say."""

    n_parts: int = 1

    @property
    def projection(self) -> nn.Module:
        """The projection, looked up anew each time, since adapters take its place."""
        return getattr(self.owner, self.name)

    def select(self, rows: Tensor) -> Tensor:
        """View of these rows of a weight or a bias, by head: [head d_head ...]."""
        rows = rows[self.first : self.first + self.n_rows]
        return rows.unflatten(0, (self.n_heads, self.n_parts, -1))[:, self.part]


@dataclass(frozen=True, eq=False)
class MLPModule:
    """Dense MLP of a decoder layer; its projections are looked up anew, since adapters take their places."""

    module: nn.Module
    w_in: str
    """Name of the projection of what an activation function reads or, beside a gate, of what that multiplies."""

    w_out: str
    w_gate: str = ""
    """Name of the gate's projection, which the activation function reads; empty if there is none."""

    fused: bool = False
    """True if one projection holds the gate's rows and those of `w_in` after them."""

    def projection(self, name: str) -> nn.Module:
        """Projection of that name."""
        return getattr(self.module, name)

    @property
    def d_mlp(self) -> int:
        """Number of neurons."""
        return (inner_widths(self.projection(self.w_out)) or (0, 0))[0]


@dataclass(frozen=True, eq=False)
class ExpertsModule:
    """Mixture of experts of a decoder layer."""

    module: nn.Module
    """Module that calls the routers."""

    router: nn.Module
    """Module that chooses experts for each token."""

    visual_router: nn.Module | None = None
    """Module that chooses experts for visual tokens, where these have their own; `router` then serves the others."""

    @property
    def routers(self) -> list[nn.Module]:
        """All that choose experts."""
        return [self.router] if self.visual_router is None else [self.router, self.visual_router]


@dataclass(frozen=True, eq=False)
class AttentionModule:
    """Attention module that calls one of transformers' attention functions."""

    module: nn.Module
    n_heads: int

    is_cross_attention: bool = False
    """True if its keys are not positions of the sequence."""

    w_o_owner: nn.Module | None = None
    """Module that holds W_O; None if it was not found."""

    w_o_name: str = ""
    """Name of W_O there."""

    gated: bool = False
    """True if a gate or a norm acts on the head outputs before W_O."""

    mixing_norm: str = ""
    """Name of a norm over all heads together before W_O; empty if there is none."""

    packed: bool = False
    """True if one sequence holds several pictures or windows, and attention stays within each."""

    head_rows: dict[Literal["q", "k", "v"], HeadRows] = field(default_factory=dict)
    """Rows that make queries, keys and values; empty if they are not known."""

    no_head_rows: str = ""
    """Reason why they are not known."""

    norms: dict[Literal["q", "k", "v"], nn.Module] = field(default_factory=dict)
    """Norms of queries, keys and values, behind these rows."""

    @property
    def config(self) -> PreTrainedConfig:
        """Configuration that names the function; layers share it."""
        # Any: set at run time.
        module: Any = self.module
        return module.config

    @property
    def w_o(self) -> nn.Module | None:
        """Projection of the concatenated head outputs to the residual stream; None if not found.

        Looked up anew each time, since adapters take its place.
        """
        return None if self.w_o_owner is None else getattr(self.w_o_owner, self.w_o_name)

    @property
    def n_kv_heads(self) -> int:
        """Number of key-value heads, which its query heads share."""
        return self.n_heads // getattr(self.module, "num_key_value_groups", 1)

    @property
    def d_head(self) -> int:
        """Width of one head's output; zero if W_O was not found."""
        return self._widths[0] // self.n_heads

    @property
    def d_model(self) -> int:
        """Width of the residual stream; zero if W_O was not found."""
        return self._widths[1]

    @property
    def _widths(self) -> tuple[int, int]:
        return (0, 0) if self.w_o is None else inner_widths(self.w_o) or (0, 0)


@dataclass(frozen=True)
class HookLocation:
    """Place where a hook point of the residual stream connects."""

    module: nn.Module
    side: Literal["input", "input in place", "output"]


@dataclass(frozen=True)
class DecoderLayer:
    """One decoder layer, its attention modules and its hook points."""

    layer: int
    """Absolute number of the layer, from zero."""

    stack: nn.Module
    """Module that runs the layers."""

    block: nn.Module
    attentions: dict[str, AttentionModule]
    """`attn`, the layer's self-attention or its only attention, and `cross_attn` beside it."""

    points: dict[str, HookLocation]
    """Location of each hook point that the layer has, e.g. of `resid_pre`."""

    missing: dict[str, str] = field(default_factory=dict)
    """Reason why the layer lacks a hook point, `attn` or `mlp`."""

    mlp: MLPModule | None = None
    """The layer's MLP; None if it has no neurons that are known."""

    experts: ExpertsModule | None = None
    """Experts of the layer, of which each token gets some; None if none are known."""

    norms: dict[Literal["ln1", "ln2"], nn.Module] = field(default_factory=dict)
    """Norms of what attention (`ln1`) and MLP (`ln2`) read from the residual stream."""
