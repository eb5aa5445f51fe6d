"""Options that several commands share, and the functions that read them."""

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from corelens.errors import docs_link

if TYPE_CHECKING:
    from rich.console import Console

    from corelens.data import Sample
    from corelens.experiments.remote import AnyModel
    from corelens.model import HookedMLLM
    from corelens.scores import HeadScores

Model = Annotated[str, typer.Option(metavar="MODEL", help="A folder, a Hub id, or a shipped model.")]
Data = Annotated[
    list[str],
    typer.Option(
        metavar="NAME=WHERE",
        help="A data set and its folder or Hub id (refcocog=PATH, mmlongbench=PATH,task=infoseek), a drawn one and the "
        "number of its samples (scenes=200), or a name for data of your own (mine=FILE.jsonl). Several with commas "
        "between them, or given several times.",
    ),
]
Out = Annotated[
    Path, typer.Option(metavar="FOLDER", help="Folder of the run, which the same command resumes.", file_okay=False)
]
Limit = Annotated[int | None, typer.Option(metavar="NUMBER", help="Most samples of each data set.", min=1)]
How = Annotated[
    Literal["zero", "mean", "mean_by_role", "resample"],
    typer.Option(help="Replacement of a head's output. Zero needs no samples to measure, so heads alone decide."),
]
AnswerHow = Annotated[
    Literal["zero", "mean", "mean_by_role", "resample", "uniform", "uniform_all_keys"],
    typer.Option(
        help="Replacement of a head's output, or attention to all keys alike: to those it may attend to, or to all. "
        "Zero is the same as a model without these weights."
    ),
]
BoxUnitOption = Annotated[
    Literal["pixels", "thousandths", "fractions"] | None,
    typer.Option(help="Unit of the boxes that the model answers with, for data that asks for boxes."),
]
Seed = Annotated[int, typer.Option(metavar="NUMBER", help="Seed of synthetic data.", min=0)]
Dtype = Annotated[str, typer.Option(metavar="TYPE", help="Such as bfloat16; auto: the checkpoint's own.")]
DeviceOption = Annotated[str, typer.Option(metavar="DEVICE", help="Such as cuda:1; auto: all GPUs together.")]
Ray = Annotated[
    str | None,
    typer.Option(metavar="CLUSTER", help="Ray cluster to run on: auto, local (a new one) or HOST:PORT."),
]
Actors = Annotated[
    int | None, typer.Option(metavar="NUMBER", help="With --ray: most models at a time.", show_default="2", min=1)
]
Gpus = Annotated[
    int | None,
    typer.Option(metavar="NUMBER", help="With --ray: GPUs of each model.", show_default="1 if any", min=0),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the numbers as JSON, no table.")]


MOST_DRAWN = 1_000_000
"""Most samples that are drawn: more would be a slip of the hand, and end in a lack of memory."""

N_TEXTS = 100
"""Questions of each text task of the shipped models."""

N_MEASURED = 16
"""Samples of each data set on which what heads write is measured, for controls that write as much."""


def samples(
    arguments: Iterable[str], seed: int, limit: int | None, evidence: bool = False
) -> dict[str, "Iterable[Sample]"]:
    """Samples of each `NAME=WHERE`, by name; with `evidence`, only those that have evidence regions."""
    datasets: dict[str, Iterable[Sample]] = {}
    for argument in _separate(arguments):
        name, dataset = _samples(argument, seed, limit, evidence)
        if name in datasets:
            raise typer.BadParameter(f"two data sets are {name}; give each once.", param_hint="--data")
        datasets[name] = dataset
    return datasets


def _separate(arguments: Iterable[str]) -> list[str]:
    """Split data sets at commas; a piece that is a setting of the data set before it belongs to that one."""
    from corelens.data import registry

    datasets: list[str] = []
    for argument in arguments:
        for index, piece in enumerate(argument.split(",")):
            name, separator, _ = piece.partition("=")
            of_last = datasets[-1].partition("=")[0] if index else ""
            if index and (not separator or (of_last not in _drawn() and name in registry.settings(of_last))):
                datasets[-1] += f",{piece}"
            else:
                datasets.append(piece)
    return datasets


def _drawn() -> dict[str, Any]:
    """Functions that draw a number of samples, by name."""
    from corelens import smol, toy
    from corelens.data import registry

    return {**toy.SAMPLES, **smol.SAMPLES, **registry.SYNTHETIC}


def _samples(argument: str, seed: int, limit: int | None, evidence: bool) -> tuple[str, "Iterable[Sample]"]:
    from corelens.data import registry

    name, separator, where = argument.partition("=")
    if not separator:
        mine = f", or mine={argument} under any name for data of your own" if Path(argument).exists() else ""
        message = f"{argument!r} has no place; write NAME=WHERE, as in scenes=200{mine}. {docs_link('data-name')}"
        raise typer.BadParameter(message, param_hint="--data")
    try:
        place, *settings = where.split(",")
        if draw := _drawn().get(name):
            if settings or not (place.isdecimal() and 0 < int(place) <= MOST_DRAWN):
                raise ValueError(
                    f"{argument}: {name} needs a number of samples up to {MOST_DRAWN:,}, as in {name}=200; data of "
                    f"your own need another name. {docs_link('data-name')}"
                )
            return name, islice(draw(int(place), seed), limit)
        if name not in registry.READERS and not Path(place).expanduser().exists():
            raise ValueError(
                f"{name!r} is no data set that corelens knows; it knows {', '.join([*registry.READERS, *_drawn()])}. "
                f"Nor is there a file or folder {place!r} of your own. {docs_link('data-name')}"
            )
        keywords = dict(setting.split("=", 1) for setting in settings if "=" in setting)
        if len(keywords) < len(settings):
            raise ValueError(f"{argument!r}: after the place come settings, as in {name}=PATH,split=test.")
        reader = registry.load(name, place, **{key: int(v) if v.isdecimal() else v for key, v in keywords.items()})
        reader = reader.with_evidence() if evidence else reader
    except (OSError, ValueError, ImportError) as cause:
        raise typer.BadParameter(str(cause), param_hint="--data") from cause
    return reader.name, islice(reader, limit)


def doses(text: str, option: str) -> list[float | int]:
    """Numbers of heads, or shares such as 5% or 0.05, between commas."""
    return [_dose(part.strip(), option) for part in text.split(",")]


def _dose(text: str, option: str) -> float | int:
    if text.isdecimal():
        return int(text)
    try:
        share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        share = math.nan
    if not 0 < share < 1:
        raise typer.BadParameter(
            f"{text!r} is neither a number of heads, such as 5, nor a share of them, such as 5% or 0.05.",
            param_hint=option,
        )
    return share


def text_samples(model: str, limit: int | None) -> dict[str, "Iterable[Sample]"]:
    """Questions without pictures that the model can be expected to answer."""
    from corelens.data.synthetic.text import plain_text
    from corelens.hf.loading import checkpoint_folder
    from corelens.shipped import questions_for

    # What was trained here knows few words or tasks, and has a record of its training.
    if (Path(checkpoint_folder(model)) / "record.json").is_file():
        return {task: islice(draw(N_TEXTS, 0), limit) for task, draw in questions_for(model).texts.items()}
    return {"text": islice(plain_text(), limit)}


def loaded(model: str, dtype: str, device: str) -> "HookedMLLM":
    """Load the model."""
    import torch

    from corelens.model import HookedMLLM

    device_map: dict[str, Any] = {"device_map": device} if device != "auto" or torch.cuda.is_available() else {}
    return HookedMLLM.from_pretrained(model, dtype=dtype, **device_map)


@contextmanager
def placed(
    model: str, dtype: str, device: str, ray: str | None, actors: int | None, gpus: int | None
) -> Iterator["AnyModel"]:
    """The model in this process, or on a Ray cluster, to which it stays connected until the block ends."""
    if ray is None:
        if actors is not None or gpus is not None:
            raise typer.BadParameter("they configure Ray actors; give --ray too.", param_hint="--actors, --gpus")
        yield loaded(model, dtype, device)
        return
    from corelens.experiments.ray import RayModel, connect_to_ray

    with connect_to_ray(ray):
        yield RayModel(partial(loaded, model, dtype, device), ray, actors or 2, gpus)


@contextmanager
def resumable(out: Path, work: str) -> Iterator[None]:
    """Print errors without a traceback, that of a folder with another run first, and how to resume after Ctrl-C."""
    from corelens.experiments.run_folder import check_work

    try:
        check_work(out, work)
        with _kept_warnings(out):
            yield
    except (OSError, ValueError, TypeError, RuntimeError, ImportError) as cause:
        raise typer.BadParameter(str(cause)) from cause
    except KeyboardInterrupt:
        typer.echo(f"\nInterrupted. The same command resumes {out}.", err=True)
        raise typer.Exit(130) from None


_WARNINGS: list[str] = []
"""Warnings of the running command."""


def warn(message: str) -> None:
    """Print a warning, which the report of the run repeats."""
    typer.echo(f"Warning: {message}", err=True)
    _WARNINGS.append(message)


@contextmanager
def _kept_warnings(out: Path) -> Iterator[None]:
    """Keep the warnings of a command in its folder, those of Python among them."""
    from corelens.experiments.run_folder import add_warnings

    show = warnings.showwarning

    def keep(message: Any, *arguments: Any, **options: Any) -> None:
        _WARNINGS.append(str(message))
        show(message, *arguments, **options)

    warnings.showwarning = keep
    try:
        yield
    finally:
        warnings.showwarning = show
        kept = list(_WARNINGS)
        _WARNINGS.clear()
        add_warnings(out, kept)


def ranking(scores: Path, model: str | None = None, option: str = "--scores") -> "HeadScores":
    """Load head scores, with a warning if they are of another model than `model`."""
    if scores.is_dir():
        files = ", ".join(sorted(path.name for path in scores.glob("*.safetensors"))) or "none"
        raise typer.BadParameter(f"{scores} is a folder; name one of its scores: {files}.", param_hint=option)
    if not scores.is_file():
        raise typer.BadParameter(f"there is no file {scores}.", param_hint=option)
    from corelens.scores import HeadScores

    try:
        loaded_scores = HeadScores.load(scores)
    except (OSError, ValueError) as cause:
        raise typer.BadParameter(str(cause), param_hint=option) from cause
    if model is not None and loaded_scores.model not in ("", model):
        warn(
            f"{scores} ranks the heads of {loaded_scores.model!r}, and the model is {model!r}. "
            f"{docs_link('other-scores')}"
        )
    return loaded_scores


def warn_of_shared(ranking: "HeadScores", samples: Mapping[str, Sequence["Sample"]]) -> None:
    """Warn that heads are tested on samples that chose them, which overestimates their effect."""
    tested = [sample for dataset in samples.values() for sample in dataset]
    chose = {*ranking.samples, *ranking.groups}
    if shared := len({sample.id for sample in tested if chose & {sample.id, sample.group}}):
        warn(
            f"{shared} of {len(tested)} samples also chose the heads, or others about the same picture, document or "
            f"video did, and overestimate their effect. Test on other samples; of drawn data, another --seed makes "
            f"others."
        )


def write_norm(model: "AnyModel", datasets: Mapping[str, Sequence["Sample"]]) -> "HeadScores | None":
    """Length of what each head writes; None, with the reason on the screen, if it cannot be measured."""
    from corelens.experiments.conditions import MATCHED
    from corelens.experiments.controls import WRITE_NORM
    from corelens.experiments.scan import scan

    try:
        return scan(model, {name: samples[:N_MEASURED] for name, samples in datasets.items()}, WRITE_NORM)
    except ValueError as cause:
        typer.echo(f"Left out: {MATCHED} controls, since what heads write cannot be measured: {cause}", err=True)
        return None


def source(ranking: "HeadScores") -> str:
    """Metric and model of the scores, in words."""
    return f"{ranking.metric} of {ranking.model or 'a model without a name'}"


def with_interval(value: float, bounds: Sequence[float] | None) -> str:
    """A number with its interval, if it has one: that of a single sample has none."""
    return f"{value:.3g}" + (f" [{bounds[0]:.3g}, {bounds[1]:.3g}]" if bounds else "")


def print_skipped(console: "Console", skipped: Mapping[str, str], file: str) -> None:
    """Print the number of skipped samples, and the file that has the reasons."""
    if skipped:
        console.print(f"{len(skipped)} samples were skipped; {file} has the reasons.")
