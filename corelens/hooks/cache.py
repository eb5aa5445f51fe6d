"""MLLMCache: TransformerLens's ActivationCache, right for Hugging Face layers.

Three things differ from the models that TransformerLens's own reads. Norms are not folded into weights, so what is
normed is multiplied by the norm's gain; a gate may stand between `z` and `W_O`; and layers may lack heads or neurons.
"""

from typing import Any, NoReturn

from einops import einsum
from torch import Tensor
from transformer_lens import ActivationCache
from transformer_lens.utilities.components_utils import get_act_name

from corelens.errors import docs_link
from corelens.hf.layers import DecoderLayer
from corelens.hooks.stacked_weights import StackedWeights


class MLLMCache(ActivationCache):
    """Activations of a pass by name, `cache["pattern", 3]`, with TransformerLens's functions of a cache."""

    model: Any

    def __getitem__(self, key: Any) -> Tensor:
        try:
            return super().__getitem__(key)
        except KeyError:
            name = self._name(key)
            try:
                self._hooked.check_hook_name(name)
            except ValueError as reason:
                raise KeyError(str(reason)) from None
            raise KeyError(f"{name} is not in the cache: its pass had a names_filter that left it out.") from None

    def apply_slice_to_batch_dim(self, batch_slice: Any) -> "MLLMCache":
        """The same cache for some samples; see TransformerLens."""
        sliced = super().apply_slice_to_batch_dim(batch_slice)
        return MLLMCache(sliced.cache_dict, self.model, sliced.has_batch_dim)

    def apply_ln_to_stack(
        self, residual_stack: Tensor, layer: int | None = None, mlp_input: bool = False, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Apply a norm with the scale of the whole stream to parts of it; see TransformerLens.

        Unlike there, no norm is folded into the weights behind it, so its gain acts here. Its bias is no part's.
        """
        stack = super().apply_ln_to_stack(residual_stack, layer, mlp_input, *args, **kwargs)
        # With statistics of each part, TransformerLens calls the norm itself.
        recomputed = kwargs.get("recompute_ln", len(args) > 3 and args[3]) and self._is_final(layer)
        return stack if recomputed else stack * self._gain(layer, mlp_input).to(stack)

    def stack_neuron_results(
        self,
        layer: int,
        *args: Any,
        apply_ln: bool = False,
        project_output_onto: Tensor | None = None,
        mlp_input: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Stack what each neuron writes to the stream; see TransformerLens.

        Args:
            layer: Neurons of the layers before it.
            args: TransformerLens's `pos_slice`, `neuron_slice`, `return_labels` and `incl_remainder`.
            apply_ln: Apply the norm of what `layer` reads, its gain included.
            project_output_onto: Directions, [d_model] or [d_model some].
            mlp_input: The norm is that before the layer's MLP.
            kwargs: The same as `args`, by name.
        """
        for number in range(len(self._hooked.blocks) if layer in (None, -1) else layer):
            self._check_neurons(number)
        if apply_ln and project_output_onto is not None:
            # TransformerLens norms and projects at once.
            gain = self._gain(layer, mlp_input).to(project_output_onto)
            project_output_onto = project_output_onto * (gain if project_output_onto.ndim == 1 else gain[:, None])
        return super().stack_neuron_results(
            layer, *args, apply_ln=apply_ln, project_output_onto=project_output_onto, mlp_input=mlp_input, **kwargs
        )

    def get_neuron_results(self, layer: int, *args: Any, **kwargs: Any) -> Tensor:
        """Compute what each neuron of a layer writes; see TransformerLens.

        Raises:
            ValueError: If the layer has no neurons that are known: it is a mixture of experts, say.
        """
        self._check_neurons(layer)
        return super().get_neuron_results(layer, *args, **kwargs)

    def compute_head_results(self) -> None:
        """Compute what each head writes, `cache["result", layer]`, behind a gate where there is one.

        Raises:
            ValueError: If layers have no heads, or different numbers of them.
        """
        self._compute_gated_results()
        super().compute_head_results()

    def stack_head_results(self, *args: Any, **kwargs: Any) -> Any:
        """Stack what each head writes to the stream, before any norm behind `W_O`; see TransformerLens.

        Raises:
            ValueError: If layers have no heads, or different numbers of them.
        """
        self._compute_gated_results()
        return super().stack_head_results(*args, **kwargs)

    def get_full_resid_decomposition(self, *args: Any, **kwargs: Any) -> Any:
        """All heads, neurons, biases and the embedding, which add up to the stream; see TransformerLens.

        Raises:
            ValueError: If they would not add up, since a norm or a number stands behind heads or neurons.
        """
        for layer in self._hooked.hf_layers:
            if reason := _why_not_linear(layer):
                raise ValueError(
                    f"heads and neurons do not add up to the stream: {reason}. cache.decompose_resid() has what each "
                    f"layer adds. {docs_link('no-parts')}"
                )
        return super().get_full_resid_decomposition(*args, **kwargs)

    def ssm_layers(self, *_: Any, **__: Any) -> NoReturn:
        """Raise a ValueError: the state of recurrent layers is not seen."""
        raise ValueError(
            f"recurrent layers of Hugging Face models show no state and no attention: see the layers without heads in "
            f"model.hf_layers, and cache['resid_mid', layer]. {docs_link('no-parts')}"
        )

    def compute_ssm_state(self, *_: Any, **__: Any) -> NoReturn:
        """Raise a ValueError; see `ssm_layers`."""
        self.ssm_layers()

    def compute_ssm_effective_attention(self, *_: Any, **__: Any) -> NoReturn:
        """Raise a ValueError; see `ssm_layers`."""
        self.ssm_layers()

    @property
    def _hooked(self) -> StackedWeights:
        return self.model

    def _name(self, key: Any) -> str:
        if isinstance(key, str):
            return key if "." in key else get_act_name(key)
        point, layer, *kind = key
        return get_act_name(point, layer % len(self._hooked.blocks) if isinstance(layer, int) else layer, *kind)

    def _check_neurons(self, layer: int) -> None:
        hf_layer = self._hooked.hf_layers[layer]
        if hf_layer.mlp is None:
            raise ValueError(
                f"layer {layer} has no neuron results: {hf_layer.missing['mlp']}. What the whole MLP writes is "
                f"cache['mlp_out', {layer}]. {docs_link('no-parts')}"
            )

    def _is_final(self, layer: int | None) -> bool:
        return layer is None or layer in (-1, len(self._hooked.blocks))

    def _gain(self, layer: int | None, mlp_input: bool) -> Tensor:
        """Gain of the norm of what a layer reads, or of the one behind the last."""
        name = "ln_final" if self._is_final(layer) else f"blocks.{layer}.ln{2 if mlp_input else 1}"
        # Any: pyright sees no attributes of a module.
        norm: Any = self._hooked.get_submodule(name)
        return norm.weights.gain

    def _compute_gated_results(self) -> None:
        layers = self._hooked.hf_layers
        counts = {
            layer.layer: layer.attentions["attn"].n_heads if "attn" in layer.attentions else 0 for layer in layers
        }
        if len(set(counts.values())) > 1:
            headless = [layer.missing["attn"] for layer in layers if "attn" in layer.missing]
            reason = headless[0] if headless else f"layers have {sorted(set(counts.values()))} heads"
            raise ValueError(
                f"head results are no one stack: {reason}. Those of a layer are cache['z', layer] times its attn.W_O, "
                f"or cache['o_in', layer, 'attn'] where a gate is. {docs_link('no-parts')}"
            )
        for layer in layers:
            name = f"blocks.{layer.layer}.attn.hook_o_in"
            if name in self._hooked.hook_dict:
                w_o: Tensor = self._hooked.blocks[layer.layer].attn.W_O  # pyright: ignore
                result = einsum(self[name].to(w_o), w_o, "... head d_head, head d_head d_model -> ... head d_model")
                self.cache_dict[f"blocks.{layer.layer}.attn.hook_result"] = result


def _why_not_linear(layer: DecoderLayer) -> str:
    """Reason why what heads and neurons of a layer write is not what it adds to the stream; empty if it is."""
    for part in ("attn", "mlp"):
        if part in layer.missing:
            return layer.missing[part]
    if len(layer.attentions) > 1:
        return f"layer {layer.layer} attends to an encoder too"
    assert layer.mlp is not None  # else it were missing
    for point, module in (("attn_out", layer.attentions["attn"].module), ("mlp_out", layer.mlp.module)):
        if point in layer.missing:
            return layer.missing[point]
        if layer.points[point].module is not module:
            return (
                f"{type(layer.points[point].module).__name__} of layer {layer.layer} acts on what they write together"
            )
    return ""
