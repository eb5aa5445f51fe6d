"""Export of a run: what was trained, in float16, with the record of its training and its curves."""

import json
import platform
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from corelens import smol
from corelens.causal import evaluate
from corelens.data import prepare_batches
from corelens.hf.smol import join
from corelens.model import HookedMLLM
from training.run import Run, curves
from training.smol.build import model_and_processor

PAGE = Path(__file__).parents[2] / "README.md"
"""Plain text on which perplexities are measured; training reads another."""


def export(run: Run, model: Any, updates: nn.ModuleDict, n: int = 100) -> None:
    """Save what was trained, join it with the language model, and measure both.

    Args:
        run: The finished run; the folder `smol` in it is written.
        model: The trained model.
        updates: Its low-rank updates.
        n: Unseen samples of each world and of lists.
    """
    folder = run.folder / "smol"
    folder.mkdir(exist_ok=True)
    parts = {"tower": model.model.vision_model, "connector": model.model.connector, "updates": updates}
    trained = {
        f"{part}.{name}": tensor.half().contiguous()
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
    }
    save_file(trained, folder / "trained.safetensors")
    model.config.save_pretrained(folder)
    record: dict[str, Any] = {
        "questions": "smol",
        "about": "SmolLM2-135M-Instruct with a vision tower, a connector and low-rank updates of its attention, "
        "trained on five kinds of pictures with no pressure on its heads.",
        "parameters": sum(tensor.numel() for tensor in trained.values()),
        "stages": run.progress.reached,
        "changed by hand during the run": run.progress.changes,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
    }
    write_json(folder / "record.json", record)
    write_json(folder / "curves.json", curves(run.progress.log))
    join(folder, run.folder / "joined")
    after = HookedMLLM.from_pretrained(str(run.folder / "joined"))
    before = HookedMLLM(*model_and_processor(0))
    record["accuracy on unseen samples"] = accuracies(after, n)
    record["of written lists before training"] = accuracy(before, smol.lists(n, 1_000))
    record["perplexity of a page"] = {"before": perplexity(before), "after": perplexity(after)}
    write_json(folder / "record.json", record)
    print(json.dumps(record, indent=1), flush=True)


def write_json(path: Path, value: Any) -> None:
    """Write a value in readable form."""
    path.write_text(json.dumps(value, indent=1))


def accuracies(model: HookedMLLM, n: int) -> dict[str, float]:
    """Share of right answers, by greedy generation, of each world and of each question that one asks, and of lists."""
    found = {}
    for world in smol.ENGLISH_WORLDS:
        samples = list(smol.pictures(world, n, seed=1_000))
        result = evaluate(model, list(prepare_batches(model, samples, 20, world)), max_new_tokens=6)
        found[world] = round(result.accuracy, 4)
        for task in dict.fromkeys(sample.about["task"] for sample in samples):
            is_of_task = torch.tensor([sample.about["task"] == task for sample in samples])
            found[f"{world}, {task}"] = round(result.scores[is_of_task].mean().item(), 4)
    return found | {"lists": accuracy(model, smol.lists(n, 1_000))}


def accuracy(model: HookedMLLM, samples: Any) -> float:
    """Share of right answers, by greedy generation."""
    return round(
        evaluate(model, list(prepare_batches(model, list(samples), 20, "lists")), max_new_tokens=6).accuracy, 4
    )


def perplexity(model: HookedMLLM) -> float:
    """Exponential of the mean loss on the first two thousand tokens of a page of plain text, in pieces of 500."""
    ids = model.tokenizer(PAGE.read_text(), return_tensors="pt").input_ids[:, :2_000]
    losses = [model.hf_model(input_ids=piece, labels=piece).loss.item() for piece in ids.split(500, 1)]
    return round(torch.tensor(losses).mean().exp().item(), 3)
