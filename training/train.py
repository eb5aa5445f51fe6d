"""Train the shipped models: `python -m training.train --out RUN --until STAGE`, in the root of the repository.

An interrupted run resumes. `training.stages` lists the stages. Batch i of a stage depends on the seed, the stage and i
alone, so a resumed run sees the same data as an uninterrupted one. Training on pages and charts needs the fonts of
`pip install -e '.[train]'`.
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
from training.batches import PROBE_WORDS, Batches
from training.export import export
from training.gates import HeadGates
from training.run import Progress, Run, train_stage
from training.stages import STAGES, Stage, path_to


def main(
    out: Annotated[Path, typer.Option(help="Folder of the run; an unfinished run is resumed.")],
    until: Annotated[str, typer.Option(help=f"The stage to reach: {', '.join(STAGES)}.")] = "haystack",
    size: Annotated[str, typer.Option(help=f"Size of the model: {', '.join(build.SIZES)}.")] = "middle",
    seed: int = 0,
) -> None:
    """Train the remaining stages, and save every finished model as a checkpoint in the run folder."""
    for option, value, choices in (("--until", until, STAGES), ("--size", size, build.SIZES)):
        if value not in choices:
            raise typer.BadParameter(f"{value!r} is none of {', '.join(choices)}.", param_hint=option)
    run, batches = Run(out), Batches()
    if run.progress.size not in (None, size):
        raise typer.BadParameter(f"{out} contains a run of the size {run.progress.size!r}.", param_hint="--size")
    run.progress.size = size
    model = build.model(seed, build.SIZES[size])
    model.model.visual.set_attn_implementation("eager")  # On a CPU its backward pass is faster.
    probe = nn.Linear(model.config.vision_config.out_hidden_size, sum(map(len, PROBE_WORDS.values())))
    modules = nn.ModuleDict({"model": model, "probe": probe})
    for stage in path_to(until):
        if stage not in run.progress.reached:
            run.begin(stage)
            train(run, modules, batches, seed)


def train(run: Run, modules: nn.ModuleDict, batches: Batches, seed: int) -> None:
    """Train one stage to its end, and export its model if the stage has one."""
    progress, model, probe = run.progress, cast(Any, modules["model"]), cast(nn.Linear, modules["probe"])
    name, stage = progress.stage, STAGES[progress.stage]
    if stage.after is not None:
        modules.load_state_dict(load_file(run.folder / f"end-{stage.after}.safetensors"))
    if progress.step == 0:
        progress.n_things = stage.things[0]
    gates = HeadGates.of(model)
    gates.load(run.load())

    def loss_at(step: int) -> tuple[Tensor, dict[str, Any]]:
        if should_add_thing(progress, stage.things[1]):
            progress.n_things += 1
        rng = np.random.default_rng([seed, [*STAGES].index(name), step])
        loss, shares = torch.zeros(()), {}
        if stage.pictures is not None:
            loss, shares = tower_loss(model, probe, *stage.pictures(batches, rng, progress.n_things))
        if stage.chats is not None:
            if stage.open_heads is not None:
                close_heads(gates, step, stage)
            with gates.applied():
                chat_loss, chat_shares = joint_loss(model, *stage.chats(batches, rng, progress.n_things))
            loss, shares = loss + chat_loss, shares | chat_shares | {"open": int(gates.open.sum())}
        return loss, shares

    train_stage(run, modules, optimisers(modules, stage), stage.steps, loss_at, gates.state)
    progress.reached[name] = {"steps": progress.step, "seconds": round(progress.seconds)}
    if stage.open_heads is not None:
        gates.make_permanent()
        progress.reached[name]["open heads"] = str(
            HeadSet(tuple(Head(*index) for index in gates.open.nonzero().tolist()))
        )
    save_file(modules.state_dict(), run.folder / f"end-{name}.safetensors")
    if stage.about is not None:
        export(run, model)
    run.save({})


def should_add_thing(progress: Progress, max_things: int) -> bool:
    """True if the accuracy of the last steps at this number of things is high enough for one more."""
    recent = progress.log[-15:]
    is_settled = len(recent) == 15 and all(
        (entry["stage"], entry["n_things"]) == (progress.stage, progress.n_things) for entry in recent
    )
    return (
        is_settled and progress.n_things < max_things and float(np.mean([entry["visual"] for entry in recent])) > 0.84
    )


def close_heads(gates: HeadGates, step: int, stage: Stage) -> None:
    """Close heads every ten steps: many at first, when most are idle, and few at the end, when each one counts."""
    n_heads, last_step = gates.open.numel(), int(0.6 * stage.steps)
    n_open = round(cast(float, stage.open_heads) * n_heads)
    if step % 10 == 0 and 0 < step <= last_step:
        gates.close_to(round(n_open + (n_heads - n_open) * (1 - step / last_step) ** 3))


def optimisers(modules: nn.ModuleDict, stage: Stage) -> list[torch.optim.Optimizer]:
    """Muon for the weight matrices and AdamW, slower, for all else that a stage trains; the rest is frozen."""
    matrices: dict[float, list[nn.Parameter]] = {}
    others: dict[float, list[nn.Parameter]] = {}
    for name, parameter in modules.named_parameters():
        # The DeepStack mergers feed the decoder, and learn with it.
        in_tower = ".visual." in name and "deepstack" not in name
        batches = stage.pictures if name.startswith("probe") else stage.chats
        share = stage.tower if in_tower else float(batches is not None)
        parameter.requires_grad_(share > 0)
        if share > 0:
            # Rows of embeddings, unembedding and probe belong to single words or positions.
            by_row = any(part in name for part in ("embed", "lm_head", "probe"))
            groups = others if by_row or parameter.ndim != 2 else matrices
            groups.setdefault(stage.rate * share, []).append(parameter)

    def settings(groups: dict[float, list[nn.Parameter]], divisor: int) -> list[dict[str, Any]]:
        return [{"params": group, "lr": rate / divisor} for rate, group in groups.items()]

    return [
        torch.optim.Muon(settings(matrices, 1), weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(settings(others, 4), betas=(0.9, 0.98), weight_decay=0.0),
    ]


def tower_loss(
    model: Any, probe: nn.Linear, pixels: dict[str, Tensor], labels: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Any]]:
    """Mean cross-entropy of the probe at labelled tokens, summed over `PROBE_WORDS`, and the accuracy of each."""
    with torch.autocast("cpu", torch.bfloat16):
        features = model.model.visual(pixels["pixel_values"], grid_thw=pixels["image_grid_thw"]).pooler_output
        all_logits = probe(features).split([len(words) for words in PROBE_WORDS.values()], -1)
    loss, shares = torch.zeros(()), {}
    for (name, target), logits in zip(labels.items(), all_logits, strict=True):
        has_label = target != -100
        if has_label.any():
            loss = loss + cross_entropy(logits[has_label], target[has_label])
            shares[name] = _share(logits[has_label].argmax(-1) == target[has_label])
    return loss, shares


def joint_loss(model: Any, visual: dict[str, Tensor], text: dict[str, Tensor]) -> tuple[Tensor, dict[str, Any]]:
    """Sum of the losses of chats with and without pictures, and the accuracy of each."""
    visual_loss, visual_correct = answer_loss(model, visual)
    text_loss, text_correct = answer_loss(model, text)
    # Half of the target words after a picture are the end of the turn, which is always correct.
    return visual_loss + text_loss, {"visual": 2 * _share(visual_correct) - 1, "text": _share(text_correct)}


def answer_loss(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of the target words, and the mask of those predicted correctly."""
    inputs = {name: tensor for name, tensor in batch.items() if name not in ("labels", "stretch")}
    if "stretch" in batch:
        rope_inputs = {name: tensor for name, tensor in inputs.items() if name != "pixel_values"}
        inputs["position_ids"] = model.model.get_rope_index(**rope_inputs)[0] + batch["stretch"]
    # On a CPU, the backward pass of fused attention is faster only for long inputs.
    is_long = batch["input_ids"].shape[1] > 500
    model.model.language_model.set_attn_implementation("sdpa" if is_long else "eager")
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(**inputs).logits[:, :-1]
    target = batch["labels"][:, 1:]
    is_target = target != -100
    return cross_entropy(logits[is_target], target[is_target]), logits[is_target].argmax(-1) == target[is_target]


def _share(correct: Tensor) -> float:
    return round(correct.float().mean().item(), 4)


if __name__ == "__main__":
    typer.run(main)
