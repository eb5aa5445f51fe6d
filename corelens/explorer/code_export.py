"""Python code that reproduces a view of the explorer by plain calls of the library."""

from collections.abc import Iterable, Sequence
from textwrap import indent

from corelens.data import Evidence, Sample
from corelens.experiments.layer_scores import query_kind
from corelens.explorer.state import ExplorerState
from corelens.heads import Head, HeadSet
from corelens.metrics import PRESETS

DEFAULT_SETUP = "# `model`, `samples` and `scores` are the arguments of cl.explore."


def export_code(
    setup_code: str,
    state: ExplorerState,
    sample: Sample,
    file_names: Sequence[str],
    max_answer_tokens: int,
    is_of_answer: bool,
) -> str:
    """Write code that computes `values` of all heads, `rows` of attention, and the answers `before` and `after`.

    Args:
        setup_code: Code that defines `model`, and `samples` and `scores` if there are any.
        state: The user's choices.
        sample: The sample of the prompt.
        file_names: Names of uploaded pictures.
        max_answer_tokens: Most tokens of an answer.
        is_of_answer: True if the token of the state is one of the answer, not of the prompt.
    """
    videos = ", list(sample.videos)" if sample.videos else ""
    return f"""\
from dataclasses import replace

import torch

import corelens as cl
from corelens.causal.answers import greedy_answers
from corelens.experiments.head_metrics import score_heads
from corelens.experiments.layer_scores import ScoringInputs
from corelens.metrics import PRESETS

{setup_code}
{_sample(state, sample, file_names)}
inputs = model.prepare(list(sample.images), sample.chat{videos})
tokens = inputs.tokens


def changes(tokens):
    # They act from the question on.
{indent(_changes(state), "    ")}
    return hooks


def answer(changes):
    # The greedy answer, its probability, and the probability of every token as its first.
    with torch.no_grad(), model.hooks(fwd_hooks=changes(tokens)):
        ids = greedy_answers(model, inputs, max_new_tokens={max_answer_tokens})
    answered = cl.append_answers(model, inputs, ids)
    with torch.no_grad(), model.hooks(fwd_hooks=changes(answered.tokens)):
        log_probs = cl.causal.AnswerLogProbs.of(model(answered), answered)
    return ids, cl.causal.log_prob(log_probs, log_probs).exp().item(), log_probs.log_probs[0, 0].exp()


before, after = answer(lambda tokens: []), answer(changes)

{_query(state, is_of_answer)}

# The values that colour the heads, [layer head], and the attention of the chosen heads, [position].
hooks = {"changes(tokens)" if state.moment == "after" else "[]  # before the changes"}
{_values(state, sample)}
with torch.no_grad(), model.hooks(fwd_hooks=hooks):
    _, cache = model.run_with_cache(shown, queries=query, names_filter=model.attn_names("pattern"))
rows = {{head: cache["pattern", head.layer][0, head.head, 0] for head in {_heads(state.heads)}}}

for ids, probability, _ in (before, after):
    print(model.processor.tokenizer.decode(ids[0]), f"{{probability:.3f}}")
for head, row in rows.items():
    print(head, "on pictures", f"{{row[tokens.visual[0]].sum():.3f}}")
"""


def _sample(state: ExplorerState, sample: Sample, file_names: Sequence[str]) -> str:
    if state.sample:
        code = f"sample = next(sample for sample in samples if sample.id == {state.sample!r})"
        if state.question is not None:
            code += f"\nsample = replace(sample, question={sample.question!r}, prompt=(), answer='', evidence=())"
    else:
        code = f"sample = cl.Sample('own', {sample.question!r}, '', {tuple(file_names)!r})  # your files"
    if state.evidence is not None:
        code += f"\nsample = replace(sample, evidence={_regions(state.evidence)})"
    return code


def _query(state: ExplorerState, is_of_answer: bool) -> str:
    comment = "# The token whose attention is shown."
    if state.token is None:
        return f"{comment}\nshown, query = inputs, tokens.last"
    answered = f"cl.append_answers(model, inputs, {'after' if state.moment == 'after' else 'before'}[0])"
    return f"""\
{comment}
shown = {answered if is_of_answer else "inputs"}
tokens = shown.tokens
query = torch.zeros_like(tokens.last)
query[0, {state.token}] = True"""


def _changes(state: ExplorerState) -> str:
    code = "hooks = []"
    if state.ablated:
        reference = ", reference=cl.mean_activations(model, samples)" if state.how == "mean" else ""
        heads = _heads(state.ablated)
        code += f'\nhooks += cl.ablate({heads}, method="{state.how}"{reference}, positions="from_question")'
    if state.regions:
        heads = "model.heads" if state.blind == "all" else _heads(state.heads)
        code += (
            f"\nhidden = cl.evidence_tokens([replace(sample, evidence={_regions(state.regions)})], tokens)"
            f'\nhooks += cl.attention_knockout({heads}, "from_question", hidden)'
        )
    return code


def _values(state: ExplorerState, sample: Sample) -> str:
    if state.metric == "scan":
        return "values = scores.per_head"
    if state.metric == "effect":
        return "values = cl.sweep(model, cl.append_answers(model, inputs, before[0])).scores().values[0]"
    has_evidence = sample.evidence if state.evidence is None else state.evidence
    evidence = "cl.evidence_tokens([sample], tokens)" if has_evidence else "torch.zeros_like(query)"
    metric = f'PRESETS["{state.metric}"]' if state.metric in PRESETS else f'"{state.metric}"'
    kind = query_kind(PRESETS.get(state.metric, state.metric))
    queries = f'{{"{kind}": {"tokens.question" if kind == "question" else "query"}}}'
    return f"""\
evidence = {evidence}
no_answer = torch.full_like(tokens.role, -1)
scoring = ScoringInputs(tokens, evidence, {queries}, no_answer)
with model.hooks(fwd_hooks=hooks):
    values = score_heads(model, shown, scoring, [{metric}])["{state.metric}"][0]"""


def _heads(heads: Iterable[Head]) -> str:
    return f'cl.HeadSet.parse("{HeadSet(tuple(heads))}")'


def _regions(regions: Sequence[Evidence]) -> str:
    def region_code(region: Evidence) -> str:
        box = None if region.box is None else f"cl.Box{tuple(region.box)!r}"
        return f"cl.Evidence({box}, media={region.media}, seconds={region.seconds!r})"

    return "(" + "".join(region_code(region) + ", " for region in regions).strip() + ")"
