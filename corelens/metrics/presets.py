"""The head scores of the literature as settings of the same axes."""

from dataclasses import dataclass
from typing import Literal

from corelens.metrics.aggregation import Aggregation
from corelens.metrics.head_score import Normalisation, Reduction

Queries = Literal["question", "last", "answer", "generated", "uncertain"]
"""Query tokens. `question`: all tokens of the question's text. `last`: the last token of the prompt. `answer`: the
positions that predict the tokens of the expected answer, which is appended to the prompt. `generated`: those that
predict the model's own greedy answer. `uncertain`: the one of these whose next-token distribution has the highest
entropy."""

Contribution = Literal["attention", "write_size", "write_answer"]
"""Quantity that is summed over the evidence: attention, or attention times the norm of the head's output for that key
(`output_norms`), or times its contribution to the logit of the answer's token (`logit_contributions`)."""

Baseline = Literal["none", "minus_null", "over_generic"]
"""Other question about the same picture that the score is compared with: minus the score under "N/A", or divided by the
score under "Describe the image."."""


@dataclass(frozen=True)
class Metric:
    """A head score: one choice on every axis."""

    name: str
    label: str = ""
    """Name in figures; `name` by default."""

    queries: Queries = "question"
    contribution: Contribution = "attention"
    reduction: Reduction = "sum"
    normalisation: Normalisation = "none"
    baseline: Baseline = "none"
    sinks: Literal["kept", "excluded"] = "kept"
    """Treatment of attention sinks in the picture (`attention_sinks`)."""

    aggregation: Aggregation = "mean"
    source: str = ""
    """Publication that it comes from, and differences from it."""

    @property
    def contrasts(self) -> bool:
        """True if the evidence is compared with the other visual tokens."""
        return self.normalisation in ("share", "lift", "rest")

    def __post_init__(self) -> None:
        needs_answer = self.queries not in ("last", "question") or self.contribution == "write_answer"
        if self.baseline != "none" and needs_answer:
            raise ValueError(
                f"metric {self.name!r} has baseline={self.baseline!r}, another question with another answer: its query "
                f"tokens can only be last or question, and its contribution cannot be write_answer."
            )


_ALL = (
    Metric(
        "ram",
        "retrieval attention mass",
        source="Retrieval attention mass, Sun et al. 2026 (arXiv 2606.05843), equation 1. The mean over samples is "
        "corelens's choice: the paper does not write one.",
    ),
    Metric(
        "ram_last",
        "attention mass of the last token",
        queries="last",
        source="Elastic Attention (arXiv 2601.17367), equation 9, on visual evidence: the last token of the prompt in "
        "place of the question's tokens.",
    ),
    Metric(
        "write_ram",
        "write-weighted retrieval attention mass",
        contribution="write_size",
        source="corelens's own: retrieval attention mass, each key weighted by the length of what the head writes from "
        "it.",
    ),
    Metric(
        "answer_ram",
        "answer-weighted retrieval attention mass",
        queries="last",
        contribution="write_answer",
        source="corelens's own: `ram_last`, each key weighted by what the head writes from it towards the answer's "
        "first token. LOCOS without its contrast, at the last prompt token.",
    ),
    Metric(
        "mmrethead",
        queries="question",
        baseline="minus_null",
        source="MMRetHeads (arXiv 2605.27243). Theirs counts the delimiters of the picture as evidence and keeps "
        "answer options in the null prompt; ours does not.",
    ),
    Metric(
        "qrhead",
        queries="question",
        baseline="minus_null",
        source="QRHead (arXiv 2506.09944), on visual evidence. Theirs counts the instruction as query tokens, too.",
    ),
    Metric(
        "vrh",
        queries="answer",
        source="Visual retrieval heads (arXiv 2608.27417), their best variant: output tokens, sum, mean. Query tokens "
        "are the positions that predict the answer's tokens; which they take is not stated.",
    ),
    Metric(
        "vera",
        queries="last",
        normalisation="share",
        source="VERA (arXiv 2602.10146) as its code computes it: evidence over all visual tokens, at the token that "
        "predicts the first word. The paper takes the most uncertain generated token: queries='uncertain'.",
    ),
    Metric(
        "sparsemm",
        queries="answer",
        reduction="argmax",
        normalisation="size",
        source="SparseMM (arXiv 2506.05344): hits weighted by one over the region's tokens. Theirs has a region for "
        "every answer token, sums over the group of a key-value head and scales to a sum of one.",
    ),
    Metric(
        "retrieval_head",
        queries="generated",
        reduction="argmax",
        normalisation="size",
        source="Retrieval heads (arXiv 2404.15574), carried over to pictures as OCR heads (arXiv 2505.15865) do: "
        "visual tokens have no token id to copy, so a hit is a generated token whose strongest key lies in the "
        "evidence. Theirs counts right answers alone. For needles of text there is `retrieval_score`.",
    ),
    Metric(
        "locos",
        queries="answer",
        contribution="write_answer",
        normalisation="rest",
        source="LOCOS (arXiv 2607.01002), with the other visual tokens as the rest, where theirs is text.",
    ),
    Metric(
        "relative_attention",
        queries="last",
        baseline="over_generic",
        aggregation="median",
        source="MLLMs know where to look (ICLR 2025): attention under the question over attention under a generic "
        "prompt. Theirs is a map, averaged over heads, in one layer; ours the ratio of each head's evidence mass. The "
        "median over samples is corelens's choice: in a mean of ratios, one sample with little attention under the "
        "generic prompt decides.",
    ),
)

PRESETS = {metric.name: metric for metric in _ALL}
"""Metrics of the literature by name. `localization_heads` is missing, since it compares heads with one another."""
