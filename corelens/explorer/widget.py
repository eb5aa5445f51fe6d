"""The explorer in notebooks."""

from collections.abc import Iterable, Sequence
from typing import Any

from corelens.data import Sample
from corelens.explorer.view import Explorer
from corelens.inputs.media import Picture
from corelens.model import HookedMLLM
from corelens.scores import HeadScores


def explore(
    model: HookedMLLM,
    asked: Iterable[Sample] | Sample | Picture | Sequence[Picture] = (),
    question: str = "",
    scores: HeadScores | None = None,
) -> Any:
    """Build a widget that shows what a model's heads attend to, and what its answers lose without them.

    Args:
        model: The model.
        asked: Samples for the gallery; or a picture, or several, for `question`. Other pictures can be dropped into
            the widget, and other questions typed.
        question: A question about pictures.
        scores: Head scores, e.g. of a scan; the top five percent of heads are marked.

    Returns:
        The widget, which shows itself at the end of a cell. Its `state` can be read and set; `heads` are those that
        are shown, and `code` is Python that reproduces the view.

    Raises:
        ValueError: If there are more than a hundred samples, or the scores are of another model's heads.
        TypeError: If the model has an encoder and a decoder.
    """
    try:
        # Here, since `corelens explore` runs without anywidget.
        from corelens.explorer.traits import ExplorerWidget
    except ModuleNotFoundError as missing:
        raise ImportError(
            f"the explorer needs {missing.name} in notebooks: pip install 'corelens[notebooks]'. On the command line, "
            f"`corelens explore` shows it in a browser."
        ) from missing
    return ExplorerWidget(Explorer(model, gallery(asked, question), scores))


def gallery(asked: Any, question: str = "") -> Iterable[Sample]:
    """Return samples as they are; pictures and a question as one sample."""
    if isinstance(asked, Sample):
        return [asked]
    if not question:
        return asked
    pictures = tuple(asked) if isinstance(asked, list | tuple) else (asked,)
    return [Sample("own", question, "", pictures)]
