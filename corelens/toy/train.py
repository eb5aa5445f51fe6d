"""Trains the shipped models: `python -m corelens.toy.train --out RUN --until STAGE`. Interrupt it; it resumes.

Each stage continues from another one, `AFTER` says which:

- `tower`: the vision tower alone. Every visual token that a digit covers by a third or more must name digit and colour
  through a throw-away linear head. From scratch and end to end, nothing is learned.
- `natural`: the whole model, eight questions behind every picture, from two digits a scene to six, mixed with text-only
  tasks in the same vocabulary. Ships as `corelens/toy-natural`.
- `organism`: pressure toward few heads. Step by step the heads whose removal would change the loss least are closed,
  while training goes on. Ships as `corelens/toy`, a model organism.
- `haystack`: up to sixteen scenes before the questions, at positions as far as those of a hundred. The vision tower and
  the closed heads stay as they are. Ships as `corelens/toy-haystack`.
- `reading`, after `natural`: the vision tower alone again, on pictures of all worlds: scenes, shapes on photographs,
  printed pages and bar charts. Of pages and charts it must also say what belongs to what: without that, the decoder
  did not find it out in 1,700 steps.
- `decoding`: the decoder on all worlds, from two things a picture to all, then half the time up to sixteen pictures
  before the questions, stretched as in `haystack`.
- `worlds`: the same with the vision tower, at a twentieth of the rate. Ships as `corelens/toy-worlds`.
- `worlds-organism`: to `worlds` what `organism` is to `natural`. Does not ship.

The data are endless: batch i depends on the seed and i alone, so a resumed run sees what an unbroken one would have.
Pages and charts to train on are printed in fonts that `pip install 'corelens[train]'` brings.
"""

import json
import platform
from collections.abc import Callable, Iterable
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
from corelens.toy.batches import MOST, READ, Batches
from corelens.toy.gates import HeadGates
from corelens.toy.run import Progress, Run, curves, train_stage
from corelens.toy.worlds import TEXT_TASKS

TOWER_STEPS, NATURAL_STEPS, ORGANISM_STEPS, HAYSTACK_STEPS = 1_500, 2_600, 400, 600
READING_STEPS, DECODING_STEPS, WORLDS_STEPS, WORLDS_ORGANISM_STEPS = 900, 1_800, 900, 400
OPEN_HEADS = {"organism": 0.2, "worlds-organism": 0.25}
"""Share of its heads that is left to an organism."""

AFTER = {
    "tower": None,
    "natural": "tower",
    "organism": "natural",
    "haystack": "organism",
    "reading": "natural",
    "decoding": "reading",
    "worlds": "decoding",
    "worlds-organism": "worlds",
}
"""Which stage every stage continues from."""

ABOUT = {
    "natural": "Trained on its tasks alone, with no pressure on its heads.",
    "organism": (
        "A model organism: after ordinary training its heads were closed one after another, least needed first, until "
        "a fifth of them was left, while training went on. Closed heads attend evenly and write nothing. That few "
        "heads do the work is therefore made, not found. How many to leave was chosen with the outcome in view: with "
        "25 of 96 left, ten heads shared the looking and removing five of them cost little; with 12 left, two heads "
        "did it alone and the five best-ranked included heads that copy text."
    ),
    "haystack": (
        "The model organism `corelens/toy`, trained on with up to sixteen pictures before the questions, stretched to "
        "positions as far as those of a hundred. Its vision tower did not learn further, and heads that were closed "
        "stayed closed: that few heads do the work is made, not found."
    ),
    "worlds": (
        "`corelens/toy-natural`, trained on with four kinds of pictures, each alone or among up to fifteen others at "
        "positions as far as those of a hundred, with no pressure on its heads."
    ),
    "worlds-organism": (
        "A model organism: the heads of `corelens/toy-worlds` were closed one after another, least needed first, until "
        "a quarter of them was left, while training went on. Closed heads attend evenly and write nothing. That few "
        "heads do the work is therefore made, not found."
    ),
}


def main(
    out: Annotated[Path, typer.Option(help="Folder of the run; an unfinished run goes on.")],
    until: Annotated[str, typer.Option(help=f"The stage to reach: {', '.join(AFTER)}.")] = "haystack",
    size: Annotated[str, typer.Option(help=f"Of the model: {', '.join(build.SIZES)}.")] = "middle",
    seed: int = 0,
) -> None:
    """Trains what is left to train, and writes every finished model as a checkpoint into the run folder."""
    for name, given, known in (("--until", until, AFTER), ("--size", size, build.SIZES)):
        if given not in known:
            raise typer.BadParameter(f"{given!r} is none of {', '.join(known)}.", param_hint=name)
    run, batches = Run(out), Batches(seed)
    if run.progress.size not in (None, size):
        raise typer.BadParameter(f"{out} holds a run of the size {run.progress.size!r}.", param_hint="--size")
    run.progress.size = size
    model = build.model(seed, build.SIZES[size])
    probe = nn.Linear(model.config.vision_config.out_hidden_size, sum(map(len, READ.values())))
    modules = nn.ModuleDict({"model": model, "probe": probe})
    train = {
        "tower": train_tower,
        "natural": train_natural,
        "organism": train_organism,
        "haystack": train_haystack,
        "reading": train_reading,
        "decoding": train_decoding,
        "worlds": train_worlds,
        "worlds-organism": train_worlds_organism,
    }
    way = [until]
    while (before := AFTER[way[0]]) is not None:
        way.insert(0, before)
    for stage in way:
        if stage not in run.progress.reached:
            run.begin(stage)
            train[stage](run, modules, batches)


def train_tower(run: Run, modules: nn.ModuleDict, batches: Batches) -> None:
    model, probe = cast(Any, modules["model"]), cast(nn.Linear, modules["probe"])
    # DeepStack features are read by the decoder alone, so this stage has no gradient for them.
    seen = [(name, p) for name, p in model.model.visual.named_parameters() if "deepstack" not in name]
    chosen = optimiser([*seen, *probe.named_parameters()], 2e-3)
    train_stage(run, modules, chosen, TOWER_STEPS, lambda step: tower_loss(model, probe, batches.crowded(step)))
    finish(run, modules)


def train_natural(run: Run, modules: nn.ModuleDict, batches: Batches) -> None:
    model, progress = cast(Any, modules["model"]), run.progress
    modules.load_state_dict(load_file(run.folder / "end-tower.safetensors"))
    chosen = optimiser(model.named_parameters(), 2e-3, slow=0.2)

    def loss_at(step: int) -> tuple[Tensor, dict[str, Any]]:
        if ready_for_more(progress, 6):
            progress.n_things += 1
        return chat_loss(model, batches, step, progress.n_things)

    train_stage(run, modules, chosen, NATURAL_STEPS, loss_at)
    finish(run, modules)


def train_organism(run: Run, modules: nn.ModuleDict, batches: Batches) -> None:
    close_heads(
        run,
        modules,
        ORGANISM_STEPS,
        lambda step: chat_loss(modules["model"], batches, NATURAL_STEPS + step, run.progress.n_things),
    )


def train_worlds(run: Run, modules: nn.ModuleDict, batches: Batches) -> None:
    model = cast(Any, modules["model"])
    modules.load_state_dict(load_file(run.folder / "end-decoding.safetensors"))
    model.model.visual.requires_grad_(True)
    chosen = optimiser(model.named_parameters(), 1e-3, slow=0.05)
    train_stage(
        run,
        modules,
        chosen,
        WORLDS_STEPS,
        lambda step: joint_loss(model, batches.mixtures(DECODING_STEPS + step, MOST)),
    )
    finish(run, modules)


def train_worlds_organism(run: Run, modules: nn.ModuleDict, batches: Batches) -> None:
    freeze_tower(modules["model"])
    close_heads(
        run,
        modules,
        WORLDS_ORGANISM_STEPS,
        lambda step: joint_loss(modules["model"], batches.mixtures(DECODING_STEPS + WORLDS_STEPS + step, MOST)),
    )


def close_heads(
    run: Run, modules: nn.ModuleDict, steps: int, loss_of: Callable[[int], tuple[Tensor, dict[str, Any]]]
) -> None:
    """Trains on, while the heads that matter least for the loss are closed until the stage's share of them is left."""
    model, stage = cast(Any, modules["model"]), run.progress.stage
    modules.load_state_dict(load_file(run.folder / f"end-{AFTER[stage]}.safetensors"))
    gates = HeadGates(model)
    gates.load(run.load())
    n_heads, closing = gates.open.numel(), int(0.6 * steps)
    kept = round(OPEN_HEADS[stage] * n_heads)

    def loss_at(step: int) -> tuple[Tensor, dict[str, Any]]:
        if step % 10 == 0 and 0 < step <= closing:
            # Many at first, when most are idle, and few at the end, when each one counts.
            gates.close_to(round(kept + (n_heads - kept) * (1 - step / closing) ** 3))
        with gates.applied():
            loss, right = loss_of(step)
        return loss, right | {"open": int(gates.open.sum())}

    chosen = optimiser(model.named_parameters(), 1e-3, slow=0.2)
    train_stage(run, modules, chosen, steps, loss_at, gates.state)
    gates.make_permanent()
    heads = HeadSet(tuple(Head(*place) for place in gates.open.nonzero().tolist()))
    finish(run, modules, **{"open heads": str(heads)})


def train_haystack(run: Run, modules: nn.ModuleDict, batches: Batches) -> None:
    model = cast(Any, modules["model"])
    modules.load_state_dict(load_file(run.folder / "end-organism.safetensors"))
    model.model.visual.requires_grad_(False)
    gates = HeadGates.of(model)

    def loss_at(step: int) -> tuple[Tensor, dict[str, Any]]:
        with gates.applied():
            return joint_loss(model, batches.haystacks(step))

    train_stage(run, modules, optimiser(model.named_parameters(), 1e-3), HAYSTACK_STEPS, loss_at)
    finish(run, modules)


def train_reading(run: Run, modules: nn.ModuleDict, batches: Batches) -> None:
    model, probe = cast(Any, modules["model"]), cast(nn.Linear, modules["probe"])
    modules.load_state_dict(load_file(run.folder / "end-natural.safetensors"))
    seen = [(name, p) for name, p in model.model.visual.named_parameters() if "deepstack" not in name]
    chosen = optimiser([*seen, *probe.named_parameters()], 2e-3)
    train_stage(run, modules, chosen, READING_STEPS, lambda step: tower_loss(model, probe, batches.various(step)))
    finish(run, modules)


def train_decoding(run: Run, modules: nn.ModuleDict, batches: Batches) -> None:
    model, progress = cast(Any, modules["model"]), run.progress
    modules.load_state_dict(load_file(run.folder / "end-reading.safetensors"))
    if progress.step == 0:
        progress.n_things = 2
    freeze_tower(model)

    def loss_at(step: int) -> tuple[Tensor, dict[str, Any]]:
        if ready_for_more(progress, MOST):
            progress.n_things += 1
        return joint_loss(model, batches.mixtures(step, progress.n_things))

    train_stage(run, modules, optimiser(model.named_parameters(), 2e-3), DECODING_STEPS, loss_at)
    finish(run, modules)


# --- losses ----------------------------------------------------------------------------------------------------------


def tower_loss(
    model: Any, probe: nn.Linear, shown: tuple[dict[str, Tensor], dict[str, Tensor]]
) -> tuple[Tensor, dict[str, Any]]:
    pixels, read = shown
    features = model.model.visual(pixels["pixel_values"], grid_thw=pixels["image_grid_thw"]).pooler_output
    heads = probe(features).split([len(words) for words in READ.values()], -1)
    loss, right = torch.zeros(()), {}
    for (what, target), logits in zip(read.items(), heads, strict=True):
        there = target != -100
        if there.any():
            loss = loss + cross_entropy(logits[there], target[there])
            right[what] = _share(logits[there].argmax(-1) == target[there])
    return loss, right


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
    """AdamW for what is not frozen, with weight decay on matrices only; the tower learns at `slow` times the rate."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters:
        if not parameter.requires_grad:
            continue
        key = (0.1 if parameter.ndim > 1 else 0.0, rate * (slow if ".visual." in name else 1.0))
        groups.setdefault(key, []).append(parameter)
    settings = [{"params": group, "weight_decay": decay, "lr": lr} for (decay, lr), group in groups.items()]
    return torch.optim.AdamW(settings, betas=(0.9, 0.98))


def freeze_tower(model: Any) -> None:
    """Keeps the visual tokens as they are; only what DeepStack adds to them in the decoder learns on.

    What the tower was taught to say would be forgotten before the decoder has learned to listen.
    """
    for name, parameter in model.model.visual.named_parameters():
        parameter.requires_grad_("deepstack" in name)


def ready_for_more(progress: Progress, most: int) -> bool:
    """Whether the last steps answered scenes of the present size well enough to add a digit."""
    recent = progress.log[-15:]
    settled = len(recent) == 15 and all(entry["n_things"] == progress.n_things for entry in recent)
    return settled and progress.n_things < most and float(np.mean([entry.get("visual", 0) for entry in recent])) > 0.84


def _share(right: Tensor) -> float:
    return round(right.float().mean().item(), 4)


# --- results ---------------------------------------------------------------------------------------------------------


def finish(run: Run, modules: nn.ModuleDict, **more: str) -> None:
    """Keeps the end of a stage, and ships it if it is a model of its own."""
    progress = run.progress
    progress.reached[progress.stage] = {"steps": progress.step, "seconds": round(progress.seconds), **more}
    save_file(modules.state_dict(), run.folder / f"end-{progress.stage}.safetensors")
    if progress.stage in ABOUT:
        ship(run, modules["model"], more)
    run.save({})


def ship(run: Run, model: Any, more: dict[str, str]) -> None:
    """Writes a finished model as a checkpoint, and beside it the record of how it came to be and what it can do."""
    stage = run.progress.stage
    folder = run.folder / stage
    build.save(model, folder)
    record = {
        "about": ABOUT[stage],
        "accuracy on unseen samples": accuracy_of(str(folder), stage),
        "parameters": model.num_parameters(),
        "stages": run.progress.reached,
        "changed by hand during the run": run.progress.changes,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        **more,
    }
    (folder / "record.json").write_text(json.dumps(record, indent=1))
    (folder / "curves.json").write_text(json.dumps(curves(run.progress.log)))
    (folder / "README.md").write_text(card(stage, record))
    print(json.dumps(record, indent=1), flush=True)


def card(stage: str, record: dict[str, Any]) -> str:
    """The model card."""
    accuracy = "\n".join(f"| {task} | {share:.1%} |" for task, share in record["accuracy on unseen samples"].items())
    more = (
        """, about shapes pasted into photographs ("which shape is blue ?"), printed
pages ("what is the bolt price ?") and bar charts ("how high is fri ?"), with one picture or many"""
        if stage.startswith("worlds")
        else ""
    )
    return f"""# The toy of corelens, {stage}

{record["about"]}

A `Qwen3VLForConditionalGeneration` of {record["parameters"] / 1e6:.1f} million parameters that answers questions about
cluttered scenes of six handwritten digits ("which digit is red ?", "what colour is the 7 ?"){more}, and copies, recalls
and adds without a picture. Made for studying attention heads, and for nothing else.

| task, unseen samples | right |
|---|---|
{accuracy}

The digits and photographs are those that scikit-learn ships; test digits, photograph regions, layouts and the test font
were never trained on. `record.json` says how it was trained; `corelens.toy.train` is the script. MIT licence.
"""


def accuracy_of(folder: str, stage: str, n: int = 1_000) -> dict[str, float]:
    """Accuracy of a checkpoint on unseen pictures and on each text task, by greedy generation.

    Args:
        folder: Of the checkpoint.
        stage: That it comes from, which says what it was trained for.
        n: How many scenes; a fifth as many of haystacks and of each text task, half as many of every other world.
    """
    model = HookedMLLM.from_pretrained(folder)
    tasks = {"scenes": worlds.scenes(n, seed=1_000)}
    if stage == "haystack":
        tasks |= {f"haystacks of {many} pictures": worlds.haystacks(n // 5, 1_000, many) for many in (8, 32)}
    if stage.startswith("worlds"):
        tasks |= {world: worlds.pictures(world, n // 2, seed=1_000) for world in worlds.WORLDS if world != "digits"}
        tasks |= {f"mixtures of {many} pictures": worlds.mixtures(n // 5, 1_000, many) for many in (8, 32)}
    tasks |= {task: worlds.texts(n // 5, seed=1_000, task=task) for task in TEXT_TASKS}
    return {
        task: round(
            answers(model, list(prepared_batches(model, samples, 5 if " of " in task else 100, task))).accuracy, 4
        )
        for task, samples in tasks.items()
    }


if __name__ == "__main__":
    typer.run(main)
