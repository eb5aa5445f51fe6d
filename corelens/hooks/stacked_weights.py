"""StackedWeights: the weights of a wrapped model under TransformerLens's names, of all layers at once."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens import FactoredMatrix
from transformer_lens.utilities.matrix import composition_scores

from corelens.errors import check_choice
from corelens.hf.config import HookedMLLMConfig
from corelens.hf.projections import effective_bias, effective_weight
from corelens.hooks.experts import HookedExperts
from corelens.hooks.layer_stack import LayerStack
from corelens.hooks.named_weights import NamedWeights, block_weights, norm_weights_of
from corelens.hooks.root import HookedLayers
from corelens.hooks.sublayers import HookedMLP

Composition = Literal["Q", "K", "V"]


def _of_layers(submodule: str, weight: str, axes: str) -> Any:
    """Property for one weight of all layers that have it."""

    def read(model: "StackedWeights") -> LayerStack:
        return model.stack(submodule, weight)

    read.__doc__ = f"`{weight}` of all layers, [layer {axes}]; see `stack`."
    return property(read)


class StackedWeights(HookedLayers):
    """Weights of a wrapped model under TransformerLens's names; `model.blocks[layer]` has them by layer.

    Nothing is folded into them.
    """

    cfg: HookedMLLMConfig
    to_single_token: Callable[[str], int]

    W_Q = _of_layers("attn", "W_Q", "head d_model d_qk")
    W_K = _of_layers("attn", "W_K", "kv_head d_model d_qk")
    W_V = _of_layers("attn", "W_V", "kv_head d_model d_head")
    W_O = _of_layers("attn", "W_O", "head d_head d_model")
    b_Q = _of_layers("attn", "b_Q", "head d_qk")
    b_K = _of_layers("attn", "b_K", "kv_head d_qk")
    b_V = _of_layers("attn", "b_V", "kv_head d_head")
    b_O = _of_layers("attn", "b_O", "d_model")
    W_in = _of_layers("mlp", "W_in", "d_model d_mlp")
    W_out = _of_layers("mlp", "W_out", "d_mlp d_model")
    b_in = _of_layers("mlp", "b_in", "d_mlp")
    b_out = _of_layers("mlp", "b_out", "d_model")

    @property
    def W_gate(self) -> LayerStack | None:
        """`W_gate` of all layers, [layer d_model d_mlp]; None if MLPs have no gates."""
        return self.stack("mlp", "W_gate") if self.cfg.gated_mlp else None

    def stack(self, submodule: str, weight: str) -> LayerStack:
        """Weights of all layers that have a submodule, in order: `stack("attn", "W_Q")`.

        Layers are read where they are indexed, and stacked where a tensor is needed. `.layers` has their numbers.

        Raises:
            ValueError: If no layer has the submodule.

        Warns:
            UserWarning: If some layers lack it, so that an index of the stack is no number of a layer.
        """
        layers = [layer for layer, _ in self.blocks_with(submodule)]
        if not layers:
            reason = self.hf_layers[0].missing.get(submodule, "no layer has such a part")
            raise ValueError(f"there is no {weight} of {submodule}: {reason}.")
        if len(layers) < len(self.blocks):
            warnings.warn(
                f"{weight} is that of layers {', '.join(map(str, layers))}, in this order, since the others have no "
                f"{submodule}: index 0 is layer {layers[0]}. See its `.layers`, or model.blocks[layer].{submodule}.",
                stacklevel=3,
            )
        return self._stack_of(layers, submodule, lambda part: getattr(part, weight))

    def blocks_with(self, submodule: str) -> list[tuple[int, nn.Module]]:
        """Numbers of the layers that have a submodule, such as `attn` or a dense `mlp`, and their hook points."""
        return [
            (layer, block)
            for layer, block in enumerate(self.blocks)
            if submodule in block._modules and not isinstance(block._modules[submodule], HookedExperts)
        ]

    def stack_params_for(
        self, submodule: str, attr_path: str, reshape_fn: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[list[int], Tensor]:
        """Numbers of the layers that have a submodule, and a weight of theirs: `("attn", "attn.W_Q")`."""
        layers, weight = [layer for layer, _ in self.blocks_with(submodule)], attr_path.removeprefix(f"{submodule}.")
        stacked = self._stack_of(layers, submodule, lambda part: getattr(part, weight)).tensor()
        return layers, stacked if reshape_fn is None else torch.stack([reshape_fn(one) for one in stacked])

    @property
    def QK(self) -> FactoredMatrix:
        """Bilinear forms of queries and keys, [layer head d_model d_model], of layers that have heads; see `stack`."""
        return self._circuit("QK", self.stack("attn", "W_Q").layers)

    @property
    def OV(self) -> FactoredMatrix:
        """Maps of the heads from what they attend to, to what they write: [layer head d_model d_model]; see `QK`."""
        return self._circuit("OV", self.stack("attn", "W_O").layers)

    def QK_for_attn_layers(self) -> tuple[list[int], FactoredMatrix]:
        """Numbers of the layers that have heads, and their `QK`."""
        layers = self.composition_layer_indices()
        return layers, self._circuit("QK", layers)

    def OV_for_attn_layers(self) -> tuple[list[int], FactoredMatrix]:
        """Numbers of the layers that have heads, and their `OV`."""
        layers = self.composition_layer_indices()
        return layers, self._circuit("OV", layers)

    def all_composition_scores(self, mode: Composition) -> Any:
        """Composition scores of all pairs of heads, [layer head layer head]; zero if the first is in no earlier layer.

        Args:
            mode: Whether the first head's output composes with the second's query, key or value.

        Returns:
            TransformerLens's CompositionScores: a tensor with `layer_indices` and `head_labels`.
        """
        # Slow to import, and needed here alone.
        from transformer_lens.model_bridge.composition_scores import CompositionScores

        check_choice("mode", mode, Composition)
        layers = self.composition_layer_indices()
        left = self._circuit("OV", layers)
        right = left if mode == "V" else self._circuit("QK", layers)
        scores = composition_scores(left, right.T if mode == "K" else right)
        at = torch.arange(len(layers), device=scores.device)
        earlier = at[:, None, None, None] < at[None, None, :, None]
        return CompositionScores(scores * earlier, layers, self.attn_head_labels)

    def composition_layer_indices(self) -> list[int]:
        """Numbers of the layers that have heads, the axis of composition scores."""
        return [layer for layer, _ in self.blocks_with("attn")]

    @property
    def all_head_labels(self) -> list[str]:
        """Names of all heads: L0H0, L0H1 and so on."""
        layers = (layer for layer in self.hf_layers if "attn" in layer.attentions)
        return [f"L{layer.layer}H{head}" for layer in layers for head in range(layer.attentions["attn"].n_heads)]

    @property
    def attn_head_labels(self) -> list[str]:
        """The same as `all_head_labels`, which names no heads of layers that have none."""
        return self.all_head_labels

    def block_hooks(self, layer_idx: int) -> list[str]:
        """Names of a layer's hook points, without that of the layer."""
        prefix = f"blocks.{layer_idx}."
        return sorted(name.removeprefix(prefix) for name in self.hook_dict if name.startswith(prefix))

    def block_submodules(self, layer_idx: int) -> list[str]:
        """Names of the parts of a layer that have hook points: attention, norms and a dense MLP."""
        return sorted(name for name in self.blocks[layer_idx]._modules if not name.startswith("hook_"))

    def layer_types(self) -> list[str]:
        """Parts of each layer, without its norms: `attn+mlp`."""
        parts = (
            [name for name in self.block_submodules(layer) if name[:2] != "ln"] for layer in range(len(self.blocks))
        )
        return ["+".join(names) or "unknown" for names in parts]

    @property
    def W_E(self) -> Float[Tensor, "vocabulary d_model"]:
        """Embedding of each token as the first layer reads it, scaled where the model scales it."""
        embedding: Any = self.hf_model.get_input_embeddings()
        if type(embedding).forward is nn.Embedding.forward:
            return embedding.weight
        return embedding(torch.arange(embedding.num_embeddings, device=self.hf_model.device))

    @property
    def unembed(self) -> nn.Module | None:
        """Module from the normed residual stream to logits; None if the model has no such module."""
        return self.hf_model.get_output_embeddings()

    @property
    def W_U(self) -> Float[Tensor, "d_model vocabulary"]:
        """Unembedding matrix: each column is the direction that raises the logit of a token.

        Raises:
            ValueError: If the model has no such matrix.
        """
        return effective_weight(*self._unembedding).T

    @property
    def b_U(self) -> Float[Tensor, "#vocabulary"]:
        """Biases of the unembedding; a single zero if it has none."""
        bias = effective_bias(*self._unembedding)
        return torch.zeros(1, dtype=self.hf_model.dtype, device=self.hf_model.device) if bias is None else bias

    @property
    def _unembedding(self) -> tuple[nn.Module, int, torch.dtype, str]:
        if self.unembed is None:
            raise ValueError(f"{type(self.hf_model).__name__} has no unembedding, so no token has a direction.")
        return self.unembed, self.hf_model.config.get_text_config().hidden_size, self.hf_model.dtype, "the unembedding"

    def tokens_to_residual_directions(
        self, tokens: str | int | Int[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch d_model"]:
        """Directions of the normed stream that raise the logits of tokens: columns of `W_U`.

        Args:
            tokens: Ids, or one token as text.
        """
        index: Any = self.to_single_token(tokens) if isinstance(tokens, str) else tokens
        return self.W_U.T[index]

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Float[Tensor, "d_model"]:
        """Sum of the biases that attention and MLPs add to the stream before a layer.

        Args:
            layer: The layer; the number of layers for all.
            mlp_input: Add that of the layer's own attention.
            include_mlp_biases: Add those of MLPs.
        """
        total = torch.zeros(self.hf_model.config.get_text_config().hidden_size, device=self.hf_model.device)
        for number, block in enumerate(self._blocks[: layer + mlp_input]):
            modules: Any = block
            if "attn" in block._modules:
                total = total + modules.attn.b_O.to(total.device)
            if isinstance(block._modules.get("mlp"), HookedMLP) and include_mlp_biases and number < layer:
                total = total + modules.mlp.b_out.to(total.device)
        return total

    def tl_parameters(self) -> NamedWeights:
        """Weights by TransformerLens's names, such as `blocks.0.attn.W_Q`, each read when it is looked up.

        As TransformerLens has them, keys and values are repeated for the query heads that share them.
        """
        weights: dict[str, Callable[[], Tensor]] = {"embed.W_E": lambda: self.W_E}
        for layer, block in enumerate(self._blocks):
            weights |= {f"blocks.{layer}.{name}": read for name, read in block_weights(block).items()}
        if self._ln_final is not None:
            weights |= {f"ln_final.{name}": read for name, read in norm_weights_of(self._ln_final).items()}
        unembedding = {"unembed.W_U": lambda: self.W_U, "unembed.b_U": lambda: self.b_U.expand(self.cfg.d_vocab)}
        return NamedWeights(weights | unembedding)

    def get_params(self) -> NamedWeights:
        """The same as `tl_parameters`."""
        return self.tl_parameters()

    def tl_named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """The weights of `tl_parameters`, one after the other."""
        return iter(self.tl_parameters().items())

    @property
    def n_params_total(self) -> int:
        """Number of parameters of the whole model, its vision tower among them."""
        return sum(parameter.numel() for parameter in self.hf_model.parameters())

    # nn.Module's methods act on the wrapped model, which is not in the module tree.

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        return self.hf_model.named_parameters(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return self.hf_model.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.hf_model.load_state_dict(*args, **kwargs)

    def _stack_of(self, layers: list[int], submodule: str, read: Callable[[Any], Tensor]) -> LayerStack:
        return LayerStack(layers, lambda layer: read(self._blocks[layer]._modules[submodule]))

    def _circuit(self, name: Literal["QK", "OV"], layers: list[int]) -> FactoredMatrix:
        left, right = (
            self._stack_of(layers, "attn", lambda attn, at=at: getattr(attn, name).pair[at]) for at in (0, 1)
        )
        # They act as tensors, and become these where they must.
        return FactoredMatrix(left, right)  # pyright: ignore[reportArgumentType]
