"""Simulated accelerators: their tensors compute on the CPU, say that they are elsewhere, and refuse to mix with others.

It shows on any machine where a tensor is made on the wrong device, or read without being brought back. Of a real
device it shows neither speed nor kernels nor numerics.

    with simulated_device():
        model = HookedMLLM(to_device(hf_model), processor)

A second one, `simulated:1`, mixes with neither.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "simulated"

MAY_BE_ON_CPU = ("index", "index_put", "index_put_", "_index_put_impl_")
"""Operators whose indices may be on the CPU on every device."""

RETURN_NUMBERS = ("_local_scalar_dense", "equal", "is_same_size")


class SimulatedTensor(Tensor):
    """A tensor of a simulated device; `raw` has its numbers."""

    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor, requires_grad: bool = False, index: int = 0) -> "SimulatedTensor":
        tensor = torch.Tensor._make_wrapper_subclass(  # pyright: ignore
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            layout=raw.layout,
            device=torch.device(NAME, index),
            requires_grad=requires_grad,
        )
        tensor.raw = raw
        return tensor

    def __init__(self, raw: Tensor, requires_grad: bool = False, index: int = 0) -> None: ...

    def __repr__(self, **_: Any) -> str:
        return f"SimulatedTensor({self.raw}, {self.device})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.raw.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() first.")


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _raw(value: Any) -> Any:
    return value.raw if isinstance(value, SimulatedTensor) else value


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operator on the numbers of tensors that are on one device, as that device would run it."""
    name = func.overloadpacket.__name__
    flat, _ = tree_flatten((args, kwargs))
    simulated = [value for value in flat if isinstance(value, SimulatedTensor)]
    others = [value for value in flat if isinstance(value, Tensor) and not isinstance(value, SimulatedTensor)]
    device = None if kwargs.get("device") is None else torch.device(kwargs["device"])
    if name == "_to_copy" and device is not None:
        target = torch.device("cpu") if device.type == NAME else device
        copy = func(_raw(args[0]), *args[1:], **{**kwargs, "device": target})
        return SimulatedTensor(copy, index=device.index or 0) if device.type == NAME else copy
    if name == "_copy_from":
        return _copy_from(*args)
    if name == "copy_":
        _raw(args[0]).copy_(_raw(args[1]))
        return args[0]
    found = {str(tensor.device) for tensor in simulated}
    found |= {"cpu"} if simulated and any(tensor.dim() for tensor in others) and name not in MAY_BE_ON_CPU else set()
    if len(found) > 1:
        raise RuntimeError(f"{name}: expected all tensors to be on the same device, but found {sorted(found)}.")

    def on_cpu(value: Any) -> Any:
        is_device = isinstance(value, torch.device) and value.type == NAME
        return torch.device("cpu") if is_device else _raw(value)

    outputs = func(*tree_map(on_cpu, args), **tree_map(on_cpu, kwargs))
    if name in RETURN_NUMBERS or (device.type != NAME if device is not None else not simulated):
        return outputs
    index = (device or simulated[0].device).index or 0
    # Operators in place return what they got.
    known = {id(tensor.raw): tensor for tensor in simulated}

    def on_device(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return known[id(value)] if id(value) in known else SimulatedTensor(value, index=index)

    return tree_map(on_device, outputs)


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    _raw(target).copy_(_raw(source))
    return target


@cache
def _register() -> Any:
    """Make the device known to torch, once in a process; the library lives as long as it."""
    _setup_privateuseone_for_python_backend(NAME)
    getattr(torch, NAME).get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]  # asked by torch.autocast
    library = torch.library.Library("aten", "IMPL")
    made = {
        "empty_strided": lambda size, stride, *, dtype=None, device=None, **_: SimulatedTensor(
            torch.empty_strided(size, stride, dtype=dtype, device="cpu"), index=device.index or 0
        ),
        "empty.memory_format": lambda size, *, dtype=None, device=None, **_: SimulatedTensor(
            torch.empty(size, dtype=dtype, device="cpu"), index=device.index or 0
        ),
        "_copy_from": _copy_from,
        "_local_scalar_dense": lambda tensor: _raw(tensor).item(),
    }
    for name, function in made.items():
        library.impl(name, function, "PrivateUse1")
    return library


@contextmanager
def simulated_device() -> Iterator[torch.device]:
    """The device, on which tensors can be made in the block."""
    _register()
    with _Mode():
        yield torch.device(NAME, 0)


def to_device(module: nn.Module, index: int = 0) -> nn.Module:
    """The module with its parameters and buffers on a simulated device, in place; offloaded ones stay."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None and not (isinstance(value.data, SimulatedTensor) or value.is_meta):
                moved = SimulatedTensor(value.data, index=index)
                part._parameters[name] = nn.Parameter(moved, requires_grad=value.requires_grad)
        for name, value in part._buffers.items():
            if value is not None and not isinstance(value, SimulatedTensor):
                part._buffers[name] = SimulatedTensor(value, index=index)
    return module
