"""The Python code that reproduces what the explorer shows, by plain calls of the library."""

from collections.abc import Iterable, Sequence
from textwrap import indent

from corelens.data import Evidence, Sample
from corelens.explorer.state import ExplorerState
from corelens.heads import Head, HeadSet
from corelens.metrics import PRESETS

GIVEN = "# `model`, `samples` and `scores` are what was given to cl.explore."


def script(given: str, state: ExplorerState, sample: Sample, files: Sequence[str], longest_answer: int) -> str:
    """Code that leaves `values` of all heads, `rows` of attention, and the answers `before` and `after`.

    Args:
        given: Code that makes `model`, and `samples` and `scores` if there are any.
        state: What is shown.
        sample: What is asked.
        files: The names of own pictures.
        longest_answer: Where answers are cut off, in tokens.
    """
    videos = ", list(sample.videos)" if sample.videos else ""
    return f"""\
from dataclasses import replace

import torch

import corelens as cl
from corelens.causal.answers import greedy_answers
from corelens.experiments.head_metrics import Asked, measure
from corelens.metrics import PRESETS

{given}
{_asked(state, sample, files)}
inputs = model.prepare(list(sample.images), sample.chat{videos})
tokens = inputs.tokens
{_looking(state)}


def changes(tokens):
    # They act from the question on.
{indent(_changes(state), "    ")}
    return hooks


def answered(changes):
    # The greedy answer, how probable it is, and how probable every token is as its first.
    with torch.no_grad(), model.hooks(fwd_hooks=changes(tokens)):
        ids = greedy_answers(model, inputs, max_new_tokens={longest_answer})
    asked = cl.append_answers(model, inputs, ids)
    with torch.no_grad(), model.hooks(fwd_hooks=changes(asked.tokens)):
        said = cl.causal.AnswerLogProbs.of(model(asked), asked)
    return ids, cl.causal.log_prob(said, said).exp().item(), said.log_probs[0, 0].exp()


before, after = answered(lambda tokens: []), answered(changes)

# What colours the heads, [layer head], and where those chosen look, [position].
hooks = {"changes(tokens)" if state.moment == "after" else "[]  # as it is before the changes"}
{_values(state, sample)}
with torch.no_grad(), model.hooks(fwd_hooks=hooks):
    _, cache = model.run_with_cache(inputs, queries=looking, names_filter=model.attn_names("pattern"))
rows = {{head: cache["pattern", head.layer][0, head.head, 0] for head in {_heads(state.heads)}}}

for said in (before, after):
    print(model.processor.tokenizer.decode(said[0][0]), f"{{said[1]:.3f}}")
for head, row in rows.items():
    print(head, "on pictures", f"{{row[tokens.visual[0]].sum():.3f}}")
"""


def _asked(state: ExplorerState, sample: Sample, files: Sequence[str]) -> str:
    if state.sample:
        code = f"sample = next(sample for sample in samples if sample.id == {state.sample!r})"
        if state.question is not None:
            code += f"\nsample = replace(sample, question={sample.question!r}, prompt=(), answer='', evidence=())"
    else:
        code = f"sample = cl.Sample('own', {sample.question!r}, '', {tuple(files)!r})  # your files"
    if state.evidence is not None:
        code += f"\nsample = replace(sample, evidence={_regions(state.evidence)})"
    return code


def _looking(state: ExplorerState) -> str:
    if state.token is None:
        return "looking = tokens.last  # the token that looks"
    return f"looking = torch.zeros_like(tokens.last)  # the token that looks\nlooking[0, {state.token}] = True"


def _changes(state: ExplorerState) -> str:
    code = "hooks = []"
    if state.ablated:
        instead = ", cl.mean_activations(model, samples)" if state.how == "mean" else ""
        code += f'\nhooks += cl.ablate({_heads(state.ablated)}, "{state.how}"{instead}, positions="from_question")'
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
    evidence = "cl.evidence_tokens([sample], tokens)" if has_evidence else "torch.zeros_like(looking)"
    one = f'PRESETS["{state.metric}"]' if state.metric in PRESETS else f'"{state.metric}"'
    return f"""\
evidence = {evidence}
asked = Asked(tokens, evidence, {{"last": looking}}, said=torch.full_like(tokens.role, -1))
with model.hooks(fwd_hooks=hooks):
    values = measure(model, inputs, asked, [{one}])["{state.metric}"][0]"""


def _heads(heads: Iterable[Head]) -> str:
    return f'cl.HeadSet.parse("{HeadSet(tuple(heads))}")'


def _regions(regions: Sequence[Evidence]) -> str:
    def written(region: Evidence) -> str:
        box = None if region.box is None else f"cl.Box{tuple(region.box)!r}"
        return f"cl.Evidence({box}, media={region.media}, seconds={region.seconds!r})"

    return "(" + "".join(written(region) + ", " for region in regions).strip() + ")"
