"""LayerStack: weights of several layers along a first axis, read and stacked where they are needed.

model.W_Q[3, 5]           reads layer 3 alone
model.W_Q[:, 5]           reads every layer, and keeps one head of each
model.W_Q.norm(dim=-1)    stacks them all, as a tensor
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


class LayerStack:
    """Weights of several layers, [layer ...]: a tensor in all that it does, made where it is needed."""

    def __init__(self, layers: Sequence[int], read: Callable[[int], Tensor]) -> None:
        """Stack what a function returns for each layer.

        Args:
            layers: Numbers of the layers in the model, one for each index of the first axis.
            read: Returns the weight of one of them.
        """
        self.layers = list(layers)
        self._read = read

    def tensor(self) -> Tensor:
        """All layers as one tensor, on the device of the first.

        Raises:
            ValueError: If layers have weights of several shapes.
        """
        weights = [self._read(layer) for layer in self.layers]
        shapes = {tuple(weight.shape): layer for layer, weight in zip(self.layers, weights, strict=True)}
        if len(shapes) > 1:
            of_layers = ", ".join(f"{shape} in layer {layer}" for shape, layer in shapes.items())
            raise ValueError(
                f"weights of these layers are no one tensor, since they have several shapes: {of_layers}. Index the "
                f"layer first, or read them at model.blocks[layer]."
            )
        return torch.stack([weight.to(weights[0].device) for weight in weights])

    def __getitem__(self, index: Any) -> Any:
        first, *rest = index if isinstance(index, tuple) else (index,)
        if isinstance(first, int):
            return self._read(self.layers[first])[tuple(rest)]
        if isinstance(first, slice):
            layers = self.layers[first]
            if not rest:
                return LayerStack(layers, self._read)
            return LayerStack(layers, lambda layer: self._read(layer)[tuple(rest)]).tensor()
        return self.tensor()[index]

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Tensor]:
        return (self._read(layer) for layer in self.layers)

    def __repr__(self) -> str:
        return f"LayerStack(shape={tuple(self.shape)}, layers={self.layers})"

    @property
    def shape(self) -> torch.Size:
        """Shape of the stack, as the first layer's weight has it."""
        return torch.Size([len(self.layers), *self._read(self.layers[0]).shape])

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def size(self, dim: int | None = None) -> Any:
        """Shape, or the length of one axis."""
        return self.shape if dim is None else self.shape[dim]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the first layer's weight."""
        return self._read(self.layers[0]).dtype

    @property
    def device(self) -> torch.device:
        """Device of the first layer's weight."""
        return self._read(self.layers[0]).device

    @property
    def mT(self) -> "LayerStack":
        """The same with its last two axes exchanged."""
        return LayerStack(self.layers, lambda layer: self._read(layer).mT)

    def transpose(self, dim0: int, dim1: int) -> Any:
        """Exchange two axes; of the last two, without stacking."""
        if {dim0 % self.ndim, dim1 % self.ndim} == {self.ndim - 2, self.ndim - 1}:
            return self.mT
        return self.tensor().transpose(dim0, dim1)

    def broadcast_to(self, *shape: Any) -> Any:
        """Broadcast; to its own shape, without stacking."""
        wanted = torch.Size(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)
        return self if wanted == self.shape else self.tensor().broadcast_to(wanted)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(Tensor, name):
            raise AttributeError(f"a LayerStack has no {name}.")
        return getattr(self.tensor(), name)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def stacked(value: Any) -> Any:
            if isinstance(value, LayerStack):
                return value.tensor()
            return type(value)(map(stacked, value)) if isinstance(value, list | tuple) else value

        return func(*stacked(tuple(args)), **{name: stacked(value) for name, value in (kwargs or {}).items()})


def _operator(name: str) -> Callable[..., Any]:
    """Operator of tensors, on the stacked one."""
    return lambda stack, *operands: getattr(stack.tensor(), name)(
        *(operand.tensor() if isinstance(operand, LayerStack) else operand for operand in operands)
    )


for _name in ("add", "sub", "mul", "truediv", "matmul", "pow", "radd", "rsub", "rmul", "rtruediv", "rmatmul", "rpow",
              "neg", "abs", "eq", "ne", "lt", "le", "gt", "ge"):  # fmt: skip
    setattr(LayerStack, f"__{_name}__", _operator(f"__{_name}__"))
