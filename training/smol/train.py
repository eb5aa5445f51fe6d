"""Train `corelens/smol`: `python -m training.smol.train --out RUN`, in the root of the repository.

An interrupted run resumes. Batch i of a stage depends on the seed, the stage and i alone.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from training.muon import Muon
from training.run import Run, train_stage
from training.smol import chats, language, tower
from training.smol.build import model_and_processor
from training.smol.export import export
from training.smol.low_rank import add_updates


def main(
    out: Annotated[Path, typer.Option(help="Folder of the run; an unfinished run is resumed.")],
    seed: int = 0,
) -> None:
    """Train the vision tower, its connector, then the connector and low-rank updates on questions."""
    run = Run(out)
    model, processor = model_and_processor(seed)
    tokenizer = processor.tokenizer
    model.requires_grad_(False)
    train_tower(run, model, seed, 1_600)
    train_connector(run, model, tokenizer, seed, 1_000)
    export(run, model, train_language(run, model, tokenizer, seed, 1_200))


def train_tower(run: Run, model: Any, seed: int, steps: int) -> None:
    """Train the vision tower alone to name what every token covers, or load it if that was done."""
    tower.start_from_toy(model)
    n_features = model.model.connector.modality_projection.proj.in_features
    probe = nn.Linear(n_features, len(tower.WORDS))
    modules = nn.ModuleDict({"tower": model.model.vision_model, "probe": probe})
    model.model.vision_model.set_attn_implementation("sdpa")

    def loss_at(step: int) -> tuple[Tensor, dict[str, Any]]:
        return tower.loss(model, probe, *tower.batch(np.random.default_rng([seed, 0, step]), tower.PICTURES))

    train_or_load(run, "tower", modules, optimisers(modules, 8e-3), steps, loss_at)


def train_connector(run: Run, model: Any, tokenizer: Any, seed: int, steps: int) -> None:
    """Train tower and connector to land at the language model's embeddings, or load them if that was done."""
    modules = nn.ModuleDict({"tower": model.model.vision_model, "connector": model.model.connector})
    tower.align_connector(model, tokenizer, seed)
    rows = tower.word_embeddings(model, tokenizer)

    def loss_at(step: int) -> tuple[Tensor, dict[str, Any]]:
        return tower.landing_loss(model, rows, *tower.batch(np.random.default_rng([seed, 3, step]), tower.PICTURES))

    train_or_load(run, "connector", modules, optimisers(modules, 2e-3), steps, loss_at)


def train_language(run: Run, model: Any, tokenizer: Any, seed: int, steps: int) -> nn.ModuleDict:
    """Train low-rank updates on answers, beside plain text on which nothing may change.

    Tower and connector go on learning to land at the embeddings.

    Returns:
        The updates.
    """
    # Frozen weights lose nothing that training would miss, and processors with bfloat16 are twice as fast in it.
    # Buffers stay: angles of late positions are wrong in it.
    for parameter in model.model.text_model.parameters():
        parameter.data = parameter.data.bfloat16()
    updates = add_updates(model.model.text_model)
    sees = nn.ModuleDict({"tower": model.model.vision_model, "connector": model.model.connector})
    modules = nn.ModuleDict({**sees, "updates": updates})
    rows = tower.word_embeddings(model, tokenizer).float()
    # On a CPU its backward pass is faster at these lengths.
    model.model.text_model.set_attn_implementation("eager")

    # Of the last step that had lists or plain text.
    last = {"text": 0.0, "plain": 0.0}

    def loss_at(step: int) -> tuple[Tensor, dict[str, Any]]:
        rng = np.random.default_rng([seed, 1, step])
        loss, is_right = language.answer_loss(model, chats.picture_chats(tokenizer, rng))
        shares = {"visual": share(is_right)}
        if step % 2:
            read, is_right = language.answer_loss(model, chats.list_chats(tokenizer, rng))
            last["text"], loss = share(is_right), loss + 0.5 * read
        else:
            plain = language.plain_loss(model, updates, chats.plain_tokens(tokenizer, rng))
            last["plain"], loss = round(plain.item(), 4), loss + 2 * plain
        labelled = tower.batch(np.random.default_rng([seed, 4, step]), tower.LATER_PICTURES)
        landing, named = tower.landing_loss(model, rows, *labelled)
        return loss + landing, shares | last | named

    # The connector's weights are small: at a rate of the updates' it forgets within 50 steps where to land.
    rates = [torch.optim.AdamW(updates.parameters(), lr=1e-3, weight_decay=0.01), *optimisers(sees, 5e-4)]
    train_or_load(run, "language", modules, rates, steps, loss_at)
    return updates


def train_or_load(
    run: Run,
    name: str,
    modules: nn.ModuleDict,
    optimisers: Sequence[torch.optim.Optimizer],
    steps: int,
    loss_at: Callable[[int], tuple[Tensor, dict[str, Any]]],
) -> None:
    """Train the modules of a stage and save them, or load them if that was done; afterwards they are frozen."""
    end = run.folder / f"end-{name}.safetensors"
    if end.exists():
        modules.load_state_dict(load_file(end))
        return
    run.begin(name)
    modules.requires_grad_(True)
    train_stage(run, modules, optimisers, steps, loss_at)
    modules.requires_grad_(False)
    save_file(modules.state_dict(), end)
    run.progress.reached[name] = {"steps": steps, "seconds": round(run.progress.seconds)}
    run.save({})


def share(is_right: Tensor) -> float:
    """Share of the tokens of answers that are predicted, ends of turns aside, which always are."""
    return round(2 * is_right.float().mean().item() - 1, 4)


def optimisers(modules: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for weight matrices, and AdamW with a quarter of its rate for all else."""
    matrices, others = [], []
    for name, parameter in modules.named_parameters():
        (others if "embed" in name or "probe" in name or parameter.ndim != 2 else matrices).append(parameter)
    return [
        Muon(matrices, rate),
        torch.optim.AdamW(others, lr=rate / 4, betas=(0.9, 0.98), weight_decay=0.0),
    ]


if __name__ == "__main__":
    typer.run(main)
