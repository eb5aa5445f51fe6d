"""Weights of heads and neurons under TransformerLens's names: views of the model's own where these are what acts.

    model.blocks[3].attn.W_Q        [head d_model d_head]     model.W_Q    [layer head d_model d_head]
    model.blocks[3].attn.W_K        [kv_head d_model d_head]  model.QK     FactoredMatrix, by query head
    model.blocks[3].mlp.W_in        [d_model d_mlp]           model.W_in   [layer d_model d_mlp]

Nothing is folded in, and weights that a projection does not hold (adapters, quantised layers) are those by which it
acts: see `corelens.hf.projections`. Weights of all layers are stacked where they are read: see `layer_stack`.
"""

from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens import FactoredMatrix

from corelens.errors import docs_link
from corelens.hf.layers import AttentionModule, HeadRows, MLPModule
from corelens.hf.norms import norm_weights
from corelens.hf.parts import Part
from corelens.hf.projections import device_of, effective_bias, effective_weight, inner_widths, stored_weight
from corelens.hf.wrapped_modules import WrappedModules


class AttentionWeights(nn.Module):
    """Weights of the heads of one attention module."""

    hf_attention: AttentionModule
    wrapped: WrappedModules
    name: str
    """Its name in the model."""

    @property
    def W_Q(self) -> Float[Tensor, "head d_model d_qk"]:
        """Matrix by which each head reads its query, before norms and rotation.

        Raises:
            ValueError: If the rows of each head are not known, or the projection acts by no matrix.
            RuntimeError: If the module is no longer part of the model.
        """
        return self._head_weight("q")

    @property
    def W_K(self) -> Float[Tensor, "kv_head d_model d_qk"]:
        """Matrix by which each key-value head reads its key; see `W_Q`."""
        return self._head_weight("k")

    @property
    def W_V(self) -> Float[Tensor, "kv_head d_model d_head"]:
        """Matrix by which each key-value head reads its value; see `W_Q`."""
        return self._head_weight("v")

    @property
    def b_Q(self) -> Float[Tensor, "head d_qk"]:
        """Bias of each head's query; zero if it has none."""
        return self._head_bias("q")

    @property
    def b_K(self) -> Float[Tensor, "kv_head d_qk"]:
        """Bias of each key-value head's key; zero if it has none."""
        return self._head_bias("k")

    @property
    def b_V(self) -> Float[Tensor, "kv_head d_head"]:
        """Bias of each key-value head's value; zero if it has none."""
        return self._head_bias("v")

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:
        """Matrix by which each head writes its output to the residual stream.

        A view of the model's weights where these are what acts. Elsewhere (adapters, parametrisations, weights that are
        quantised or offloaded) it is computed from what the projection does to unit vectors.

        Raises:
            ValueError: If the module's W_O was not found, or it acts by no matrix: it quantises what it reads, say.
            RuntimeError: If the module is no longer part of the model.
        """
        return self._by_head(effective_weight(self._w_o, self._d_in, self._dtype, self._called("W_O")))

    @property
    def b_O(self) -> Float[Tensor, "d_model"]:
        """Bias that attention adds to what its heads write; zero if it has none."""
        bias = effective_bias(self._w_o, self._d_in, self._dtype, self._called("W_O"))
        return _zeros(self._w_o, (self.hf_attention.d_model,), self._dtype) if bias is None else bias

    @property
    def stored_W_O(self) -> Float[Tensor, "head d_head d_model"]:
        """The same as `W_O`, as a view of the model's weights, so that changing it changes the model.

        Raises:
            ValueError: If W_O was not found, or is no matrix that the module holds.
            RuntimeError: If the module is no longer part of the model.
        """
        weight = stored_weight(self._w_o)
        if weight is None:
            raise ValueError(
                f"{self._called('W_O')} ({type(self._w_o).__name__}) is no matrix that it holds, so that "
                f"columns of it cannot be set to zero: it is adapted, parametrised, quantised or offloaded. "
                f"ablate(heads) does the same by hooks. {docs_link('no-matrix')}"
            )
        return self._by_head(weight)

    @property
    def OV(self) -> FactoredMatrix:
        """Map from the stream that a head attends to, to what it writes: [head d_model d_model].

        Raises:
            ValueError: If no one matrix is that map, since a gate or a norm stands between `W_V` and `W_O`.
        """
        if self.hf_attention.gated or "v" in self.hf_attention.norms:
            raise ValueError(
                f"{self._called('OV')} is no one matrix: a gate or a norm stands between W_V and W_O, and differs by "
                f"position. FactoredMatrix(W_V, W_O) of a layer leaves it out. {docs_link('no-circuit')}"
            )
        return FactoredMatrix(self.by_query_head(self.W_V), self.W_O)

    @property
    def QK(self) -> FactoredMatrix:
        """Bilinear form of query and key, [head d_model d_model], without rotation and without biases.

        Norms of queries and keys act by their gains; their scale differs by position, as that of the layer's norm does.

        Raises:
            ValueError: If such a norm is no RMSNorm.
        """
        factors = [self.by_query_head(self._with_gain(part, self._head_weight(part))) for part in ("q", "k")]
        return FactoredMatrix(factors[0], factors[1].mT)

    def by_query_head(self, weight: Float[Tensor, "some_heads *rest"]) -> Float[Tensor, "head *rest"]:
        """Repeat what belongs to key-value heads for the query heads that share each."""
        return weight.repeat_interleave(self.hf_attention.n_heads // len(weight), 0)

    def _head_weight(self, part: Part) -> Float[Tensor, "some_heads d_model d_part"]:
        rows, name = self._rows(part), self._called(f"W_{part.upper()}")
        d_in, _ = inner_widths(rows.projection) or (0, 0)
        return rows.select(effective_weight(rows.projection, d_in, self._dtype, name)).mT

    def _head_bias(self, part: Part) -> Float[Tensor, "some_heads d_part"]:
        rows, name = self._rows(part), self._called(f"b_{part.upper()}")
        d_in, d_out = inner_widths(rows.projection) or (0, 0)
        bias = effective_bias(rows.projection, d_in, self._dtype, name)
        return rows.select(_zeros(rows.projection, (d_out,), self._dtype) if bias is None else bias)

    def _rows(self, part: Part) -> HeadRows:
        self.wrapped.check_unchanged()
        if not self.hf_attention.head_rows:
            raise ValueError(
                f"{self._called(f'W_{part.upper()}')} is not known: {self.hf_attention.no_head_rows}. Hooks on q, k "
                f"and v act on what attention gets. {docs_link('no-circuit')}"
            )
        return self.hf_attention.head_rows[part]

    def _with_gain(
        self, part: Literal["q", "k"], weight: Float[Tensor, "some_heads d_model d_qk"]
    ) -> Float[Tensor, "some_heads d_model d_qk"]:
        """Weights times the gain of the norm behind them, if there is one."""
        if (norm := self.hf_attention.norms.get(part)) is None:
            return weight
        d_qk = weight.shape[-1]
        gains, name = next(norm.parameters(), torch.ones(d_qk)), self._called(f"norm behind W_{part.upper()}")
        # Gains of two axes are Chameleon's, whose LayerNorm has one for each head.
        weights = norm_weights(norm, len(gains), self._dtype, name) if gains.ndim == 1 else None
        if weights is None or weights.centred or weights.bias.any():
            raise ValueError(
                f"{self._called('QK')} is no one matrix: {type(norm).__name__} takes the mean off queries or keys, or "
                f"adds a bias. FactoredMatrix(W_Q, W_K.mT) of a layer leaves it out. {docs_link('no-circuit')}"
            )
        return weight * weights.gain.view(-1, 1, d_qk).to(weight)

    @property
    def _w_o(self) -> nn.Module:
        self.wrapped.check_unchanged()
        w_o = self.hf_attention.w_o
        if w_o is None:
            raise ValueError(f"where {type(self.hf_attention.module).__name__} keeps its W_O is not known.")
        return w_o

    @property
    def _d_in(self) -> int:
        return self.hf_attention.n_heads * self.hf_attention.d_head

    @property
    def _dtype(self) -> torch.dtype:
        return self.wrapped.hf_model.dtype

    def _called(self, weight: str) -> str:
        return f"the {weight} of {self.name}"

    def _by_head(self, weight: Float[Tensor, "d_model d_in"]) -> Float[Tensor, "head d_head d_model"]:
        return rearrange(weight, "d_model (head d_head) -> head d_head d_model", head=self.hf_attention.n_heads)


class MLPWeights(nn.Module):
    """Weights of the neurons of one dense MLP."""

    hf_mlp: MLPModule
    wrapped: WrappedModules
    name: str
    """Its name in the model."""

    @property
    def W_in(self) -> Float[Tensor, "d_model d_mlp"]:
        """Matrix by which neurons read; beside a gate, what the gate multiplies.

        Raises:
            ValueError: If the projection acts by no matrix.
            RuntimeError: If the module is no longer part of the model.
        """
        return self._neuron_rows(self._weight(self.hf_mlp.w_in), "in").mT

    @property
    def W_gate(self) -> Float[Tensor, "d_model d_mlp"]:
        """Matrix by which the gates of neurons read, which go through the activation function.

        Raises:
            ValueError: If the MLP has no gate, or the projection acts by no matrix.
            RuntimeError: If the module is no longer part of the model.
        """
        if not self.hf_mlp.w_gate:
            raise ValueError(f"{type(self.hf_mlp.module).__name__} of {self.name} has no gate: see W_in.")
        return self._neuron_rows(self._weight(self.hf_mlp.w_gate), "gate").mT

    @property
    def W_out(self) -> Float[Tensor, "d_mlp d_model"]:
        """Matrix by which neurons write."""
        return self._weight(self.hf_mlp.w_out).mT

    @property
    def b_in(self) -> Float[Tensor, "d_mlp"]:
        """Bias of what neurons read; zero if there is none."""
        return self._neuron_rows(self._bias(self.hf_mlp.w_in), "in")

    @property
    def b_out(self) -> Float[Tensor, "d_model"]:
        """Bias that the MLP adds to what its neurons write; zero if there is none."""
        return self._bias(self.hf_mlp.w_out)

    def _neuron_rows(self, rows: Tensor, part: Literal["gate", "in"]) -> Tensor:
        if not self.hf_mlp.fused:
            return rows
        gate, read = rows.chunk(2)
        return gate if part == "gate" else read

    def _weight(self, name: str) -> Float[Tensor, "out d_in"]:
        self.wrapped.check_unchanged()
        projection = self.hf_mlp.projection(name)
        d_in, _ = inner_widths(projection) or (0, 0)
        return effective_weight(projection, d_in, self.wrapped.hf_model.dtype, f"{name} of {self.name}")

    def _bias(self, name: str) -> Float[Tensor, "out"]:
        self.wrapped.check_unchanged()
        projection, dtype = self.hf_mlp.projection(name), self.wrapped.hf_model.dtype
        d_in, d_out = inner_widths(projection) or (0, 0)
        bias = effective_bias(projection, d_in, dtype, f"{name} of {self.name}")
        return _zeros(projection, (d_out,), dtype) if bias is None else bias


def _zeros(module: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.zeros(1, dtype=dtype, device=device_of(module)).expand(shape)
