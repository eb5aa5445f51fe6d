"""Retrieval of pages by heads: relevance curves over the pictures and frames of a prompt, and Recall@k.

A page is a picture or a frame of a video; pages are counted from zero within each sample, in the order of the prompt.
The score of a page is the attention of a head set to it, minus that of the same heads under a question about nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from corelens.data import Sample, evidence_tokens, prepare_batches
from corelens.data.batching import prepare_batch
from corelens.errors import check_choice
from corelens.experiments.head_metrics import OTHER_QUESTIONS
from corelens.experiments.passes import finite_passes, run_pattern_hooks
from corelens.heads import HeadSet
from corelens.hooks.attention import in_float32
from corelens.hooks.points import layer_of
from corelens.hooks.rows import row_mask
from corelens.inputs.prepare import PreparedInputs
from corelens.metrics import page_masses
from corelens.metrics.page_ranking import PageRanking
from corelens.model import HookedMLLM
from corelens.tokens import TokenMap

PageQueries = Literal["question", "last"]
"""Query tokens: all tokens of the question, or the last token of the prompt."""


@torch.no_grad()
def rank_pages(
    model: HookedMLLM,
    samples: Iterable[Sample],
    heads: Mapping[str, HeadSet],
    queries: PageQueries = "question",
    batch_size: int = 16,
) -> PageRanking:
    r"""Rank the pages of each prompt by the attention of some heads, minus that under a question about nothing.

    $$s(p) = \frac{1}{|H|} \sum_{h \in H} \bigl(\mathrm{RAM}_h(p) - \mathrm{RAM}^\text{N/A}_h(p)\bigr)$$

    Args:
        model: The model.
        samples: Questions about several pictures or videos; their evidence is needed for `PageRanking.recall` alone.
        heads: Head sets by name. All share the same two passes, one of them with "N/A" for the question.
        queries: `question`: the mean over all tokens of the question. `last`: the last token of the prompt.
        batch_size: Samples a pass.

    Raises:
        ValueError: If there is no sample or no head set, a set is empty or names a head that does not exist, or a
            sample has no media or cannot be prepared.

    Source:
        MMRetHeads (arXiv 2605.27243) re-ranks pages of MMDocIR by the mean over heads and question tokens of the
        attention to each; TG-Heads (arXiv 2605.21954) draws it over frames, minus that under a null prompt. `last` is
        corelens's own.
    """
    check_choice("queries", queries, PageQueries)
    if not heads or not all(map(len, heads.values())):
        raise ValueError("pages are ranked by head sets: pass one or more by name, each with a head or more.")
    for of_set in heads.values():
        model.check_heads(of_set)
    samples = list(samples)
    if without := [sample.id for sample in samples if not sample.images and not sample.videos]:
        raise ValueError(f"sample {without[0]} has no pictures and no videos, so there are no pages to rank.")
    names, groups, curves, evidence = [], [], [], []
    for batch, inputs in prepare_batches(model, samples, batch_size, "rank pages"):
        about_nothing = prepare_batch(model, [one.with_question(OTHER_QUESTIONS["minus_null"]) for one in batch])
        curve = _curves(model, inputs, heads, queries) - _curves(model, about_nothing, heads, queries)
        pages = page_numbers(inputs.tokens)
        for index, sample in enumerate(batch):
            n_pages = int(pages[index].max()) + 1
            names.append(sample.id)
            groups.append(sample.group)
            curves.append(curve[:, index, :n_pages].T)
            evidence.append(_has_evidence(sample, inputs.tokens[index], pages[index], n_pages))
    padded = torch.nn.utils.rnn.pad_sequence(curves, batch_first=True, padding_value=torch.nan)
    relevant = torch.nn.utils.rnn.pad_sequence(evidence, batch_first=True)
    scores = dict(zip(heads, padded.unbind(-1), strict=True))
    return PageRanking(tuple(names), scores, relevant, tuple(groups))


def page_numbers(tokens: TokenMap) -> Int[Tensor, "batch position"]:
    """Number of the page that each position belongs to; -1 for text. Tiles of a picture are one page."""
    pages = torch.full_like(tokens.media, -1)
    address = torch.stack([tokens.media, torch.where(tokens.video, tokens.view, 0)], -1)
    for of_sample, page, visual in zip(address, pages, tokens.visual, strict=True):
        page[visual] = of_sample[visual].unique(dim=0, return_inverse=True)[1]
    return pages


def _curves(
    model: HookedMLLM, inputs: PreparedInputs, heads: Mapping[str, HeadSet], queries: PageQueries
) -> Float[Tensor, "set batch page"]:
    """Mean attention of each head set to every page, in one pass."""
    rows: Bool[Tensor, "batch position"] = getattr(inputs.tokens, queries)
    pages = page_numbers(inputs.tokens)
    totals = torch.zeros(len(heads), len(pages), int(pages.max()) + 1)
    by_layer = [of_set.by_layer() for of_set in heads.values()]

    def add(pattern: Float[Tensor, "batch head row key"], hook: Any) -> None:
        masses = page_masses(pattern, pages.to(pattern.device), row_mask(rows).to(pattern.device)).cpu()
        for total, layers in zip(totals, by_layer, strict=True):
            total += masses[:, layers.get(hook.layer(), [])].sum(1)

    used = {layer for layers in by_layer for layer in layers}
    hooks = [(name, in_float32(add)) for name in model.attn_names("pattern") if layer_of(name) in used]
    with finite_passes(model, inputs):
        run_pattern_hooks(model, inputs, hooks, rows)
    return totals / torch.tensor([len(of_set) for of_set in heads.values()])[:, None, None]


def _has_evidence(
    sample: Sample, tokens: TokenMap, pages: Int[Tensor, "position"], n_pages: int
) -> Bool[Tensor, "page"]:
    """Mask of the pages that a region of evidence is on, wherever on the page; pictures need no rectangles for it."""
    has_evidence = torch.zeros(n_pages, dtype=torch.bool)
    if sample.evidence:
        whole = replace(sample, evidence=[replace(region, box=None) for region in sample.evidence])
        has_evidence[pages[evidence_tokens([whole], tokens)[0] > 0].cpu()] = True
    return has_evidence
