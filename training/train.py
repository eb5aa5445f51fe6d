"""Trains the shipped models: `python -m training.train --out RUN --until STAGE`. Interrupt it; it resumes.

`training.stages` says what the stages are. The data are endless: batch i of a stage depends on the seed, the stage
and i alone, so a resumed run sees what an unbroken one would have. Pages and charts to train on are printed in fonts
that `pip install 'corelens[train]'` brings.
"""

from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
import typer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from corelens.heads import Head, HeadSet
from training import build
from training.batches import READ, Batches
from training.export import ship
from training.gates import HeadGates
from training.run import Progress, Run, train_stage
from training.stages import STAGES, Stage, way_to


def main(
    out: Annotated[Path, typer.Option(help="Folder of the run; an unfinished run goes on.")],
    until: Annotated[str, typer.Option(help=f"The stage to reach: {', '.join(STAGES)}.")] = "haystack",
    size: Annotated[str, typer.Option(help=f"Of the model: {', '.join(build.SIZES)}.")] = "middle",
    seed: int = 0,
) -> None:
    """Trains what is left to train, and writes every finished model as a checkpoint into the run folder."""
    for name, given, known in (("--until", until, STAGES), ("--size", size, build.SIZES)):
        if given not in known:
            raise typer.BadParameter(f"{given!r} is none of {', '.join(known)}.", param_hint=name)
    run, batches = Run(out), Batches()
    if run.progress.size not in (None, size):
        raise typer.BadParameter(f"{out} holds a run of the size {run.progress.size!r}.", param_hint="--size")
    run.progress.size = size
    model = build.model(seed, build.SIZES[size])
    model.model.visual.set_attn_implementation("eager")  # On a CPU its backward pass is faster.
    probe = nn.Linear(model.config.vision_config.out_hidden_size, sum(map(len, READ.values())))
    modules = nn.ModuleDict({"model": model, "probe": probe})
    for stage in way_to(until):
        if stage not in run.progress.reached:
            run.begin(stage)
            train(run, modules, batches, seed)


def train(run: Run, modules: nn.ModuleDict, batches: Batches, seed: int) -> None:
    """Trains one stage to its end, and ships the model if it is one of its own."""
    progress, model, probe = run.progress, cast(Any, modules["model"]), cast(nn.Linear, modules["probe"])
    name, stage = progress.stage, STAGES[progress.stage]
    if stage.after is not None:
        modules.load_state_dict(load_file(run.folder / f"end-{stage.after}.safetensors"))
    if progress.step == 0:
        progress.n_things = stage.things[0]
    gates = HeadGates.of(model)
    gates.load(run.load())

    def loss_at(step: int) -> tuple[Tensor, dict[str, Any]]:
        if ready_for_more(progress, stage.things[1]):
            progress.n_things += 1
        rng = np.random.default_rng([seed, [*STAGES].index(name), step])
        loss, right = torch.zeros(()), {}
        if stage.pictures is not None:
            loss, right = tower_loss(model, probe, *stage.pictures(batches, rng, progress.n_things))
        if stage.chats is not None:
            if stage.open_heads is not None:
                close_heads(gates, step, stage)
            with gates.applied():
                answered, shares = joint_loss(model, *stage.chats(batches, rng, progress.n_things))
            loss, right = loss + answered, right | shares | {"open": int(gates.open.sum())}
        return loss, right

    train_stage(run, modules, optimisers(modules, stage), stage.steps, loss_at, gates.state)
    progress.reached[name] = {"steps": progress.step, "seconds": round(progress.seconds)}
    if stage.open_heads is not None:
        gates.make_permanent()
        progress.reached[name]["open heads"] = str(HeadSet(tuple(Head(*at) for at in gates.open.nonzero().tolist())))
    save_file(modules.state_dict(), run.folder / f"end-{name}.safetensors")
    if stage.about is not None:
        ship(run, model)
    run.save({})


def ready_for_more(progress: Progress, most: int) -> bool:
    """Whether the last steps answered pictures of so many things well enough to show one more."""
    recent = progress.log[-15:]
    settled = len(recent) == 15 and all(
        (entry["stage"], entry["n_things"]) == (progress.stage, progress.n_things) for entry in recent
    )
    return settled and progress.n_things < most and float(np.mean([entry["visual"] for entry in recent])) > 0.84


def close_heads(gates: HeadGates, step: int, stage: Stage) -> None:
    """Every ten steps, many heads at first, when most are idle, and few at the end, when each one counts."""
    n_heads, closing = gates.open.numel(), int(0.6 * stage.steps)
    kept = round(cast(float, stage.open_heads) * n_heads)
    if step % 10 == 0 and 0 < step <= closing:
        gates.close_to(round(kept + (n_heads - kept) * (1 - step / closing) ** 3))


def optimisers(modules: nn.ModuleDict, stage: Stage) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of layers and AdamW, slower, for all else that learns in a stage; the rest is frozen."""
    matrices: dict[float, list[nn.Parameter]] = {}
    others: dict[float, list[nn.Parameter]] = {}
    for name, parameter in modules.named_parameters():
        # What DeepStack adds to the visual tokens inside the decoder is the decoder's to learn.
        in_tower = ".visual." in name and "deepstack" not in name
        teaches = stage.pictures if name.startswith("probe") else stage.chats
        share = stage.tower if in_tower else float(teaches is not None)
        parameter.requires_grad_(share > 0)
        if share > 0:
            # Of embeddings, and of what names words, each row is a word's or a place's own.
            by_row = any(part in name for part in ("embed", "lm_head", "probe"))
            groups = others if by_row or parameter.ndim != 2 else matrices
            groups.setdefault(stage.rate * share, []).append(parameter)

    def settings(groups: dict[float, list[nn.Parameter]], slower: int) -> list[dict[str, Any]]:
        return [{"params": group, "lr": rate / slower} for rate, group in groups.items()]

    return [
        torch.optim.Muon(settings(matrices, 1), weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(settings(others, 4), betas=(0.9, 0.98), weight_decay=0.0),
    ]


# --- losses ----------------------------------------------------------------------------------------------------------


def tower_loss(
    model: Any, probe: nn.Linear, pixels: dict[str, Tensor], read: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Any]]:
    """Mean cross-entropy of what the tokens should say, summed over `READ`, and the share of each said right."""
    with torch.autocast("cpu", torch.bfloat16):
        features = model.model.visual(pixels["pixel_values"], grid_thw=pixels["image_grid_thw"]).pooler_output
        heads = probe(features).split([len(words) for words in READ.values()], -1)
    loss, right = torch.zeros(()), {}
    for (what, target), logits in zip(read.items(), heads, strict=True):
        there = target != -100
        if there.any():
            loss = loss + cross_entropy(logits[there], target[there])
            right[what] = _share(logits[there].argmax(-1) == target[there])
    return loss, right


def joint_loss(model: Any, seen: dict[str, Tensor], read: dict[str, Tensor]) -> tuple[Tensor, dict[str, Any]]:
    """The losses of chats about pictures and of chats without, added, and the share of each answered right."""
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
    # On a CPU, the backward pass of fused attention pays only from some length on.
    long = batch["input_ids"].shape[1] > 500
    model.model.language_model.set_attn_implementation("sdpa" if long else "eager")
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(**given).logits[:, :-1]
    target = batch["labels"][:, 1:]
    said = target != -100
    return cross_entropy(logits[said], target[said]), logits[said].argmax(-1) == target[said]


def _share(right: Tensor) -> float:
    return round(right.float().mean().item(), 4)


if __name__ == "__main__":
    typer.run(main)
