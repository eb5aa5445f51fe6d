"""`corelens explore`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from corelens.cli import options

if TYPE_CHECKING:
    from corelens.data import Sample
    from corelens.model import HookedMLLM
    from corelens.scores import HeadScores

N_SCENES, N_SCANNED = 12, 60
"""For a shipped model: pictures of the gallery, and others whose scan ranks its heads."""

GALLERY_SEED = 46
"""Seed of the gallery, chosen for its first scene: it is bright, and the toy's answer needs the marked heads."""


def explore(
    model: options.Model = "corelens/toy",
    image: Annotated[
        list[Path] | None, typer.Option(help="A picture of your own. Can be given several times.", metavar="FILE")
    ] = None,
    question: Annotated[str, typer.Option(metavar="TEXT", help="The question about it.")] = "",
    scores: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A .safetensors of a scan; its top heads are marked.")
    ] = None,
    port: Annotated[
        int, typer.Option(metavar="NUMBER", help="Port of the page; 0: any free one.", min=0, max=65535)
    ] = 0,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
    dtype: options.Dtype = "auto",
    device: options.DeviceOption = "auto",
) -> None:
    """Explore attention and ablation of heads in the browser.

    The page is served on this machine alone.
    """
    if image and not question:
        raise typer.BadParameter("the picture needs a question.", param_hint="--question")
    if question and not image:
        raise typer.BadParameter("the question needs a picture.", param_hint="--image")
    import webbrowser

    from corelens.explorer import Explorer
    from corelens.explorer.server import serve
    from corelens.inputs.media import load_picture

    def ready(address: str) -> None:
        typer.echo(f"{address}\nOpen it in a browser on this machine; Ctrl-C ends.")
        if browser:
            webbrowser.open(address)

    try:
        for picture in image or ():
            load_picture(picture)  # one that cannot be read is an error before the model is loaded
        ranking = None if scores is None else options.ranking(scores, model)
        loaded = options.loaded(model, dtype, device)
        samples, ranking, code = _gallery(model, loaded, image or [], question, scores, ranking)
        serve(Explorer(loaded, samples, ranking, code), port, ready)
    except (OSError, ValueError, TypeError, ImportError) as cause:
        raise typer.BadParameter(str(cause)) from cause


def _gallery(
    name: str,
    model: "HookedMLLM",
    images: list[Path],
    question: str,
    scores: Path | None,
    ranking: "HeadScores | None",
) -> "tuple[list[Sample], HeadScores | None, str]":
    """Samples of the gallery, scores that rank heads, and the code that makes both."""
    from corelens.data import Sample
    from corelens.experiments.scan import scan
    from corelens.hf.loading import SHIPPED, SMOL
    from corelens.shipped import questions_for

    draw, code = questions_for(name).pictures, questions_for(name).code
    is_shipped = name in (*SHIPPED, SMOL)
    lines = [f"model = cl.HookedMLLM.from_pretrained({name!r})"]
    samples: list[Sample] = []
    if scores is not None:
        lines.append(f"scores = cl.HeadScores.load({str(scores)!r})")
    if question:
        paths = tuple(map(str, images))
        samples = [Sample("asked", question, "", paths)]
        lines.append(f"samples = [cl.Sample('asked', {question!r}, '', {paths!r})]")
    elif is_shipped:
        samples = list(draw(N_SCENES, GALLERY_SEED))
        lines += [f"samples = list({code.format(N_SCENES, GALLERY_SEED)})"]
    if is_shipped and ranking is None:
        ranking = scan(model, draw(N_SCANNED, 1))
        lines += [f"scores = cl.scan(model, {code.format(N_SCANNED, 1)})"]
    return samples, ranking, "\n".join(dict.fromkeys(lines))
