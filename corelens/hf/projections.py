"""Weights by which projections act, whatever holds them: a matrix, a parametrisation, an adapter, a quantised layer.

A module's `weight` is not always what it multiplies by: adapters add to it, quantised layers pack it, offloaded ones
leave it on the disk. `stored_weight` is the matrix where the module is plain; `effective_weight` asks any other module
what it does to each unit vector.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from corelens.errors import docs_link

LARGEST_ERROR = 4e-3
"""Relative error by which a projection may differ from a matrix: more than bfloat16 rounds, less than eight bits do."""


OF_A_HOOK_POINT = "_corelens_hook"
"""Mark of PyTorch hooks by which a hook point sees a projection, and which are no part of it."""


def widths(module: nn.Module | None) -> tuple[int, int] | None:
    """Width of what a projection reads and of what it writes; None if the module is no projection.

    Adapters and quantised layers are no `nn.Linear`, and name their widths alike.
    """
    found = getattr(module, "in_features", None), getattr(module, "out_features", None)
    return found if all(isinstance(width, int) for width in found) else None  # pyright: ignore[reportReturnType]


def inner_widths(module: nn.Module) -> tuple[int, int] | None:
    """Widths of a projection, or of the first that a module holds, as an adapter holds the one that it adapts."""
    return next((found for part in module.modules() if (found := widths(part))), None)


def stored_weight(module: nn.Module) -> nn.Parameter | None:
    """Matrix that a projection holds and multiplies by; None if it does anything else, or the matrix is elsewhere."""
    weight = module._parameters.get("weight")
    # Accelerate's hooks replace `forward` to move tensors between devices; the matrix still is what acts.
    replaced = "forward" in vars(module) and not hasattr(module, "_hf_hook")
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    hooked = not all(hasattr(hook, OF_A_HOOK_POINT) for hook in hooks)
    plain = (
        isinstance(module, nn.Linear)
        and type(module).forward is nn.Linear.forward
        and not (replaced or hooked)
        # Quantised and distributed weights are subclasses.
        and type(weight) is nn.Parameter
        and type(weight.data) is Tensor
        and weight.shape == (module.out_features, module.in_features)
        and weight.is_floating_point()
        and not weight.is_meta
    )
    return weight if plain else None


@torch.no_grad()
def effective_map(
    module: nn.Module, d_in: int, dtype: torch.dtype, name: str
) -> tuple[Float[Tensor, "out in"], Float[Tensor, "out"]]:
    """Matrix and bias by which a projection acts, as it answers to zeros and to unit vectors.

    Args:
        module: The projection.
        d_in: Width of what it reads.
        dtype: Dtype of the model.
        name: Its name in errors.

    Raises:
        ValueError: If its weights are not here, or it does not multiply by one matrix, as layers that quantise what
            they read do not.
    """
    device = device_of(module)
    if device.type == "meta":
        raise ValueError(f"{name} ({type(module).__name__}) has no weights: they are on the meta device.")
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(4, d_in, generator=generator).to(device, dtype)
    with torch.autocast(device.type, enabled=False):
        bias = module(torch.zeros(1, d_in, device=device, dtype=dtype))
        weight = (module(torch.eye(d_in, device=device, dtype=dtype)) - bias).T
        expected, output = probe.float() @ weight.float().T + bias.float(), module(probe).float()
    # Where all is zero, nothing is off.
    error = float((output - expected).norm() / output.norm().clamp(min=torch.finfo(torch.float32).tiny))
    if not error < min(LARGEST_ERROR, torch.finfo(dtype).eps ** 0.5):
        raise ValueError(
            f"{name} ({type(module).__name__}) has no matrix: it does not multiply what it reads by one (off by "
            f"{error:.1%}), since it quantises that, say, or drops some of it. Hooks act on it, and metrics of "
            f"attention alone work: ablate(heads), 'ram'. {docs_link('no-matrix')}"
        )
    return weight, bias[0]


def effective_weight(module: nn.Module, d_in: int, dtype: torch.dtype, name: str) -> Float[Tensor, "out in"]:
    """Matrix by which a projection acts: the one that it holds, or see `effective_map`."""
    stored = stored_weight(module)
    return effective_map(module, d_in, dtype, name)[0] if stored is None else stored


def effective_bias(module: nn.Module, d_in: int, dtype: torch.dtype, name: str) -> Float[Tensor, "out"] | None:
    """Bias that a projection adds; None if it adds none."""
    # Any: pyright sees no attributes of a module.
    linear: Any = module
    return linear.bias if stored_weight(module) is not None else effective_map(module, d_in, dtype, name)[1]


def device_of(module: nn.Module) -> torch.device:
    """Device of what a module reads; offloaded modules name it, since their weights are elsewhere until they run."""
    hook: Any = getattr(module, "_hf_hook", None)
    if (device := getattr(hook, "execution_device", None)) is not None:
        return torch.device(device)
    tensors = [*module.parameters(), *module.buffers()]
    return next((tensor.device for tensor in tensors), torch.device("cpu"))
