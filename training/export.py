"""Export of a trained model: a checkpoint, the record of its training, and a model card."""

import json
import platform
from typing import Any

import torch

from corelens import toy
from corelens.causal import evaluate
from corelens.data import prepare_batches
from corelens.model import HookedMLLM
from corelens.toy import TEXT_TASKS
from training import build
from training.run import Run, curves
from training.stages import STAGES


def export(run: Run, model: Any) -> None:
    """Save the model of the run's stage as a checkpoint, with its record, its curves and its card."""
    progress = run.progress
    folder = run.folder / progress.stage
    build.save(model, folder)
    record = {
        "about": STAGES[progress.stage].about,
        "accuracy on unseen samples": accuracy_of(str(folder), progress.stage),
        "parameters": model.num_parameters(),
        "stages": progress.reached,
        "changed by hand during the run": progress.changes,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
    }
    (folder / "record.json").write_text(json.dumps(record, indent=1))
    (folder / "curves.json").write_text(json.dumps(curves(progress.log)))
    (folder / "README.md").write_text(model_card(f"{progress.stage}, {progress.size}", record))
    print(json.dumps(record, indent=1), flush=True)


def model_card(name: str, record: dict[str, Any]) -> str:
    """Text of the model card."""
    accuracy = "\n".join(f"| {task} | {share:.1%} |" for task, share in record["accuracy on unseen samples"].items())
    more = (
        """, about shapes pasted into photographs ("which shape is blue ?"), printed
pages ("what is the bolt price ?") and bar charts ("how high is fri ?"), with one picture or many"""
        if name.startswith("worlds")
        else ""
    )
    return f"""# The toy of corelens, {name}

{record["about"]}

A `Qwen3VLForConditionalGeneration` of {record["parameters"] / 1e6:.1f} million parameters that answers questions about
cluttered scenes of six handwritten digits ("which digit is red ?", "what colour is the 7 ?"){more}, and copies, recalls
and adds without a picture. Made for studying attention heads, and for nothing else.

| task, unseen samples | right |
|---|---|
{accuracy}

The digits and photographs are those that scikit-learn ships; test digits, photograph regions, layouts and the test font
were never trained on. `record.json` says how it was trained; `training/train.py` in the
repository of corelens is the script. MIT licence.
"""


def accuracy_of(folder: str, stage: str, n: int = 1_000) -> dict[str, float]:
    """Measure the accuracy of a checkpoint on unseen pictures and on each text task, by greedy generation.

    Args:
        folder: Folder of the checkpoint.
        stage: Its training stage, which determines its tasks.
        n: Number of scenes; a fifth as many of haystacks and of each text task, half as many of every other world.
    """
    model = HookedMLLM.from_pretrained(folder)
    tasks = {"scenes": toy.scenes(n, seed=1_000)}
    if stage == "haystack":
        tasks |= {
            f"haystacks of {n_pictures} pictures": toy.haystacks(n // 5, 1_000, n_pictures) for n_pictures in (8, 32)
        }
    if stage.startswith("worlds"):
        tasks |= {world: toy.pictures(world, n // 2, seed=1_000) for world in toy.WORLDS if world != "digits"}
        tasks |= {
            f"mixtures of {n_pictures} pictures": toy.mixtures(n // 5, 1_000, n_pictures) for n_pictures in (8, 32)
        }
    tasks |= {task: toy.texts(n // 5, seed=1_000, task=task) for task in TEXT_TASKS}
    return {
        task: round(
            evaluate(model, list(prepare_batches(model, samples, 5 if " of " in task else 100, task))).accuracy, 4
        )
        for task, samples in tasks.items()
    }
