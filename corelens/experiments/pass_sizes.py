"""Sizes of passes at full length, found without weights and without computing: fake tensors have only shapes."""

import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForImageTextToText, PreTrainedConfig
from transformers.initialization import no_init_weights

from corelens.experiments.head_metrics import score_heads
from corelens.experiments.layer_scores import ScoringInputs
from corelens.experiments.passes import run_pattern_hooks
from corelens.interventions import ablate
from corelens.metrics import PRESETS
from corelens.model import HookedMLLM
from corelens.sparse import apply, published
from corelens.tokens import Role, TokenMap

N_QUERIES = 32
"""Tokens of the question whose rows the measured scan computes."""

N_ABLATED = 30
"""Heads that the measured ablation zeroes, as many as the paper's largest set."""


@dataclass(frozen=True)
class PassSize:
    """Size of a pass that is not run."""

    peak_bytes: int
    """Bytes alive at once at most, beyond the weights."""

    largest: tuple[int, ...]
    """Shape of the tensor with the most elements that the pass would make."""


class FakeTensors(TorchDispatchMode):
    """Mode in which whatever is computed from a fake tensor is one, and in which the bytes alive are counted.

    Masks and token ids keep their values. Checks of values pass: `all` is true of a fake tensor, and `any` false.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.begin()

    def begin(self) -> None:
        """Forget what was counted."""
        self._alive: dict[int, int] = {}
        self._bytes = self.peak_bytes = 0
        self.largest: tuple[int, ...] = ()

    def measure(self, run: Callable[[], Any]) -> PassSize:
        """Size of what a function of fake tensors would hold."""
        self.begin()
        with torch.no_grad(), self:
            run()
        return PassSize(self.peak_bytes, self.largest)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not any(isinstance(leaf, FakeTensor) for leaf in tree_leaves((args, kwargs))):
            return func(*args, **kwargs)
        if func in (torch.ops.aten.all.default, torch.ops.aten.any.default):
            return torch.tensor(func is torch.ops.aten.all.default)
        if func in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default):
            # The number of chosen places is known, since masks have values.
            args = (args[0], [place for index in args[1] for place in _places(index)], *args[2:])
        with self.fake:
            outputs = func(*args, **kwargs)
        # Views of weights, as their transposes, are nothing new.
        before = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, FakeTensor)}
        for output in tree_leaves(outputs):
            if isinstance(output, FakeTensor):
                self._count(output, before)
        return outputs

    def _count(self, tensor: FakeTensor, before: set[int]) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive or key in before:
            return
        self._alive[key] = storage.nbytes()
        self._bytes += storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, self._bytes)
        if tensor.numel() > torch.Size(self.largest).numel() or not self.largest:
            self.largest = tuple(tensor.shape)
        weakref.finalize(storage, partial(self._free, self._alive, key))

    def _free(self, alive: dict[int, int], key: int) -> None:
        self._bytes -= alive.pop(key) if alive is self._alive else 0


def _places(index: Tensor | None) -> tuple[Tensor | None, ...]:
    if index is None or index.dtype != torch.bool or isinstance(index, FakeTensor):
        return (index,)
    return index.nonzero(as_tuple=True)


def pass_sizes(config: PreTrainedConfig, n_positions: int) -> dict[str, PassSize]:
    """Sizes of passes over a prompt, in bfloat16: the plain one, a scan's, an ablation's and one under a plan.

    The model is built of fake tensors, and its decoder runs on token ids; the vision tower is not part of it. Neither
    logits but the last position's nor a cache are kept, as in a scan.

    Args:
        config: Configuration of an image-text-to-text model.
        n_positions: Length of the prompt.

    Returns:
        By the name of the pass: `plain`; `scan` by the paper's two metrics, `ram` and `vision_heads`, of 32 tokens of
        the question; `ablate` of 30 heads, zeroed; `plan` of the paper's head-sparse plan, every other head full, in
        the first two layers, since none keeps anything and a plan's blocks take long. A model that cannot
        follow a plan has no `plan`.

    Raises:
        ValueError: If the prompt is shorter than the question, or the model's code needs values or a picture.
    """
    if n_positions <= 2 * N_QUERIES:
        raise ValueError(
            f"n_positions={n_positions} leaves no room for a picture and {N_QUERIES} tokens of a question."
        )
    mode = FakeTensors()
    try:
        with mode.fake, no_init_weights():
            hf_model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
        model = HookedMLLM(hf_model.eval())
        inputs, scoring = {"input_ids": torch.ones(1, n_positions, dtype=torch.long)}, _scoring_inputs(n_positions)
        zeroed = ablate(model.heads[:N_ABLATED])
        passes = {
            "plain": partial(run_pattern_hooks, model, inputs, [], scoring.every_query),
            "scan": partial(score_heads, model, inputs, scoring, [PRESETS["ram"], "vision_heads"]),
            "ablate": partial(run_pattern_hooks, model, inputs, zeroed, scoring.every_query),
        }
        sizes = {name: mode.measure(run) for name, run in passes.items()}
        with suppress(ValueError):  # of a plan that does not fit the model
            sizes["plan"] = mode.measure(partial(_run_first_layers_by_plan, model, inputs, scoring.every_query))
        return sizes
    except Exception as cause:
        # The model's own code runs without values and without a picture, and may fail in any way.
        reason = f"{type(cause).__name__}: {cause}".splitlines()[0]
        raise ValueError(
            f"the size of a pass of {config.model_type} is not known without weights and pictures ({reason})."
        ) from cause


def _run_first_layers_by_plan(model: HookedMLLM, inputs: dict[str, Tensor], queries: Tensor) -> None:
    last = model.hf_layers[min(model.heads[0].layer + 1, model.cfg.n_layers - 1)]
    for module in last.stack.modules():
        if isinstance(module, nn.ModuleList) and last.block in module:
            del module[last.layer + 1 :]
    with apply(model, published([head for head in model.heads if head.layer <= last.layer][::2])):
        run_pattern_hooks(model, inputs, [], queries)


def _scoring_inputs(n_positions: int) -> ScoringInputs:
    """A picture in the first half of the prompt, evidence in a tenth of it, and the question at the end."""
    nothing = torch.full((1, n_positions), -1)
    position = torch.arange(n_positions)[None]
    tokens = TokenMap(
        role=torch.where(position < n_positions // 2, Role.IMAGE, Role.QUESTION),
        media=nothing,
        view=nothing,
        overview=nothing > 0,
        row=nothing,
        column=nothing,
        box=torch.full((1, n_positions, 4), torch.nan),
        seconds=torch.full((1, n_positions, 2), torch.nan),
        sizes=((),),
    )
    return ScoringInputs(
        tokens, position < n_positions // 20, {"question": position >= n_positions - N_QUERIES}, nothing
    )
