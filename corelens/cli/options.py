"""What the commands that read a model and data share: their options, and how these are read."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from corelens.errors import docs_link

if TYPE_CHECKING:
    from corelens.data import Sample
    from corelens.model import HookedMLLM
    from corelens.scores import HeadScores

Model = Annotated[str, typer.Option(help="A folder, a Hub id, or a shipped model.")]
Data = Annotated[
    list[str],
    typer.Option(
        metavar="NAME=WHERE",
        help="A data set and its folder or Hub id (refcocog=PATH, mmlongbench=PATH,task=infoseek), or a world and the "
        "number of its samples (scenes=200). Several with commas between them, or given several times.",
    ),
]
Out = Annotated[Path, typer.Option(help="Folder of the run, where the same command goes on.", file_okay=False)]
Limit = Annotated[int | None, typer.Option(help="Most samples of each data set.", min=1)]
How = Annotated[Literal["zero", "mean", "resample"], typer.Option(help="What takes the place of a head's output.")]
BoxUnit = Annotated[
    Literal["pixels", "thousandths", "fractions"] | None,
    typer.Option(help="In which the model says boxes, for data that asks for them."),
]
Seed = Annotated[int, typer.Option(help="What worlds are drawn from.", min=0)]
Dtype = Annotated[str, typer.Option(help="Such as bfloat16; auto: the checkpoint's own.")]
Device = Annotated[str, typer.Option(help="Such as cuda:1; auto: all GPUs together.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, no table.")]


N_TEXTS = 100
"""Questions of each text task of the shipped models."""


def samples(
    arguments: Iterable[str], seed: int, limit: int | None, evidence: bool = False
) -> dict[str, "Iterable[Sample]"]:
    """The samples that each `NAME=WHERE` means, by name; if `evidence` counts, only those that say where theirs is."""
    found: dict[str, Iterable[Sample]] = {}
    for one in _separate(arguments):
        name, own = _samples(one, seed, limit, evidence)
        if name in found:
            raise typer.BadParameter(f"two data sets are {name}; give each once.", param_hint="--data")
        found[name] = own
    return found


def _separate(arguments: Iterable[str]) -> list[str]:
    """Data sets with commas between them; what has no name of its own is a setting of the one before."""
    from corelens import toy
    from corelens.data import registry

    known = {*toy.SAMPLES, *registry.READERS, *registry.WORLDS}
    found: list[str] = []
    for argument in arguments:
        for place, one in enumerate(argument.split(",")):
            if place and one.partition("=")[0] not in known:
                found[-1] += f",{one}"
            else:
                found.append(one)
    return found


def _samples(argument: str, seed: int, limit: int | None, evidence: bool) -> tuple[str, "Iterable[Sample]"]:
    from corelens import toy
    from corelens.data import registry

    name, separator, where = argument.partition("=")
    if not separator:
        raise typer.BadParameter(f"{argument!r} has no place; write NAME=WHERE, as in scenes=200.", param_hint="--data")
    try:
        drawn: dict[str, Any] = {**toy.SAMPLES, **registry.WORLDS}
        unknown = f"is no data set that corelens knows; it knows {', '.join([*registry.READERS, *drawn])}."
        place, *settings = where.split(",")
        if name not in drawn and name not in registry.READERS:
            raise ValueError(f"{name!r} {unknown}")
        if draw := drawn.get(name):
            if settings:
                raise ValueError(f"{name} takes no settings, and {settings[0].partition('=')[0]!r} {unknown}")
            if not (place.isdecimal() and int(place)):
                raise ValueError(f"{argument}: {name} needs a number of samples, as in {name}=200.")
            return name, islice(draw(int(place), seed), limit)
        named = dict(setting.split("=", 1) for setting in settings if "=" in setting)
        if len(named) < len(settings):
            raise ValueError(f"{argument!r}: after the place come settings, as in {name}=PATH,split=test.")
        found = registry.load(name, place, **{key: int(v) if v.isdecimal() else v for key, v in named.items()})
        found = found.with_evidence() if evidence else found
    except (OSError, ValueError, ImportError) as cause:
        raise typer.BadParameter(str(cause), param_hint="--data") from cause
    return found.name, islice(found, limit)


def texts(model: str, limit: int | None) -> dict[str, "Iterable[Sample]"]:
    """Questions without a picture that the model can be expected to answer."""
    from corelens import toy
    from corelens.data.synthetic.text import plain_text
    from corelens.hf.loading import checkpoint_folder

    # The toys know few words, and are known by the record of their training.
    if (Path(checkpoint_folder(model)) / "record.json").is_file():
        return {task: islice(toy.texts(N_TEXTS, 0, task), limit) for task in toy.TEXT_TASKS}
    return {"text": islice(plain_text(), limit)}


def loaded(model: str, dtype: str, device: str) -> "HookedMLLM":
    """The model, on the device of the machine that loads it."""
    import torch

    from corelens.model import HookedMLLM

    placed: dict[str, Any] = {"device_map": device} if device != "auto" or torch.cuda.is_available() else {}
    return HookedMLLM.from_pretrained(model, dtype=dtype, **placed)


@contextmanager
def resumable(out: Path, work: str) -> Iterator[None]:
    """Says mistakes without a traceback, that `out` holds other work first, and after an interruption how to go on."""
    from corelens.experiments.run_folder import check_work

    try:
        check_work(out, work)
        yield
    except (OSError, ValueError, TypeError, RuntimeError, ImportError) as cause:
        raise typer.BadParameter(str(cause)) from cause
    except KeyboardInterrupt:
        typer.echo(f"\nInterrupted. The same command goes on where {out} ends.", err=True)
        raise typer.Exit(130) from None


def ranking(scores: Path, model: str | None = None, option: str = "--scores") -> "HeadScores":
    """What a scan wrote, with a warning if it was of another model than the one that is meant."""
    if scores.is_dir():
        inside = ", ".join(sorted(path.name for path in scores.glob("*.safetensors"))) or "none"
        raise typer.BadParameter(f"{scores} is a folder; name one of its scores: {inside}.", param_hint=option)
    if not scores.is_file():
        raise typer.BadParameter(f"there is no file {scores}.", param_hint=option)
    from corelens.scores import HeadScores

    try:
        found = HeadScores.load(scores)
    except (OSError, ValueError) as cause:
        raise typer.BadParameter(str(cause), param_hint=option) from cause
    if model is not None and found.model not in ("", model):
        typer.echo(
            f"Warning: {scores} ranks the heads of {found.model!r}, and the model is {model!r}. {docs_link('other-scores')}",
            err=True,
        )
    return found


def warn_of_shared(ranking: "HeadScores", samples: Mapping[str, Sequence["Sample"]]) -> None:
    """Says that heads are tested on samples that chose them, on which they look more needed than they are."""
    tested = [sample.id for own in samples.values() for sample in own]
    if shared := len({*tested} & {*ranking.samples}):
        typer.echo(
            f"Warning: {shared} of {len(tested)} samples also chose the heads, which look more needed on these than on "
            f"others. Test them on others, which another --seed draws.",
            err=True,
        )


def source(ranking: "HeadScores") -> str:
    """Whose scores these are."""
    return f"{ranking.metric} of {ranking.model or 'a model without a name'}"
