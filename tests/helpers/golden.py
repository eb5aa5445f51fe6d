"""Check that rearranging the code changes no number.

`python tests/helpers/golden.py FILE` writes digests of scans, interventions, rows, sparse generation, drawn samples,
the demo and a run folder; where FILE exists it compares them, names what differs, and exits with 1. Digests of floating
point numbers are those of one machine; `tests/test_golden.py` keeps those that are the same everywhere.
"""

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import corelens as cl
from corelens import data, toy
from corelens.data import Sample
from corelens.demo import run_demo


def digest(*values: Any) -> str:
    """SHA-256 of tensors, arrays and texts, in order."""
    sha = hashlib.sha256()
    for value in values:
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu().contiguous().numpy()
        sha.update(value.tobytes() if isinstance(value, np.ndarray) else str(value).encode())
    return sha.hexdigest()[:16]


def of_samples(samples: Iterable[Sample]) -> str:
    """Digest of questions, answers, pixels and boxes."""
    parts: list[Any] = []
    for sample in samples:
        parts += [sample.id, sample.question, sample.answer, [evidence.box for evidence in sample.evidence]]
        for image in sample.images:
            parts.append(np.asarray(image() if callable(image) else image))
    return digest(*parts)


def samples() -> dict[str, str]:
    """Five samples of every synthetic and toy world; the same on every machine."""
    drawn = {f"toy {name}": of_samples(draw(5, 3)) for name, draw in toy.SAMPLES.items()}
    drawn |= {f"text {task}": of_samples(toy.texts(5, 3, task)) for task in toy.TEXT_TASKS}
    drawn |= {name: of_samples(getattr(data, name)(5, seed=3)) for name in ("charts", "documents", "photographs")}
    return drawn | {"haystacks": of_samples(data.haystacks(3, seed=3))}


def numbers() -> dict[str, Any]:
    """Digests of results of a shipped model."""
    model = cl.HookedMLLM.from_pretrained("corelens/toy")
    scenes = list(toy.scenes(20, seed=1))
    inputs = model.prepare([list(sample.images) for sample in scenes[:4]], [sample.question for sample in scenes[:4]])
    with tempfile.TemporaryDirectory() as folder:
        scores = cl.scan_metrics(model, scenes, ["ram", "write_ram", "entropy"], out=Path(folder, "run"))
        files = {path.relative_to(folder).as_posix(): path for path in sorted(Path(folder, "run").rglob("*.*"))}
        run = {name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for name, path in files.items()}
    core = scores["ram"].top(0.05)
    with torch.no_grad():
        logits, cache = model.run_with_cache(inputs, queries=inputs.tokens.last)
        with model.hooks(fwd_hooks=cl.ablate(core, "zero")):
            zeroed = model(inputs)
        with model.hooks(fwd_hooks=cl.ablate(core, "mean", cl.mean_activations(model, scenes[4:8]))):
            meaned = model(inputs)
        clean, corrupted = (
            model.prepare([list(scenes[0].images)], ["which digit is red ?"]),
            model.prepare([list(scenes[1].images)], ["which digit is red ?"]),
        )
        _, other = model.run_with_cache(corrupted)
        with model.hooks(fwd_hooks=cl.patch(other, corrupted.tokens, clean.tokens, "z", heads=core)):
            patched = model(clean)
        with cl.sparse.apply(model, cl.sparse.hybrid(core, sink=4, window=16), force=True):
            prefill = model(inputs)
            generated = model.generate(inputs, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    swept = cl.sweep(model, scenes[:2])
    demo = run_demo("corelens/toy", n_scanned=20, n_tested=20, n_texts=5, n_draws=1)
    return {
        "run folder": run,
        "scores": {name: digest(one.values) for name, one in scores.items()},
        "top heads": str(core),
        "logits": digest(logits),
        "rows": digest(*(cache[name] for name in sorted(cache.keys()))),
        "zero ablation": digest(zeroed),
        "mean ablation": digest(meaned),
        "patching": digest(patched),
        "sparse prefill": digest(prefill),
        "sparse tokens": generated.tolist(),
        "sweep": digest(swept.scores().values),
        "demo": {name: demo.result[name] for name in ("accuracy", "heads", "mean score")},
    }


def golden() -> dict[str, Any]:
    return {"samples": samples(), **numbers()}


def differences(before: Any, now: Any, path: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        names = dict.fromkeys((*before, *now))
        return [line for name in names for line in differences(before.get(name), now.get(name), f"{path}/{name}")]
    return [] if before == now else [f"{path}: was {before}, is {now}"]


if __name__ == "__main__":
    file = Path(sys.argv[1])
    torch.manual_seed(0)
    now = json.loads(json.dumps(golden()))
    if not file.exists():
        file.write_text(json.dumps(now, indent=1) + "\n")
    elif lines := differences(json.loads(file.read_text()), now):
        sys.exit("\n".join(lines))
