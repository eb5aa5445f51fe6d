"""Gain, bias and epsilon of a norm, whatever it calls them: `weight`, `1 + weight`, or no gain at all."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from corelens.hf.projections import device_of


@dataclass(frozen=True)
class NormWeights:
    """A norm divides what it reads by a scale of its own at each position, multiplies by `gain` and adds `bias`."""

    gain: Float[Tensor, "width"]
    bias: Float[Tensor, "width"]

    epsilon: float
    """Number under the root of the scale."""

    centred: bool
    """True if the mean is taken off first, as LayerNorm does and RMSNorm does not."""

    def scale(self, inputs: Float[Tensor, "*rest width"]) -> Float[Tensor, "*rest 1"]:
        """Scale by which the norm divides, in float32."""
        inputs = inputs.float()
        if self.centred:
            inputs = inputs - inputs.mean(-1, keepdim=True)
        return (inputs.square().mean(-1, keepdim=True) + self.epsilon).sqrt()

    def at_scale(
        self, inputs: Float[Tensor, "*rest width"], scale: Float[Tensor, "*rest_of_scale 1"]
    ) -> Float[Tensor, "*rest width"]:
        """Apply the norm without its bias, dividing by a scale that is given: a linear map, in float32."""
        inputs = inputs.float()
        if self.centred:
            inputs = inputs - inputs.mean(-1, keepdim=True)
        return inputs / scale * self.gain


@torch.no_grad()
def norm_weights(norm: nn.Module, width: int, dtype: torch.dtype, name: str) -> NormWeights:
    """Weights of a norm, as it answers to vectors of a known scale.

    Args:
        norm: The norm.
        width: Width of what it reads.
        dtype: Dtype of the model.
        name: Its name in errors.

    Raises:
        ValueError: If it is neither a LayerNorm nor an RMSNorm.
    """
    device = device_of(norm)
    signs = torch.ones(width, device=device)
    signs[1::2] = -1
    random = torch.randn(4, width, generator=torch.Generator().manual_seed(0)).to(device, dtype) + 0.5
    with torch.autocast(device.type, enabled=False):
        # Past its hooks, which may be those of a pass that is about to run.
        # Beside a scale of 64 an epsilon is nothing; beside one of 1/1024 it is most.
        upper, lower, small, output = (
            norm.forward(inputs.to(dtype)).float() for inputs in (64 * signs, -64 * signs, signs / 1024, 64 * random)
        )
    gain, bias, random = (upper - lower) / 2 * signs, (upper + lower) / 2, random.float()
    largest = int(gain.abs().argmax())
    ratio = float(gain[largest] * signs[largest] / (small - bias)[largest])
    for centred in (False, True):
        moved = random - random.mean(-1, keepdim=True) if centred else random
        expected = moved / moved.square().mean(-1, keepdim=True).sqrt() * gain + bias
        # More than bfloat16 rounds, and less than a mean changes.
        if (output - expected).norm() < 0.02 * output.norm():
            return NormWeights(gain, bias, max(ratio**2 - 1, 0.0) / 1024**2, centred)
    raise ValueError(f"{name} ({type(norm).__name__}) is neither a LayerNorm nor an RMSNorm, so it has no one gain.")
