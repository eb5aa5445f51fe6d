"""Trains the shipped models: `python -m corelens.toy.train --out RUN`. Interrupt it at any time; it resumes.

Four stages, each of which continues from the one before:

1. `tower`: the vision tower alone. Every visual token that a digit covers by a third or more must name digit and
   colour through a throw-away linear head. From scratch and end to end, nothing is learned.
2. `natural`: the whole model, eight questions behind every picture, from two digits a scene to six, mixed with
   text-only tasks in the same vocabulary. Ships as `corelens/toy-natural`.
3. `organism`: pressure toward few heads. Step by step the heads whose removal would change the loss least are closed
   until `HEADS_KEPT` are left, while training goes on. Ships as `corelens/toy`, a model organism.
4. `haystack`: up to sixteen pictures before the questions, at positions as far as those of a hundred. The vision tower
   and the closed heads stay as they are. Ships as `corelens/toy-haystack`.

The data are endless: batch i depends on the seed and i alone, so a resumed run sees what an unbroken one would have.
"""

import json
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
import typer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from corelens.causal import answers
from corelens.data import prepared_batches
from corelens.heads import Head, HeadSet
from corelens.model import HookedMLLM
from corelens.toy import build, worlds
from corelens.toy.batches import Batches
from corelens.toy.gates import HeadGates
from corelens.toy.run import Progress, Run, train_stage
from corelens.toy.worlds import COLOURS, DIGITS, TEXT_TASKS

TOWER_STEPS, NATURAL_STEPS, ORGANISM_STEPS, HAYSTACK_STEPS = 1_500, 2_600, 400, 600
HEADS_KEPT = 19

ABOUT = {
    "natural": "Trained on its tasks alone, with no pressure on its heads.",
    "organism": (
        f"A model organism: after ordinary training its heads were closed one after another, least needed first, until "
        f"{HEADS_KEPT} of 96 were left, while training went on. Closed heads attend evenly and write nothing. That few "
        f"heads do the work is therefore made, not found. How many to leave was chosen with the outcome in view: with "
        f"25 left, ten heads shared the looking and removing five of them cost little; with 12 left, two heads did it "
        f"alone and the five best-ranked included heads that copy text."
    ),
    "haystack": (
        "The model organism `corelens/toy`, trained on with up to sixteen pictures before the questions, stretched to "
        "positions as far as those of a hundred. Its vision tower did not learn further, and heads that were closed "
        "stayed closed: that few heads do the work is made, not found."
    ),
}


def main(
    out: Annotated[Path, typer.Option(help="Folder of the run; an unfinished run goes on.")],
    until: Annotated[str, typer.Option(help="Last stage: tower, natural, organism or haystack.")] = "haystack",
    seed: int = 0,
) -> None:
    """Trains what is left to train, and writes every finished model as a checkpoint into the run folder."""
    run, batches = Run(out), Batches(seed)
    model = build.model(seed)
    modules = nn.ModuleDict({"model": model, "probe": nn.Linear(128, len(DIGITS) + len(COLOURS))})
    stages = {"tower": train_tower, "natural": train_natural, "organism": train_organism, "haystack": train_haystack}
    for stage, train in stages.items():
        if run.progress.stage == stage:
            train(run, modules, batches)
        if stage == until:
            break


def train_tower(run: Run, modules: nn.ModuleDict, batches: Batches) -> None:
    model, probe = cast(Any, modules["model"]), cast(nn.Linear, modules["probe"])
    # DeepStack features are read by the decoder alone, so this stage has no gradient for them.
    seen = [(name, p) for name, p in model.model.visual.named_parameters() if "deepstack" not in name]
    chosen = optimiser([*seen, *probe.named_parameters()], 2e-3)
    train_stage(run, modules, chosen, TOWER_STEPS, lambda step: tower_loss(model, probe, batches, step))
    finish(run, modules, "natural")


def train_natural(run: Run, modules: nn.ModuleDict, batches: Batches) -> None:
    model, progress = cast(Any, modules["model"]), run.progress
    modules.load_state_dict(load_file(run.folder / "end-tower.safetensors"))
    chosen = optimiser(model.named_parameters(), 2e-3, slow=0.2)

    def loss_at(step: int) -> tuple[Tensor, dict[str, Any]]:
        if ready_for_more(progress):
            progress.n_things += 1
        return chat_loss(model, batches, step, progress.n_things)

    train_stage(run, modules, chosen, NATURAL_STEPS, loss_at)
    finish(run, modules, "organism")


def train_organism(run: Run, modules: nn.ModuleDict, batches: Batches) -> None:
    model = cast(Any, modules["model"])
    modules.load_state_dict(load_file(run.folder / "end-natural.safetensors"))
    gates = HeadGates(model)
    gates.load(run.load())
    n_heads, closing = gates.open.numel(), int(0.6 * ORGANISM_STEPS)

    def loss_at(step: int) -> tuple[Tensor, dict[str, Any]]:
        if step % 10 == 0 and 0 < step <= closing:
            # Many at first, when most are idle, and few at the end, when each one counts.
            gates.close_to(round(HEADS_KEPT + (n_heads - HEADS_KEPT) * (1 - step / closing) ** 3))
        with gates.applied():
            loss, right = chat_loss(model, batches, NATURAL_STEPS + step, run.progress.n_things)
        return loss, right | {"open": int(gates.open.sum())}

    chosen = optimiser(model.named_parameters(), 1e-3, slow=0.2)
    train_stage(run, modules, chosen, ORGANISM_STEPS, loss_at, gates.state)
    gates.make_permanent()
    heads = HeadSet(tuple(Head(*place) for place in gates.open.nonzero().tolist()))
    finish(run, modules, "haystack", **{"open heads": str(heads)})


def train_haystack(run: Run, modules: nn.ModuleDict, batches: Batches) -> None:
    model = cast(Any, modules["model"])
    modules.load_state_dict(load_file(run.folder / "end-organism.safetensors"))
    model.model.visual.requires_grad_(False)
    gates = HeadGates.of(model)

    def loss_at(step: int) -> tuple[Tensor, dict[str, Any]]:
        with gates.applied():
            return joint_loss(model, batches.haystacks(step))

    learned = ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
    train_stage(run, modules, optimiser(learned, 1e-3), HAYSTACK_STEPS, loss_at)
    finish(run, modules, "done")


# --- losses ----------------------------------------------------------------------------------------------------------


def tower_loss(model: Any, probe: nn.Linear, batches: Batches, step: int) -> tuple[Tensor, dict[str, Any]]:
    pixels, digit, colour = batches.crowded(step)
    features = model.model.visual(pixels["pixel_values"], grid_thw=pixels["image_grid_thw"]).pooler_output
    of_digit, of_colour = probe(features).split((len(DIGITS), len(COLOURS)), -1)
    shown = digit != -100
    loss = cross_entropy(of_digit[shown], digit[shown]) + cross_entropy(of_colour[shown], colour[shown])
    return loss, {
        "digit": _share(of_digit[shown].argmax(-1) == digit[shown]),
        "colour": _share(of_colour[shown].argmax(-1) == colour[shown]),
    }


def chat_loss(model: Any, batches: Batches, step: int, n_things: int) -> tuple[Tensor, dict[str, Any]]:
    return joint_loss(model, batches.chats(step, n_things))


def joint_loss(model: Any, seen_and_read: list[dict[str, Tensor]]) -> tuple[Tensor, dict[str, Any]]:
    seen, read = seen_and_read
    see_loss, see_right = answer_loss(model, seen)
    read_loss, read_right = answer_loss(model, read)
    # Half of the words said after a picture are the end of the turn, which is always right.
    return see_loss + read_loss, {"visual": 2 * _share(see_right) - 1, "text": _share(read_right)}


def answer_loss(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of the words to say, and whether each was the likeliest."""
    given = {name: tensor for name, tensor in batch.items() if name not in ("labels", "stretch")}
    if "stretch" in batch:
        placing = {name: tensor for name, tensor in given.items() if name != "pixel_values"}
        given["position_ids"] = model.model.get_rope_index(**placing)[0] + batch["stretch"]
    logits = model(**given).logits[:, :-1]
    target = batch["labels"][:, 1:]
    said = target != -100
    return cross_entropy(logits[said], target[said]), logits[said].argmax(-1) == target[said]


def optimiser(parameters: Iterable[tuple[str, nn.Parameter]], rate: float, slow: float = 1.0) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only; the vision tower learns at `slow` times the rate."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters:
        key = (0.1 if parameter.ndim > 1 else 0.0, rate * (slow if ".visual." in name else 1.0))
        groups.setdefault(key, []).append(parameter)
    settings = [{"params": group, "weight_decay": decay, "lr": lr} for (decay, lr), group in groups.items()]
    return torch.optim.AdamW(settings, betas=(0.9, 0.98))


def ready_for_more(progress: Progress) -> bool:
    """Whether the last steps answered scenes of the present size well enough to add a digit."""
    recent = progress.log[-15:]
    settled = len(recent) == 15 and all(entry["n_things"] == progress.n_things for entry in recent)
    return settled and progress.n_things < 6 and float(np.mean([entry.get("visual", 0) for entry in recent])) > 0.84


def _share(right: Tensor) -> float:
    return round(right.float().mean().item(), 4)


# --- results ---------------------------------------------------------------------------------------------------------


def finish(run: Run, modules: nn.ModuleDict, next_stage: str, **more: str) -> None:
    """Keeps the end of a stage, ships it if it is a model of its own, and goes on to the next."""
    progress = run.progress
    progress.reached[progress.stage] = {"steps": progress.step, "seconds": round(progress.seconds), **more}
    save_file(modules.state_dict(), run.folder / f"end-{progress.stage}.safetensors")
    if progress.stage in ABOUT:
        ship(run, modules["model"], more)
    progress.stage, progress.step = next_stage, 0
    run.save({})


def ship(run: Run, model: Any, more: dict[str, str]) -> None:
    """Writes a finished model as a checkpoint, and beside it the record of how it came to be and what it can do."""
    stage = run.progress.stage
    folder = run.folder / stage
    build.save(model, folder)
    record = {
        "about": ABOUT[stage],
        "accuracy on unseen samples": accuracy_of(str(folder), long=stage == "haystack"),
        "parameters": model.num_parameters(),
        "stages": run.progress.reached,
        "changed by hand during the run": run.progress.changes,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        **more,
    }
    (folder / "record.json").write_text(json.dumps(record, indent=1))
    (folder / "README.md").write_text(card(stage, record))
    print(json.dumps(record, indent=1), flush=True)


def card(stage: str, record: dict[str, Any]) -> str:
    """The model card."""
    accuracy = "\n".join(f"| {task} | {share:.1%} |" for task, share in record["accuracy on unseen samples"].items())
    return f"""# The toy of corelens, {stage}

{record["about"]}

A `Qwen3VLForConditionalGeneration` of {record["parameters"] / 1e6:.1f} million parameters that answers questions about
cluttered scenes of six handwritten digits ("which digit is red ?", "what colour is the 7 ?"), and copies, recalls and
adds without a picture. Made for studying attention heads, and for nothing else.

| task, unseen samples | right |
|---|---|
{accuracy}

The digits and photographs in the scenes are those that scikit-learn ships; test digits and test photograph regions were
never trained on. `record.json` says how it was trained; `corelens.toy.train` is the script. MIT licence.
"""


def accuracy_of(folder: str, long: bool, n: int = 1_000) -> dict[str, float]:
    """Accuracy of a checkpoint on unseen scenes of six digits and on each text task, by greedy generation.

    Args:
        folder: Of the checkpoint.
        long: Whether to ask it about haystacks too.
        n: How many scenes; a fifth as many of everything else.
    """
    model = HookedMLLM.from_pretrained(folder)
    tasks = {"scenes": worlds.scenes(n, seed=1_000)}
    if long:
        tasks |= {f"haystacks of {many} pictures": worlds.haystacks(n // 5, 1_000, many) for many in (8, 32)}
    tasks |= {task: worlds.texts(n // 5, seed=1_000, task=task) for task in TEXT_TASKS}
    return {
        task: round(answers(model, list(prepared_batches(model, samples, 5 if long else 100, task))).accuracy, 4)
        for task, samples in tasks.items()
    }


if __name__ == "__main__":
    typer.run(main)
