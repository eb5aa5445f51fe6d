"""Where CoRe heads come from: heads of `corelens/smol` beside those of its language model before any training.

Heads are ranked on two models. On the untouched language model, by what they do on random tokens that repeat: attend
to the token after the earlier copy (induction), to the copy itself (duplicate) or to the token before (previous). On
the multimodal model, by attention from the question's tokens to the evidence, in pictures (retrieval attention mass,
equation 1 of arXiv 2606.05843) and in written lists of the same pairs. Every set is then zeroed in the multimodal model
under questions about pictures and about lists, beside random heads that write as much.

The last line is JSON.

    python benchmarks/head_origins.py [--samples 60] [--draws 5]
"""

import argparse
import json
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.utils import logging

from corelens import HeadSet, HookedMLLM, metrics, run_ablation, scan_metrics, smol
from corelens.data import prepare_batch
from corelens.experiments.conditions import BASELINE
from corelens.experiments.controls import WRITE_NORM, write_matched_random

SHARE = 0.05
LENGTH, N_SEQUENCES = 40, 8
ROLES = {"induction": LENGTH - 1, "duplicate": LENGTH, "previous": 1}
"""Distances from a repeated token to the token that it attends to."""


@torch.no_grad()
def repeated_token_scores(model: HookedMLLM, seed: int = 0) -> dict[str, Float[Tensor, "layer head"]]:
    """Mean attention of the second copy of random tokens, at the distance of each of `ROLES`."""
    torch.manual_seed(seed)
    n_words = model.hf_model.config.get_text_config().vocab_size
    half = torch.randint(n_words // 50, n_words * 4 // 5, (N_SEQUENCES, LENGTH))
    ids = torch.cat([half, half], 1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    _, cache = model.run_with_cache(inputs, names_filter=lambda name: name.endswith("hook_pattern"))
    n_layers = model.cfg.n_layers
    found = {}
    for role, distance in ROLES.items():
        # The first token of the second copy has nothing before it to continue from.
        queries = torch.arange(LENGTH + 1, 2 * LENGTH)
        rows = [cache["pattern", layer][:, :, queries, queries - distance].mean((0, 2)) for layer in range(n_layers)]
        found[role] = torch.stack(rows)
    return found


@torch.no_grad()
def list_scores(model: HookedMLLM, n: int, seed: int) -> dict[str, Float[Tensor, "layer head"]]:
    """Attention of the question's tokens, and of the last one, to the asked pair of a written list, summed over it."""
    total: dict[str, Tensor] = {}
    for sample in smol.lists(n, seed):
        (prompt,) = sample.prompt
        inputs = prepare_batch(model, [sample])
        words = {sample.answer, *sample.question.rstrip("?").split()}
        (pair,) = (pair for pair in str(prompt).splitlines()[0].split(", ") if {*pair.split()} <= words)
        text = model.tokenizer.decode(inputs["input_ids"][0])
        encoded = model.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
        assert encoded["input_ids"] == inputs["input_ids"][0].tolist()
        start = text.index(pair, text.index(str(prompt)))
        tokens = [
            index
            for index, (first, last) in enumerate(encoded["offset_mapping"])
            if first < start + len(pair) and last > start
        ]
        question = inputs.tokens.question[0].nonzero()[:, 0]
        _, cache = model.run_with_cache(inputs, names_filter=lambda name: name.endswith("hook_pattern"))
        mass = torch.stack(
            [cache["pattern", layer][0][:, :, tokens].sum(-1) for layer in range(model.cfg.n_layers)]
        )  # [layer head query]
        for name, value in (("question", mass[..., question].mean(-1)), ("last", mass[..., -1])):
            total[name] = total.get(name, torch.zeros_like(value)) + value / n
    return total


def top_heads(scores: Float[Tensor, "layer head"], n: int) -> HeadSet:
    """The heads with the highest scores."""
    n_heads = scores.shape[1]
    return HeadSet([(index // n_heads, index % n_heads) for index in scores.flatten().topk(n).indices.tolist()])


def compare(n: int, n_draws: int) -> dict[str, Any]:
    """Rank the heads of both models by everything, compare the rankings, and zero every top set."""
    before = {f"{role}, before training": of for role, of in repeated_token_scores(smol.before_training()).items()}
    model = HookedMLLM.from_pretrained("corelens/smol")
    after = {f"{role}, after training": of for role, of in repeated_token_scores(model).items()}
    tasks = ("digit", "colour")
    scanned = {task: list(smol.pictures("digits", n, 1, tasks=(task,))) for task in tasks}
    scans = scan_metrics(model, scanned, ["ram", "ram_last", WRITE_NORM])
    lists = list_scores(model, n, 1)
    rankings = {
        "pictures, question": scans["ram"].per_head,
        "pictures, last": scans["ram_last"].per_head,
        **{f"lists, {token}": of for token, of in lists.items()},
        **before,
        **after,
    }
    n_top = len(scans["ram"].top(SHARE))
    sets = {name: top_heads(scores, n_top) for name, scores in rankings.items()}
    tested = {task: list(smol.pictures("digits", n, 2, tasks=(task,))) for task in tasks} | {
        "list": list(smol.lists(n, 2))
    }
    conditions = {name: [heads] for name, heads in sets.items()} | {
        "write-matched": write_matched_random(scans["ram"].top(SHARE), scans[WRITE_NORM], range(n_draws))
    }
    ablated = run_ablation(model, tested, conditions, batch_size=30, max_new_tokens=6)
    return {
        "heads in a set": n_top,
        "shared by chance": round(n_top**2 / scans["ram"].n_heads, 2),
        "sets": {name: str(heads) for name, heads in sets.items()},
        "shared with those by pictures": {
            token: {name: len({*heads} & {*sets[f"pictures, {token}"]}) for name, heads in sets.items()}
            for token in ("question", "last")
        },
        "rank correlation with those by pictures": {
            token: {
                name: round(metrics.spearman(scores, rankings[f"pictures, {token}"]), 3)
                for name, scores in rankings.items()
            }
            for token in ("question", "last")
        },
        "accuracy": {
            condition: {asked: [round(value, 3) for value in ablated.accuracies(condition, asked)] for asked in tested}
            for condition in (BASELINE, *conditions)
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=60)
    parser.add_argument("--draws", type=int, default=5)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    result = compare(arguments.samples, arguments.draws)
    for condition, accuracies in result["accuracy"].items():
        cells = [f"{asked} {min(of):.2f} to {max(of):.2f}" for asked, of in accuracies.items()]
        print(f"{condition:32}{', '.join(cells)}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
