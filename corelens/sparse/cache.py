"""The cache of a model whose heads follow a plan."""

from collections.abc import Mapping

from transformers import Cache, DynamicCache, PreTrainedConfig, StaticCache
from transformers.cache_utils import DynamicLayer

from corelens.sparse.layer import HeadSparseLayer
from corelens.sparse.plan import LayerPlan
from corelens.sparse.static_layer import StaticHeadSparseLayer


class HeadSparseCache(Cache):
    """The cache of a model under a plan; layers without one keep what they always keep."""

    def __init__(
        self, config: PreTrainedConfig, layers: Mapping[int, LayerPlan], reserved: int = 0, static: bool = False
    ) -> None:
        """An empty cache.

        Args:
            config: The model's.
            layers: The plans of layers, by number.
            reserved: For how many positions there is room from the beginning; more positions cost copies.
            static: Whether there is room for these positions only, so that decoding can be compiled.
        """
        self.plans = layers
        stock = StaticCache(config=config, max_cache_len=reserved) if static else DynamicCache(config=config)
        kind = StaticHeadSparseLayer if static else HeadSparseLayer
        super().__init__(
            layers=[
                kind(layers[number], reserved) if number in layers else layer
                for number, layer in enumerate(stock.layers)
            ]
        )

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values of the planned layers."""
        return sum(layer.nbytes for layer in self.layers if isinstance(layer, HeadSparseLayer))


def plannable(config: PreTrainedConfig) -> list[int]:
    """The layers that keep keys and values of all positions and nothing else; none if layers share theirs."""
    if "reuse" in (getattr(config.get_text_config(decoder=True), "kv_sharing_modes", None) or ()):
        return []
    return [number for number, layer in enumerate(DynamicCache(config=config).layers) if type(layer) is DynamicLayer]
