"""A training run that survives being killed: a folder with weights, optimiser state and progress."""

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
    """What a run has done, saved beside its weights."""

    size: str | None = None
    stage: str = "tower"
    step: int = 0
    n_things: int = 2
    """Things a picture, raised as the model learns."""
    log: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    reached: dict[str, Any] = field(default_factory=dict)
    """What every finished stage reached, in how many steps, and how long training had taken by then."""
    changes: list[str] = field(default_factory=list)
    """Settings that were changed by hand during the run, for the record."""


class Run:
    """A folder that holds everything needed to go on: weights, optimiser state, progress."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        saved = folder / "progress.json"
        self.progress = Progress(**json.loads(saved.read_text())) if saved.exists() else Progress()

    def begin(self, stage: str) -> None:
        """Goes on with a stage if it is the one that was left, and else starts it."""
        if self.progress.stage != stage:
            self.progress.stage, self.progress.step = stage, 0

    def save(self, tensors: dict[str, Tensor]) -> None:
        """Writes tensors first and the record of them last, each in one move, so that a kill leaves a whole state."""
        state = f"{self.progress.stage}-{self.progress.step}.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, self.folder / f"{state}.part")
        (self.folder / f"{state}.part").replace(self.folder / state)
        (self.folder / "progress.part").write_text(json.dumps(asdict(self.progress), indent=1))
        (self.folder / "progress.part").replace(self.folder / "progress.json")
        for old in self.folder.glob("*.safetensors"):
            if old.name != state and not old.name.startswith("end-"):
                old.unlink()

    def load(self) -> dict[str, Tensor]:
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
    """Trains until `steps`, saving every `SAVE_EVERY`, and continues from what the run folder holds."""
    progress, stage = run.progress, run.progress.stage
    names: dict[Tensor, str] = {parameter: name for name, parameter in modules.named_parameters()}
    groups = [group for optimiser in optimisers for group in optimiser.param_groups]
    rates = [group["lr"] for group in groups]
    if progress.step:
        saved = run.load()
        modules.load_state_dict({k.removeprefix("w:"): v for k, v in saved.items() if k.startswith("w:")})
        for optimiser in optimisers:
            for parameter in [one for group in optimiser.param_groups for one in group["params"]]:
                own = f"o:{names[parameter]}:"
                optimiser.state[parameter] = {k.removeprefix(own): v for k, v in saved.items() if k.startswith(own)}
    bar = tqdm(range(progress.step, steps), initial=progress.step, total=steps, desc=stage)
    began = time.monotonic()
    for step in bar:
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * cosine(step, steps)
        loss, right = loss_at(step)
        modules.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
        entry = {"stage": stage, "step": step, "loss": round(loss.item(), 4), "n_things": progress.n_things, **right}
        progress.log.append(entry)
        bar.set_postfix(loss=entry["loss"], things=progress.n_things, **right)
        progress.step = step + 1
        if progress.step % SAVE_EVERY == 0 or progress.step == steps:
            progress.seconds += time.monotonic() - began
            began = time.monotonic()
            tensors = {f"w:{name}": tensor for name, tensor in modules.state_dict().items()}
            for optimiser in optimisers:
                for parameter, kept in optimiser.state.items():
                    tensors |= {f"o:{names[parameter]}:{key}": value for key, value in kept.items()}
            run.save(tensors | extra())


def curves(log: list[dict[str, Any]], every: int = 25) -> dict[str, dict[str, list[float]]]:
    """What was measured at every step, by stage and name, as means over so many steps."""
    found: dict[str, dict[str, list[float]]] = {}
    for stage, entries in groupby(log, key=lambda entry: entry["stage"]):
        steps = list(entries)
        found[stage] = {
            name: [
                round(fmean(one[name] for one in part), 4)
                for part in (steps[n : n + every] for n in range(0, len(steps), every))
            ]
            for name in steps[0]
            if name != "stage"
        }
    return found


def cosine(step: int, steps: int, warmup: int = 50, floor: float = 0.02) -> float:
    """Share of the full learning rate."""
    if step < warmup:
        return (step + 1) / warmup
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
