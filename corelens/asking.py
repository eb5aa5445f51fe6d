"""The passes that measures need: over the prompt, the prompt and an answer, or the prompt with another question."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from corelens.answering import greedy_answers, said, saying, with_answers
from corelens.data import Sample, evidence_tokens
from corelens.inputs import PreparedInputs
from corelens.measuring import Asked, Measure, measure
from corelens.metrics import Metric
from corelens.model import HookedMLLM
from corelens.parts import about_samples, prepared
from corelens.tokens import Rule, Views

OTHER_QUESTIONS = {"minus_null": "N/A", "over_generic": "Describe the image."}
"""What is asked instead, by baseline."""


@dataclass(frozen=True)
class Choices:
    """Every choice of a scan that shapes its numbers."""

    measures: tuple[Measure, ...]
    rule: Rule = "overlap"
    views: Views = "all"
    batch_size: int = 16
    max_new_tokens: int = 32


def measure_batch(
    model: HookedMLLM, samples: Sequence[Sample], choices: Choices
) -> dict[str, Float[Tensor, "batch layer head"]]:
    """All measures on one batch.

    Raises:
        Unmeasurable: If some sample cannot be measured.
    """
    groups: dict[str, list[Measure]] = {}
    for one in choices.measures:
        groups.setdefault(_sequence(one), []).append(one)
    if len(groups) > 1 and (of_prompt := groups.pop("prompt", [])):
        # Attention of the prompt does not change with what follows it: one pass serves both.
        next(iter(groups.values())).extend(of_prompt)
    found = {}
    for sequence, own in groups.items():
        inputs, asked = _asked(model, samples, sequence, own, choices)
        found |= measure(model, inputs, asked, own)
    # Metrics that compare with another question, after their own: the same pass about the other question.
    for baseline in OTHER_QUESTIONS:
        if own := [one for one in choices.measures if isinstance(one, Metric) and one.baseline == baseline]:
            inputs, asked = _asked(model, _asking(samples, baseline), "prompt", own, choices)
            for name, score in measure(model, inputs, asked, own).items():
                found[name] = found[name] - score if baseline == "minus_null" else found[name] / score
    return found


def _sequence(one: Measure) -> str:
    """What is passed through the model: the prompt, or the prompt and an answer."""
    if isinstance(one, Metric):
        if one.queries in ("generated", "uncertain"):
            return "generated"
        if one.queries == "answer" or one.contribution == "write_answer":
            return "answer"
    return "prompt"


def _asked(
    model: HookedMLLM, samples: Sequence[Sample], sequence: str, measures: Sequence[Measure], choices: Choices
) -> tuple[PreparedInputs, Asked]:
    """The tensors of a pass and what to measure it with."""
    inputs = prepared(model, samples)
    tokens = inputs.tokens
    n = tokens.role.shape[1]
    needs_evidence = any(isinstance(one, Metric) for one in measures)
    with about_samples():
        evidence = evidence_tokens(samples, tokens, choices.rule, choices.views) if needs_evidence else tokens.visual
    queries = {"last": tokens.last, "question": tokens.question}
    if sequence != "prompt":
        own = sequence == "generated"
        answers = greedy_answers(model, inputs, choices.max_new_tokens) if own else [one.answer for one in samples]
        with about_samples():
            inputs = with_answers(model, inputs, answers)
        behind = (0, inputs.tokens.role.shape[1] - n)
        evidence = pad(evidence, behind)
        queries = {name: pad(mask, behind) for name, mask in queries.items()} | {sequence: saying(inputs.tokens)}
        if any(isinstance(one, Metric) and one.queries == "uncertain" for one in measures):
            queries["uncertain"] = _most_uncertain(model, inputs)
    asked = {one.queries if isinstance(one, Metric) else "last" for one in measures}
    return inputs, Asked(inputs.tokens, evidence, {name: queries[name] for name in asked}, said(inputs))


def _asking(samples: Sequence[Sample], baseline: str) -> list[Sample]:
    """The same samples with another question."""
    other = OTHER_QUESTIONS[baseline]
    return [
        replace(
            sample,
            question=other,
            prompt=tuple(
                part.replace(sample.question, other) if isinstance(part, str) else part for part in sample.prompt
            ),
        )
        for sample in samples
    ]


@torch.no_grad()
def _most_uncertain(model: HookedMLLM, inputs: PreparedInputs) -> Bool[Tensor, "batch position"]:
    """Of the positions that say the answer, the one whose next-token distribution has the highest entropy."""
    asked = saying(inputs.tokens)
    entropy = torch.distributions.Categorical(logits=model(inputs).float()).entropy()
    chosen = entropy.masked_fill(~asked, -torch.inf).argmax(-1, keepdim=True)
    return torch.zeros_like(asked).scatter_(-1, chosen, True)
