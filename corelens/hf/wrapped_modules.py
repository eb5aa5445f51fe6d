"""Modules of a wrapped model, and its changes and modes in which hooks would act on nothing, or on something else."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from corelens.errors import docs_link


class WrappedModules:
    """Modules at which hooks connect, and the way to each from the model that holds them.

    Each way is checked before hooked passes, link by link: some hundred comparisons of references.
    """

    def __init__(self, hf_model: PreTrainedModel, modules: Iterable[nn.Module]) -> None:
        """Note where these modules are in a model."""
        self.hf_model = hf_model
        wanted = set(modules)
        links: dict[str, tuple[nn.Module, str, nn.Module]] = {}
        for path, module in hf_model.named_modules():
            parts = path.split(".") if module in wanted and path else []
            parent: nn.Module = hf_model
            for depth, name in enumerate(parts, 1):
                child = parent.get_submodule(name)
                links[".".join(parts[:depth])] = parent, name, child
                parent = child
        self._links = links
        self._lengths = {path: len(part) for path, (*_, part) in links.items() if isinstance(part, nn.ModuleList)}
        # Others than these are looked for in training only.
        self._at_random = [(path, module) for path, module in hf_model.named_modules() if _random_settings(module)]

    def check_unchanged(self) -> None:
        """Raise a RuntimeError if a module was replaced since the model was wrapped."""
        for path, (parent, name, child) in self._links.items():
            now = parent._modules.get(name)
            if now is not child or (isinstance(child, nn.ModuleList) and len(child) != self._lengths[path]):
                raise RuntimeError(
                    f"{path} of {type(self.hf_model).__name__} has changed since the model was wrapped, so that hooks "
                    f"would act on what no longer runs: wrap it again, HookedMLLM(model.hf_model, model.processor). "
                    f"{docs_link('changed')}"
                )

    def check_hookable(self) -> None:
        """Raise a RuntimeError if hooks would not act, or what they see and change would not be what acts."""
        self.check_unchanged()
        for path, module in (("the model", self.hf_model), *((path, link[2]) for path, link in self._links.items())):
            if _is_compiled(module):
                raise RuntimeError(
                    f"{path} is compiled, and hooks need its Python code: load the model anew to hook it. "
                    f"{docs_link('compiled')}"
                )
            if not torch.is_grad_enabled() or not module.training:
                continue
            if getattr(module, "gradient_checkpointing", False) or "_checkpoint_wrapped_module" in module._modules:
                raise RuntimeError(
                    f"{path} has gradient checkpointing, which computes it again when its hooks are gone, so that "
                    f"gradients would be wrong: model.hf_model.activation_checkpointing_disable(), or no_grad. "
                    f"{docs_link('checkpointing')}"
                )
        self.check_repeatable()

    def check_repeatable(self) -> None:
        """Raise a RuntimeError if the model drops activations at random, so that each pass gives other numbers."""
        modules = self.hf_model.named_modules() if self.hf_model.training else self._at_random
        for path, module in modules:
            if module.training and (settings := _random_settings(module)):
                name, value = next(((name, value) for name, value in settings.items() if value), ("", 0))
                if name:
                    raise RuntimeError(
                        f"{path} is in training mode with {name}={value}, so that each pass gives other numbers: "
                        f"model.eval(). {docs_link('training-mode')}"
                    )


def _random_settings(module: nn.Module) -> dict[str, Any]:
    """Settings by which a module drops activations in training, or follows the batch."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return {"p": module.p}
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return {"batch statistics": True}
    settings = {
        name: value for name, value in vars(module).items() if "drop" in name.lower() and type(value) in (int, float)
    }
    # Persimmon's attention reads it there.
    config: Any = getattr(module, "config", None) if "Attention" in type(module).__name__ and not settings else None
    return {"attention_dropout": config.attention_dropout} if hasattr(config, "attention_dropout") else settings


def _is_compiled(module: nn.Module) -> bool:
    return (
        module._compiled_call_impl is not None
        or "_orig_mod" in module._modules
        or hasattr(module.forward, "_torchdynamo_orig_callable")
    )
