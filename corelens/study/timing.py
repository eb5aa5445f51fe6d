"""How fast a prompt is answered under plans, in rounds that are measured once and kept."""

import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from corelens.accelerating import Plans, speeds
from corelens.inputs import PreparedInputs
from corelens.model import HookedMLLM
from corelens.progress import progress
from corelens.sparse.speed import Speed
from corelens.store import write_whole


@dataclass(frozen=True)
class Timing:
    """Speeds under plans, measured several times."""

    rounds: list[dict[str, Speed]]
    positions: int
    """Of the prompt."""

    device: str
    """What it was measured on."""


def timing(
    model: HookedMLLM, inputs: PreparedInputs, plans: Plans, n_rounds: int, folder: Path, again: bool = False
) -> Timing:
    """Speeds on one prompt, from rounds that the folder holds and as many more as are missing.

    Args:
        model: The model.
        inputs: The prompt.
        plans: The plans; `plain`, the model as it is, is always measured beside them.
        n_rounds: Rounds, each of which takes every plan once.
        folder: Keeps them in `speed.json`.
        again: Measures all rounds anew, e.g. on another machine.
    """
    file = folder / "speed.json"
    positions, device = inputs["input_ids"].shape[1], _name(model.device)
    found = Timing([], positions, device)
    if file.exists() and not again:
        kept = json.loads(file.read_text())
        rounds = [{name: Speed(**one) for name, one in of_round.items()} for of_round in kept.pop("rounds")]
        same = kept["positions"] == positions and all(set(one) == {*plans, "plain"} for one in rounds)
        # Rounds of two machines cannot be told apart later.
        if same and (len(rounds) >= n_rounds or kept["device"] == device):
            found = Timing(rounds[:n_rounds], **kept)
    with progress(n_rounds, "speed", "round", len(found.rounds)) as advance:
        while len(found.rounds) < n_rounds:
            found.rounds.append(speeds(model, inputs, plans, 4, 1))
            text = json.dumps(asdict(found), indent=1)
            write_whole(file, lambda path, text=text: path.write_text(text))
            advance(1)
    return found


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, {platform.machine()}"
