"""The table of docs/nnsight.md: idioms of nnsight 0.8, and the corelens line for each.

`tests/test_nnsight.py` runs the lines of corelens. nnsight is no dependency; its lines were run with version 0.8.1 in
an environment of their own, and gave the same values.
"""

from typing import NamedTuple

STREAM = '"blocks.3.hook_resid_post"'
"""Hook point of what layer 3 leaves."""


class Idiom(NamedTuple):
    job: str
    theirs: tuple[str, ...]
    """Lines in a trace: of `layers`, the model's decoder layers, as nnsight names them."""

    ours: tuple[str, ...]
    note: str = ""


IDIOMS: tuple[Idiom, ...] = (
    Idiom(
        "read a value",
        ("with traced.trace(**inputs):", "    stream = layers[3].output.save()"),
        ("_, cache = model.run_with_cache(inputs)", 'stream = cache["resid_post", 3]'),
    ),
    Idiom(
        "read the same of many modules",
        ("with traced.trace(**inputs) as tracer:", "    cache = tracer.cache(modules=[*layers])"),
        (
            'residual = lambda name: name.endswith("resid_post")',
            "_, cache = model.run_with_cache(inputs, names_filter=residual)",
        ),
    ),
    Idiom(
        "the output",
        ("with traced.trace(**inputs):", "    logits = traced.output.logits.save()"),
        ("logits = model(inputs)",),
    ),
    Idiom(
        "edit",
        ("    layers[3].output[:] = layers[3].output * 2",),
        (
            f"double = ({STREAM}, lambda stream, hook: stream * 2)",
            "logits = model.run_with_hooks(inputs, fwd_hooks=[double])",
        ),
        "a hook may also change the tensor in place",
    ),
    Idiom(
        "swap for another value",
        ("    layers[3].output = stream",),
        (f"swap = ({STREAM}, lambda _, hook: stream)", "logits = model.run_with_hooks(inputs, fwd_hooks=[swap])"),
        "between prompts: `cl.patch`, which matches positions",
    ),
    Idiom(
        "skip a module",
        ("    layers[3].skip(layers[3].input)",),
        (
            '_, cache = model.run_with_cache(inputs, names_filter="blocks.3.hook_resid_pre")',
            f'skip = ({STREAM}, lambda _, hook: cache["resid_pre", 3])',
            "logits = model.run_with_hooks(inputs, fwd_hooks=[skip])",
        ),
        "the layer runs, and what it writes is dropped",
    ),
    Idiom(
        "stop early",
        ("    stream = layers[2].output.save()", "    tracer.stop()"),
        ("stream = model(inputs, stop_at_layer=3)",),
    ),
    Idiom(
        "several prompts in a pass",
        ("with traced.trace() as tracer:", "    with tracer.invoke(text): ...", "    with tracer.invoke(other): ..."),
        ("batch = model.prepare([picture, picture], [question, other_question])", "logits = model(batch)"),
        "of texts; with pictures `invoke` raises an error, and a prepared batch goes into a trace",
    ),
    Idiom(
        "edit one prompt of a batch",
        ("    layers[3].output[1] = 0",),
        (
            "first = torch.tensor([1, 0])[:, None, None]",
            f"zero = ({STREAM}, lambda stream, hook: stream * first)",
            "logits = model.run_with_hooks(batch, fwd_hooks=[zero])",
        ),
    ),
    Idiom(
        "gradients",
        ("    stream = layers[3].output", "    with logit.backward():", "        gradient = stream.grad.save()"),
        (
            "gradients = []",
            f"keep = ({STREAM}, lambda gradient, hook: gradients.append(gradient))",
            "with model.hooks(bwd_hooks=[keep]): model(inputs)[0, -1, answer].backward()",
        ),
        "of a loss: `run_with_cache(..., incl_bwd=True)`",
    ),
    Idiom(
        "modules out of order",
        ("    lens = traced.lm_head(norm(layers[3].output)).save()",),
        ('lens = model.unembed(model.ln_final(cache["resid_post", 3]))',),
    ),
    Idiom(
        "inside a forward: `.source`",
        ("    call = layers[3].self_attn.source.attention_interface_1", "    query = call.inputs[0][1].save()"),
        ('query, scores, pattern = (cache[point, 3] for point in ("q", "attn_scores", "pattern"))',),
        "attention's; of other operations there is none",
    ),
    Idiom(
        "generate",
        (
            "with traced.generate(**inputs, max_new_tokens=4) as tracer:",
            "    tokens = tracer.result.save()",
        ),
        ("tokens = model.generate(inputs, max_new_tokens=4)",),
    ),
    Idiom(
        "each step of it",
        ("    for step in tracer.iter[:4]:", "        steps.append(layers[3].output[:, -1])"),
        (
            "steps = []",
            f"keep = ({STREAM}, lambda stream, hook: steps.append(stream[:, -1]))",
            "with model.hooks([keep]): model.generate(inputs, min_new_tokens=4, max_new_tokens=4)",
        ),
    ),
    Idiom(
        "values from one trace in another",
        ("with traced.session():", "    with traced.trace(**other): ...", "    with traced.trace(**inputs): ..."),
        (
            "_, source = model.run_with_cache(other)",
            'hooks = cl.patch(source, other.tokens, inputs.tokens, "z", heads=[cl.Head(3, 14)], positions="last")',
            "logits = model.run_with_hooks(inputs, fwd_hooks=hooks)",
        ),
    ),
    Idiom(
        "edits that stay",
        ("with traced.edit() as (tracer, edited):", "    edited.model.language_model.layers[3].output[:] = 0"),
        (
            f"model.add_hook({STREAM}, lambda stream, hook: stream * 0, is_permanent=True)",
            "logits = model(inputs)",
            "model.reset_hooks(including_permanent=True)",
        ),
        "on this model, until they are removed",
    ),
    Idiom(
        "names of modules",
        ("print(traced)",),
        ("names = list(model.hook_dict)",),
        "TransformerLens's, in every family: no `rename=`",
    ),
)


def table() -> list[list[str]]:
    """Rows of docs/nnsight.md."""
    rows = [[idiom.job, _code(idiom.theirs), _code(idiom.ours), idiom.note] for idiom in IDIOMS]
    return [["job", "nnsight", "corelens", "note"], *rows]


def _code(lines: tuple[str, ...]) -> str:
    # Spaces at the beginning of code are dropped on a page.
    indented = (line.replace("    ", 2 * chr(0xA0)) for line in lines)
    return "<br>".join(f"`{line}`" for line in indented)
