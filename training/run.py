"""A training run that resumes after an interruption: a folder with weights, optimiser state and progress."""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

SAVE_EVERY = 50


@dataclass
class Progress:
    """Progress of a run, saved beside its weights."""

    size: str | None = None
    stage: str = "tower"
    step: int = 0
    n_things: int = 2
    """Things per picture, raised as the model learns."""
    log: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    reached: dict[str, Any] = field(default_factory=dict)
    """Steps of every finished stage, and the training time by its end."""
    changes: list[str] = field(default_factory=list)
    """Settings that were changed by hand during the run, for the record."""


class Run:
    """A folder with everything needed to resume: weights, optimiser state, progress."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        saved = folder / "progress.json"
        self.progress = Progress(**json.loads(saved.read_text())) if saved.exists() else Progress()

    def begin(self, stage: str) -> None:
        """Resume a stage if it is the current one, or start it."""
        if self.progress.stage != stage:
            self.progress.stage, self.progress.step = stage, 0

    def save(self, tensors: dict[str, Tensor]) -> None:
        """Write tensors first and the progress last, each atomically, so that interruptions leave complete states."""
        state = f"{self.progress.stage}-{self.progress.step}.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, self.folder / f"{state}.part")
        (self.folder / f"{state}.part").replace(self.folder / state)
        (self.folder / "progress.part").write_text(json.dumps(asdict(self.progress), indent=1))
        (self.folder / "progress.part").replace(self.folder / "progress.json")
        for path in self.folder.glob("*.safetensors"):
            if path.name != state and not path.name.startswith("end-"):
                path.unlink()

    def load(self) -> dict[str, Tensor]:
        """Tensors of the current step, if they were saved."""
        state = self.folder / f"{self.progress.stage}-{self.progress.step}.safetensors"
        return load_file(state) if state.exists() else {}


def train_stage(
    run: Run,
    modules: nn.ModuleDict,
    optimisers: Sequence[torch.optim.Optimizer],
    steps: int,
    loss_at: Callable[[int], tuple[Tensor, dict[str, Any]]],
    extra: Callable[[], dict[str, Tensor]] = dict,
) -> None:
    """Train up to step `steps`, saving every `SAVE_EVERY` steps, and resume from the run folder."""
    progress, stage = run.progress, run.progress.stage
    names: dict[Tensor, str] = {parameter: name for name, parameter in modules.named_parameters()}
    groups = [group for optimiser in optimisers for group in optimiser.param_groups]
    rates = [group["lr"] for group in groups]
    if progress.step:
        saved = run.load()
        modules.load_state_dict({k.removeprefix("w:"): v for k, v in saved.items() if k.startswith("w:")})
        for optimiser in optimisers:
            for parameter in [parameter for group in optimiser.param_groups for parameter in group["params"]]:
                prefix = f"o:{names[parameter]}:"
                optimiser.state[parameter] = {
                    k.removeprefix(prefix): v for k, v in saved.items() if k.startswith(prefix)
                }
    bar = tqdm(range(progress.step, steps), initial=progress.step, total=steps, desc=stage)
    start = time.monotonic()
    for step in bar:
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * cosine(step, steps)
        loss, shares = loss_at(step)
        modules.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
        entry = {"stage": stage, "step": step, "loss": round(loss.item(), 4), "n_things": progress.n_things, **shares}
        progress.log.append(entry)
        bar.set_postfix(loss=entry["loss"], things=progress.n_things, **shares)
        progress.step = step + 1
        if progress.step % SAVE_EVERY == 0 or progress.step == steps:
            progress.seconds += time.monotonic() - start
            start = time.monotonic()
            tensors = {f"w:{name}": tensor for name, tensor in modules.state_dict().items()}
            for optimiser in optimisers:
                for parameter, state in optimiser.state.items():
                    tensors |= {f"o:{names[parameter]}:{key}": value for key, value in state.items()}
            run.save(tensors | extra())


def curves(log: list[dict[str, Any]], every: int = 25) -> dict[str, dict[str, list[float]]]:
    """Average the log over `every` steps, by stage and name."""
    means: dict[str, dict[str, list[float]]] = {}
    for stage, entries in groupby(log, key=lambda entry: entry["stage"]):
        steps = list(entries)
        means[stage] = {
            name: [
                round(fmean(entry[name] for entry in window), 4)
                for window in (steps[n : n + every] for n in range(0, len(steps), every))
            ]
            for name in steps[0]
            if name != "stage"
        }
    return means


def cosine(step: int, steps: int, warmup: int = 50, floor: float = 0.02) -> float:
    """Share of the full learning rate: linear warm-up, then a cosine down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
