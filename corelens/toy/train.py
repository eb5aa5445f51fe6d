"""Trains the shipped models: `python -m corelens.toy.train --out RUN`. Interrupt it at any time; it resumes.

Three stages, each of which continues from the one before:

1. `tower`: the vision tower alone. Every visual token that a digit covers by a third or more must name digit and
   colour through a throw-away linear head. From scratch and end to end, nothing is learned.
2. `natural`: the whole model, eight questions behind every picture, from two digits a scene to six, mixed with
   text-only tasks in the same vocabulary. The result ships as `corelens/toy-natural`.
3. `organism`: pressure toward few heads. Step by step the heads whose removal would change the loss least are closed
   until `HEADS_KEPT` are left, while training goes on. The result ships as `corelens/toy`, a model organism.

The data are endless: batch i depends on the seed and i alone, so a resumed run sees what an unbroken one would have.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
import typer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from corelens.data import Sample
from corelens.heads import Head, HeadSet
from corelens.toy import build, worlds
from corelens.toy.worlds import COLOURS, DIGITS, TEXT_TASKS

SEED = 0
TOWER_STEPS, NATURAL_STEPS, ORGANISM_STEPS = 1_500, 2_000, 500
TURNS = 8
IMAGES, TEXTS = 24, 16
TEXT_SHARES = (0.2, 0.6, 0.2)
"""How often each of `TEXT_TASKS` is asked: recall takes longest to learn."""
HEADS_KEPT = 12
SAVE_EVERY = 50


@dataclass
class Progress:
    """What a run has done, saved beside its weights."""

    stage: str = "tower"
    step: int = 0
    n_things: int = 2
    """Digits a scene, raised as the model learns."""
    log: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    reached: dict[str, Any] = field(default_factory=dict)
    """What every finished stage reached on unseen samples, and how long training had taken by then."""


# --- batches ---------------------------------------------------------------------------------------------------------


def chat_words(turns: Iterable[tuple[str, str]], n_visual: int) -> tuple[list[str], list[bool]]:
    """The words of a chat as the template renders them, and which of them the model must learn to say."""
    words, said = [], []
    for index, (question, answer) in enumerate(turns):
        picture = [build.VISION_START, *[build.IMAGE] * n_visual, build.VISION_END] if n_visual and not index else []
        asked = [build.START, "user", *picture, *question.split(), build.END, build.START, "assistant"]
        answered = [*answer.split(), build.END]
        words += asked + answered
        said += [False] * len(asked) + [True] * len(answered)
    return words, said


def collate(tokenizer: Any, chats: list[tuple[list[str], list[bool]]]) -> dict[str, Tensor]:
    """Right-padded tensors for the model's forward pass, with labels at the words that it must say."""
    length = max(len(words) for words, _ in chats)
    ids = torch.full((len(chats), length), tokenizer.pad_token_id)
    labels = torch.full((len(chats), length), -100)
    attention_mask = torch.zeros(len(chats), length, dtype=torch.long)
    for row, (words, said) in enumerate(chats):
        row_ids = torch.tensor(tokenizer.convert_tokens_to_ids(words))
        ids[row, : len(words)] = row_ids
        labels[row, : len(words)] = torch.where(torch.tensor(said), row_ids, -100)
        attention_mask[row, : len(words)] = 1
    image = tokenizer.convert_tokens_to_ids(build.IMAGE)
    return {
        "input_ids": ids,
        "attention_mask": attention_mask,
        "mm_token_type_ids": (ids == image).long(),
        "labels": labels,
    }


def answer_loss(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Mean cross-entropy of the words to say; whether each was the likeliest; and their positions, [row, position]."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    logits = model(**inputs).logits[:, :-1]
    target = batch["labels"][:, 1:]
    said = target != -100
    right = logits[said].argmax(-1) == target[said]
    return cross_entropy(logits[said].float(), target[said]), right, said


class Batches:
    """Training batch `step` of a stage, from the seed alone."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.tokenizer = build.tokenizer()
        self.image_processor = build.image_processor()

    def crowded(self, step: int, n: int = 32) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Scenes of 14 digits, and the digit and colour that each visual token shows (-100 where it shows none)."""
        rng = np.random.default_rng([self.seed, 1, step])
        drawn = [worlds.draw_scene(rng, 14, "train", distinct=False) for _ in range(n)]
        cell = build.PATCH * build.MERGE
        side = worlds.SIDE // cell
        digit, colour = (torch.full((n, side, side), -100) for _ in range(2))
        for index, scene in enumerate(drawn):
            for thing in scene.things:
                for row in range(side):
                    for column in range(side):
                        width = min(thing.box.right, (column + 1) * cell) - max(thing.box.left, column * cell)
                        height = min(thing.box.bottom, (row + 1) * cell) - max(thing.box.top, row * cell)
                        if width > 0 and height > 0 and width * height >= cell * cell / 3:
                            digit[index, row, column] = DIGITS.index(thing.digit)
                            colour[index, row, column] = tuple(COLOURS).index(thing.colour)
        return self._pixels([scene.image() for scene in drawn]), digit.flatten(), colour.flatten()

    def chats(self, step: int, n_things: int) -> list[dict[str, Tensor]]:
        """One batch of pictures and one of text-only chats, eight questions each."""
        rng = np.random.default_rng([self.seed, 2, step])
        seen, pictures = [], []
        for _ in range(IMAGES):
            scene = worlds.draw_scene(rng, int(rng.integers(max(1, n_things - 1), n_things + 1)), "train")
            pictures.append(scene.image())
            seen.append(chat_words([worlds.ask(rng, scene)[:2] for _ in range(TURNS)], self.n_visual))
        read = []
        for _ in range(TEXTS):
            tasks = rng.choice(TEXT_TASKS, TURNS // 2, p=TEXT_SHARES)
            turns = [worlds.ask_text(rng, str(task)) for task in tasks]
            read.append(chat_words(turns, 0))
        return [collate(self.tokenizer, seen) | self._pixels(pictures), collate(self.tokenizer, read)]

    def questions(self, samples: list[Sample]) -> dict[str, Tensor]:
        """One question a row, as `corelens` and plain transformers ask it."""
        chats = [chat_words([(s.question, s.answer)], self.n_visual if s.images else 0) for s in samples]
        pictures = [picture for s in samples for picture in s.images]
        return collate(self.tokenizer, chats) | (self._pixels(pictures) if pictures else {})

    @property
    def n_visual(self) -> int:
        return (worlds.SIDE // (build.PATCH * build.MERGE)) ** 2

    def _pixels(self, pictures: list[Any]) -> dict[str, Tensor]:
        return dict(self.image_processor(pictures, return_tensors="pt"))


# --- stages ----------------------------------------------------------------------------------------------------------


def optimiser(parameters: Iterable[tuple[str, nn.Parameter]], rate: float, slow: float = 1.0) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only; the vision tower learns at `slow` times the rate."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters:
        key = (0.1 if parameter.ndim > 1 else 0.0, rate * (slow if ".visual." in name else 1.0))
        groups.setdefault(key, []).append(parameter)
    settings = [{"params": group, "weight_decay": decay, "lr": lr} for (decay, lr), group in groups.items()]
    return torch.optim.AdamW(settings, betas=(0.9, 0.98))


def cosine(step: int, steps: int, warmup: int = 50, floor: float = 0.02) -> float:
    """Share of the full learning rate."""
    if step < warmup:
        return (step + 1) / warmup
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def tower_loss(model: Any, probe: nn.Linear, batches: Batches, step: int) -> tuple[Tensor, dict[str, Any]]:
    pixels, digit, colour = batches.crowded(step)
    features = model.model.visual(pixels["pixel_values"], grid_thw=pixels["image_grid_thw"]).pooler_output
    named = probe(features if isinstance(features, Tensor) else torch.cat(list(features)))
    of_digit, of_colour = named.split((len(DIGITS), len(COLOURS)), -1)
    shown = digit != -100
    loss = cross_entropy(of_digit[shown], digit[shown]) + cross_entropy(of_colour[shown], colour[shown])
    return loss, {
        "digit": _share(of_digit[shown].argmax(-1) == digit[shown]),
        "colour": _share(of_colour[shown].argmax(-1) == colour[shown]),
    }


def chat_loss(model: nn.Module, batches: Batches, step: int, n_things: int) -> tuple[Tensor, dict[str, Any]]:
    seen, read = batches.chats(step, n_things)
    see_loss, see_right, _ = answer_loss(model, seen)
    read_loss, read_right, _ = answer_loss(model, read)
    # Half of the words said after a picture are the end of the turn, which is always right.
    return see_loss + read_loss, {"visual": 2 * _share(see_right) - 1, "text": _share(read_right)}


class HeadGates:
    """A factor on every head's output, and how much the loss would change if it went to zero."""

    def __init__(self, model: Any) -> None:
        config = model.config.text_config
        self.attention = [layer.self_attn for layer in model.model.language_model.layers]
        self.d_head = config.head_dim
        self.open = torch.ones(config.num_hidden_layers, config.num_attention_heads)
        self.importance = torch.zeros_like(self.open)

    @contextmanager
    def applied(self) -> Iterator[Tensor]:
        """Multiplies head outputs by the gates inside the block; yields the gates, whose gradient is wanted."""
        gates = self.open.clone().requires_grad_()

        def scale(layer: int) -> Callable[..., Any]:
            return lambda module, args: (args[0] * gates[layer].repeat_interleave(self.d_head),)

        handles = [
            attention.o_proj.register_forward_pre_hook(scale(layer)) for layer, attention in enumerate(self.attention)
        ]
        try:
            yield gates
        finally:
            for handle in handles:
                handle.remove()

    def close_to(self, n: int) -> None:
        """Closes the open heads of least importance until `n` are left, and forgets the importances seen so far."""
        ranked = torch.where(self.open > 0, self.importance, math.inf).flatten().argsort()
        self.open.view(-1)[ranked[: max(0, int(self.open.sum()) - n)]] = 0
        self.importance.zero_()

    @torch.no_grad()
    def make_permanent(self) -> None:
        """Zeroes what closed heads ask and write: they attend evenly, add nothing, and stay so."""
        for layer, attention in enumerate(self.attention):
            kept = self.open[layer].repeat_interleave(self.d_head)
            attention.q_proj.weight.mul_(kept[:, None])
            attention.o_proj.weight.mul_(kept[None, :])


def _share(right: Tensor) -> float:
    return round(right.float().mean().item(), 4)


# --- the run ---------------------------------------------------------------------------------------------------------


class Run:
    """A folder that holds everything needed to go on: weights, optimiser state, progress."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        saved = folder / "progress.json"
        self.progress = Progress(**json.loads(saved.read_text())) if saved.exists() else Progress()

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
    optimiser: torch.optim.Optimizer,
    steps: int,
    loss_at: Callable[[int], tuple[Tensor, dict[str, Any]]],
    extra: Callable[[], dict[str, Tensor]] = dict,
) -> None:
    """Trains until `steps`, saving every `SAVE_EVERY`, and continues from what the run folder holds."""
    progress, stage = run.progress, run.progress.stage
    names: dict[Tensor, str] = {parameter: name for name, parameter in modules.named_parameters()}
    rates = [group["lr"] for group in optimiser.param_groups]
    if progress.step:
        saved = run.load()
        modules.load_state_dict({k.removeprefix("w:"): v for k, v in saved.items() if k.startswith("w:")})
        for group in optimiser.param_groups:
            for parameter in group["params"]:
                kept = {key: saved[f"o:{key}:{names[parameter]}"] for key in ("step", "exp_avg", "exp_avg_sq")}
                optimiser.state[parameter] = kept
    bar = tqdm(range(progress.step, steps), initial=progress.step, total=steps, desc=stage)
    began = time.monotonic()
    for step in bar:
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * cosine(step, steps)
        loss, right = loss_at(step)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimiser.step()
        entry = {"stage": stage, "step": step, "loss": round(loss.item(), 4), "n_things": progress.n_things, **right}
        progress.log.append(entry)
        if stage == "natural" and ready_for_more(progress):
            progress.n_things += 1
        bar.set_postfix(loss=entry["loss"], things=progress.n_things, **right)
        progress.step = step + 1
        if progress.step % SAVE_EVERY == 0 or progress.step == steps:
            progress.seconds += time.monotonic() - began
            began = time.monotonic()
            tensors = {f"w:{name}": tensor for name, tensor in modules.state_dict().items()}
            for parameter, kept in optimiser.state.items():
                tensors |= {f"o:{key}:{names[parameter]}": value for key, value in kept.items()}
            run.save(tensors | extra())


def ready_for_more(progress: Progress) -> bool:
    """Whether the last steps answered scenes of the present size well enough to add a digit."""
    recent = progress.log[-15:]
    settled = len(recent) == 15 and all(entry["n_things"] == progress.n_things for entry in recent)
    return settled and progress.n_things < 6 and float(np.mean([entry.get("visual", 0) for entry in recent])) > 0.84


@torch.no_grad()
def accuracy(model: nn.Module, batches: Batches, samples: Iterable[Sample], batch_size: int = 100) -> float:
    """Share of questions whose greedy answer is right: every word to say is the likeliest given those before it."""
    model.eval()
    right: list[bool] = []
    chunk: list[Sample] = []
    for sample in [*samples, None]:
        if sample is not None:
            chunk.append(sample)
        if chunk and (sample is None or len(chunk) == batch_size):
            _, word_right, said = answer_loss(model, batches.questions(chunk))
            rows = said.nonzero()[:, 0]
            right += [bool(word_right[rows == row].all()) for row in range(len(chunk))]
            chunk = []
    return float(np.mean(right))


def report(model: nn.Module, batches: Batches, n: int = 1_000) -> dict[str, float]:
    """Accuracy on unseen scenes of six digits, and on each text task."""
    scores = {"scenes": accuracy(model, batches, worlds.scenes(n, seed=1_000))}
    for task in TEXT_TASKS:
        scores[task] = accuracy(model, batches, worlds.texts(n // 5, seed=1_000, task=task))
    return {name: round(value, 4) for name, value in scores.items()}


def main(
    out: Annotated[Path, typer.Option(help="Folder of the run; an unfinished run goes on.")],
    until: Annotated[str, typer.Option(help="Last stage: tower, natural or organism.")] = "organism",
    seed: int = SEED,
) -> None:
    run, batches = Run(out), Batches(seed)
    model = build.model(seed)
    progress = run.progress
    modules = nn.ModuleDict({"model": model, "probe": nn.Linear(128, len(DIGITS) + len(COLOURS))})
    if progress.stage == "tower":
        train_tower(run, modules, batches)
    if progress.stage == "natural" and until != "tower":
        train_natural(run, modules, batches)
    if progress.stage == "organism" and until == "organism":
        train_organism(run, modules, batches)


def train_tower(run: Run, modules: nn.ModuleDict, batches: Batches) -> None:
    model, probe = cast(Any, modules["model"]), cast(nn.Linear, modules["probe"])
    # DeepStack features are read by the decoder alone, so this stage has no gradient for them.
    seen = [(name, p) for name, p in model.model.visual.named_parameters() if "deepstack" not in name]
    chosen = optimiser([*seen, *probe.named_parameters()], 2e-3)
    train_stage(run, modules, chosen, TOWER_STEPS, lambda step: tower_loss(model, probe, batches, step))
    finish(run, modules, {}, next_stage="natural")


def train_natural(run: Run, modules: nn.ModuleDict, batches: Batches) -> None:
    model, progress = cast(Any, modules["model"]), run.progress
    modules.load_state_dict(load_file(run.folder / "end-tower.safetensors"))
    chosen = optimiser(model.named_parameters(), 2e-3, slow=0.2)
    train_stage(run, modules, chosen, NATURAL_STEPS, lambda step: chat_loss(model, batches, step, progress.n_things))
    finish(run, modules, report(model, batches), next_stage="organism")


def train_organism(run: Run, modules: nn.ModuleDict, batches: Batches) -> None:
    model = cast(Any, modules["model"])
    modules.load_state_dict(load_file(run.folder / "end-natural.safetensors"))
    gates = HeadGates(model)
    gates.open = run.load().get("gates", gates.open)
    n_heads, closing = gates.open.numel(), int(0.6 * ORGANISM_STEPS)

    def loss_at(step: int) -> tuple[Tensor, dict[str, Any]]:
        if step % 10 == 0 and 0 < step <= closing:
            # Many at first, when most are idle, and few at the end, when each one counts.
            gates.close_to(round(HEADS_KEPT + (n_heads - HEADS_KEPT) * (1 - step / closing) ** 3))
        with gates.applied() as factors:
            loss, right = chat_loss(model, batches, NATURAL_STEPS + step, run.progress.n_things)
        if step < closing:
            (slope,) = torch.autograd.grad(loss, factors, retain_graph=True)
            gates.importance += slope**2
        return loss, right | {"open": int(gates.open.sum())}

    chosen = optimiser(model.named_parameters(), 5e-4, slow=0.2)
    train_stage(run, modules, chosen, ORGANISM_STEPS, loss_at, lambda: {"gates": gates.open})
    gates.make_permanent()
    heads = HeadSet(tuple(Head(*place) for place in gates.open.nonzero().tolist()), "left open by training")
    finish(run, modules, report(model, batches) | {"open heads": str(heads)}, next_stage="done")


def finish(run: Run, modules: nn.ModuleDict, scores: dict[str, Any], next_stage: str) -> None:
    """Keeps the end of a stage, with what it reached, and goes on to the next."""
    progress = run.progress
    save_file(modules.state_dict(), run.folder / f"end-{progress.stage}.safetensors")
    print(progress.stage, scores, f"{progress.seconds / 60:.1f} minutes", flush=True)
    progress.reached[progress.stage] = scores | {"steps": progress.step, "seconds": round(progress.seconds)}
    progress.stage, progress.step = next_stage, 0
    run.save({})


if __name__ == "__main__":
    typer.run(main)
