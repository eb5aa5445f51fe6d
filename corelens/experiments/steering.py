"""Steering: heads pushed to attend to a region, and how often the answer becomes that region's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from corelens.data import Sample, evidence_tokens, prepare_batches, score
from corelens.heads import HeadSet
from corelens.hooks.positions import PositionName
from corelens.inputs.prepare import PreparedInputs
from corelens.interventions import FwdHooks, bias_attention
from corelens.metrics.paired import PairedDifference
from corelens.model import HookedMLLM


@dataclass(frozen=True, eq=False)
class SteeringCurve:
    """Answers under steering, by its strength, for every kind of head set."""

    strengths: tuple[float | int, ...]

    to_target: dict[str, Float[Tensor, "draw strength sample"]]
    """Scores of the answers as answers about the region that heads are pushed to, by kind; a draw is a head set."""

    to_own: dict[str, Float[Tensor, "draw strength sample"]]
    """Scores of the same answers as answers to the question."""

    plain_target: Float[Tensor, "sample"]
    """Scores without steering, of the region's answer."""

    plain_own: Float[Tensor, "sample"]
    """Scores without steering, of the question's own answer."""

    groups: tuple[str, ...]
    """Group of each sample, such as its picture."""

    def success(self, kind: str, strength: float | int) -> PairedDifference:
        """Paired difference of the target's scores: with steering, in the mean over draws, and without."""
        scores = self.to_target[kind][:, self.strengths.index(strength)].mean(0)
        return PairedDifference(self.plain_target, scores, self.groups)

    def table(self) -> list[dict[str, Any]]:
        """Rows with `heads`, `strength`, and the shares of answers that became the `target`'s or stayed `own`."""
        rows: list[dict[str, Any]] = [
            {
                "heads": "none",
                "strength": 0,
                "target": float(self.plain_target.mean()),
                "own": float(self.plain_own.mean()),
            }
        ]
        for kind, of_kind in self.to_target.items():
            for at, strength in enumerate(self.strengths):
                rows.append(
                    {
                        "heads": kind,
                        "strength": strength,
                        "target": float(of_kind[:, at].mean()),
                        "own": float(self.to_own[kind][:, at].mean()),
                    }
                )
        return rows


@torch.no_grad()
def steering_curve(
    model: HookedMLLM,
    pairs: Sequence[tuple[Sample, Sample]],
    conditions: Mapping[str, Sequence[HeadSet]],
    strengths: Sequence[float | int] = (1, 2, 4, 8),
    queries: PositionName = "from_question",
    batch_size: int = 16,
    max_new_tokens: int = 8,
) -> SteeringCurve:
    """Push heads towards the evidence of another question about the same picture, and score what the model answers.

    The first sample of a pair is asked. While it is answered, `strength` is added to the attention logits of the heads
    from the queries to the evidence of the second (`bias_attention`). Steering succeeds if the answer becomes the
    second's.

    Args:
        model: The model.
        pairs: Two samples about the same pictures, with different evidence and answers; `toy.scene_pairs` draws some.
        conditions: Head sets by kind, such as the top heads and several draws of `write_matched_random`, the control:
            pushing any heads that write much towards a region may make it more likely.
        strengths: Numbers that are added to attention logits; 2 makes a key seven times as likely, against the others.
        queries: Where heads are pushed. `from_question` includes the tokens of the answer.
        batch_size: Samples in a batch.
        max_new_tokens: Maximum length of an answer, in tokens.

    Raises:
        ValueError: If there is no pair, strength or head set, the pictures of a pair differ in number, or its evidence
            or answers do not.

    Source:
        Biases on attention logits are known as attention steering (PASTA, Zhang et al. 2023, arXiv 2311.02262, scales
        probabilities); the measure, the pairs and the write-matched control are ours.
    """
    _check(pairs, conditions, strengths)
    model.check_repeatable()
    sets = [(kind, draw, heads) for kind, draws in conditions.items() for draw, heads in enumerate(draws)]
    batches = _batches(model, pairs, batch_size)
    runs: dict[tuple[str, int, int], tuple[Tensor, Tensor]] = {}
    with tqdm(total=1 + len(sets) * len(strengths), desc="steer") as bar:

        def run(heads: HeadSet, strength: float | int) -> tuple[Tensor, Tensor]:
            scores: list[tuple[float, float]] = []
            for of_batch, inputs, region in batches:
                hooks: FwdHooks = bias_attention(heads, queries, region, strength)
                with model.hooks(fwd_hooks=hooks):
                    answers = model.answer(inputs, max_new_tokens)
                scores += [
                    (score(target, answer) or 0.0, score(own, answer) or 0.0)
                    for (own, target), answer in zip(of_batch, answers, strict=True)
                ]
            bar.update()
            to_target, to_own = torch.tensor(scores).T
            return to_target, to_own

        plain_target, plain_own = run(HeadSet(()), 0)
        for kind, draw, heads in sets:
            for at, strength in enumerate(strengths):
                runs[kind, draw, at] = run(heads, strength)

    def stacked(which: int) -> dict[str, Float[Tensor, "draw strength sample"]]:
        return {
            kind: torch.stack(
                [
                    torch.stack([runs[kind, draw, at][which] for at in range(len(strengths))])
                    for draw in range(len(draws))
                ]
            )
            for kind, draws in conditions.items()
        }

    groups = tuple(own.group for own, _ in pairs)
    return SteeringCurve(tuple(strengths), stacked(0), stacked(1), plain_target, plain_own, groups)


def _batches(
    model: HookedMLLM, pairs: Sequence[tuple[Sample, Sample]], batch_size: int
) -> list[tuple[Sequence[tuple[Sample, Sample]], PreparedInputs, Tensor]]:
    """Pairs, the inputs of those that are asked, and the tokens of the others' evidence."""
    batches, start = [], 0
    for samples, inputs in prepare_batches(model, [own for own, _ in pairs], batch_size, "prepare"):
        of_batch = pairs[start : start + len(samples)]
        start += len(samples)
        region = evidence_tokens([target for _, target in of_batch], inputs.tokens) > 0
        batches.append((of_batch, inputs, region))
    return batches


def _check(
    pairs: Sequence[tuple[Sample, Sample]],
    conditions: Mapping[str, Sequence[HeadSet]],
    strengths: Sequence[float | int],
) -> None:
    """Raise a ValueError if nothing would be steered, or a pair could not show success."""
    if not pairs or not strengths or not conditions or not all(conditions.values()):
        raise ValueError("steering needs at least one pair, one strength, and one head set of every kind.")
    for own, target in pairs:
        if len(own.images) != len(target.images) or len(own.videos) != len(target.videos):
            raise ValueError(f"samples {own.id} and {target.id} are a pair, and have different numbers of pictures.")
        if own.answer == target.answer or own.evidence == target.evidence:
            same = "answer" if own.answer == target.answer else "evidence"
            raise ValueError(
                f"samples {own.id} and {target.id} are a pair, and have the same {same}: nothing would show."
            )
