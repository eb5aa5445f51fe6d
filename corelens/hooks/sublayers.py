"""Hook points of norms and of dense MLPs.

HookedNorm    ln_final.hook_scale    blocks.{layer}.{ln1,ln2}.hook_scale
HookedMLP     blocks.{layer}.mlp.hook_{pre,pre_linear,post}
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from corelens.hf.layers import MLPModule
from corelens.hf.norms import NormWeights, norm_weights
from corelens.hf.wrapped_modules import WrappedModules
from corelens.hooks.taps import call_hook_by_token, call_hook_detecting_edits
from corelens.hooks.threads import in_this_thread
from corelens.hooks.weights import MLPWeights


class HookedNorm(nn.Module):
    """Hook point of a norm of the residual stream: `hook_scale`, by which it divides, [batch position 1] in float32."""

    name: str
    """Its name in the model."""

    def __init__(self, norm: nn.Module, wrapped: WrappedModules) -> None:
        super().__init__()
        # Past nn.Module's registration: the norm is not ours to name.
        self.__dict__["hf_norm"] = norm
        self.wrapped, self.hook_scale = wrapped, HookPoint()

    @property
    def hf_norm(self) -> nn.Module:
        """The wrapped model's norm."""
        return self.__dict__["hf_norm"]

    def forward(self, stream: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_model"]:
        """Apply the wrapped model's norm."""
        return self.hf_norm(stream)

    @property
    def weights(self) -> NormWeights:
        """Its gain, bias and epsilon.

        Raises:
            ValueError: If it is neither a LayerNorm nor an RMSNorm.
            RuntimeError: If it is no longer part of the model.
        """
        self.wrapped.check_unchanged()
        widths = [parameter.shape[-1] for parameter in self.hf_norm.parameters()]
        d_model = widths[0] if widths else self.wrapped.hf_model.config.get_text_config(decoder=True).hidden_size
        return norm_weights(self.hf_norm, d_model, self.wrapped.hf_model.dtype, self.name)

    @property
    def w(self) -> Float[Tensor, "d_model"]:
        """Its gain, by which it multiplies: TransformerLens's weight of a norm."""
        return self.weights.gain

    @property
    def b(self) -> Float[Tensor, "d_model"]:
        """Its bias; zero if it has none."""
        return self.weights.bias

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Connect `hook_scale`, if it has hooks, until the block ends."""
        if not self.hook_scale.has_hooks():
            yield
            return
        weights = self.weights

        def call_hooks(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            scale = weights.scale(args[0])
            hooked, edited = call_hook_detecting_edits(self.hook_scale, scale)
            return ((output - weights.bias) * scale / hooked + weights.bias).to(output) if edited else output

        handle = self.hf_norm.register_forward_hook(in_this_thread(call_hooks))
        try:
            yield
        finally:
            handle.remove()


class HookedMLP(MLPWeights):
    """Hook points of a dense MLP, [batch position d_mlp].

    - `hook_pre`: the input of the activation function; beside a gate, of the gate's
    - `hook_pre_linear`: what the gate multiplies, where there is one
    - `hook_post`: activations of the neurons, as they meet `W_out`
    """

    def __init__(self, mlp: MLPModule, wrapped: WrappedModules) -> None:
        super().__init__()
        self.hf_mlp, self.wrapped = mlp, wrapped
        self.hook_pre, self.hook_post = HookPoint(), HookPoint()
        if mlp.w_gate:
            self.hook_pre_linear = HookPoint()

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Connect the hook points that have hooks until the block ends."""
        mlp, linear = self.hf_mlp, getattr(self, "hook_pre_linear", None)

        def call_on_halves(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            gate, read = output.chunk(2, -1)
            assert linear is not None  # fused projections are gated
            return torch.cat([call_hook_by_token(self.hook_pre, gate), call_hook_by_token(linear, read)], -1)

        with ExitStack() as connections:
            points = [(self.hook_pre, mlp.w_gate or mlp.w_in), *([(linear, mlp.w_in)] if linear is not None else [])]
            if mlp.fused and any(point.has_hooks() for point, _ in points):
                handle = mlp.projection(mlp.w_in).register_forward_hook(in_this_thread(call_on_halves))
                connections.callback(handle.remove)
                points = []
            for point, projection in points:
                if point.has_hooks():
                    handle = mlp.projection(projection).register_forward_hook(
                        in_this_thread(partial(_call_on_output, point))
                    )
                    connections.callback(handle.remove)
            if self.hook_post.has_hooks():
                handle = mlp.projection(mlp.w_out).register_forward_pre_hook(
                    in_this_thread(partial(_call_on_input, self.hook_post))
                )
                connections.callback(handle.remove)
            yield


def _call_on_output(point: HookPoint, module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return call_hook_by_token(point, output)


def _call_on_input(point: HookPoint, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (call_hook_by_token(point, args[0]), *args[1:])
