"""The explorer as a widget."""

import base64
from collections.abc import Iterable, Sequence
from typing import Any

from corelens.data import Sample
from corelens.errors import optional_import
from corelens.explorer import frontend
from corelens.explorer.state import ExplorerState
from corelens.explorer.view import REFUSALS, Explorer
from corelens.heads import HeadSet
from corelens.inputs.media import Picture
from corelens.model import HookedMLLM
from corelens.scores import HeadScores

with optional_import("notebooks"):
    import anywidget
    import traitlets


def explore(
    model: HookedMLLM,
    asked: Iterable[Sample] | Sample | Picture | Sequence[Picture] = (),
    question: str = "",
    scores: HeadScores | None = None,
) -> Any:
    """A widget that shows where a model's heads look, and what its answers lose without them.

    Args:
        model: The model.
        asked: Samples for the gallery; or a picture, or several, for `question`. Other pictures can be dropped into
            the widget, and other questions typed.
        question: What is asked about pictures.
        scores: What a scan found; its top five percent of heads are marked.

    Returns:
        The widget, which shows itself at the end of a cell. Its `state` can be read and set; `heads` are those that
        are shown, and `code` is Python that reproduces the view.

    Raises:
        ValueError: If there are more than a hundred samples, or the scores are of another model's heads.
        TypeError: If the model's decoder stands beside an encoder.
    """
    return ExplorerWidget(Explorer(model, gallery(asked, question), scores))


def gallery(asked: Any, question: str = "") -> Iterable[Sample]:
    """Samples as they are; pictures and a question as one sample."""
    if isinstance(asked, Sample):
        return [asked]
    if not question:
        return asked
    pictures = tuple(asked) if isinstance(asked, list | tuple) else (asked,)
    return [Sample("own", question, "", pictures)]


class ExplorerWidget(anywidget.AnyWidget):
    """An explorer whose state can also be read and set from Python.

    All of it is state, never an event: a message that comes twice changes nothing.
    """

    _esm = frontend.MODULE
    _css = frontend.STYLE

    about = traitlets.Dict().tag(sync=True)
    """What does not change: the model's heads, the measures, the gallery."""

    state = traitlets.Dict().tag(sync=True)
    """What the user has chosen; see `ExplorerState`. Set it to show something else."""

    uploads = traitlets.Dict().tag(sync=True)
    """Own pictures: by key, their file's `name` and `data` in base64."""

    prompt = traitlets.Dict(allow_none=True).tag(sync=True)
    """What is asked: pictures, where their tokens lie, the tokens that can look."""

    view = traitlets.Dict().tag(sync=True)
    """What the state shows."""

    error = traitlets.Unicode().tag(sync=True)
    """Why the state shows nothing, if it does not; `view` is then the last one that could be shown."""

    def __init__(self, explorer: Explorer) -> None:
        about = explorer.about()
        super().__init__(about=about, state=about["first"])
        self.explorer = explorer
        self.observe(self._take, "uploads")
        self.observe(self._show, "state")
        self._show()

    @property
    def heads(self) -> HeadSet:
        """The heads that are shown now, to go on with in Python."""
        return HeadSet(ExplorerState.parse(self.state).heads, "chosen in the explorer")

    @property
    def code(self) -> str:
        """Python code that reproduces what is shown now."""
        return self.view.get("code", "")

    def _take(self, change: Any) -> None:
        """Takes own pictures, and shows a state that waited for them."""
        try:
            for key, file in self.uploads.items():
                self.explorer.prompts.add_picture(key, str(file["name"]), base64.b64decode(file["data"], validate=True))
        except (ValueError, KeyError, TypeError) as cause:
            self._say(str(cause))
        else:
            self._show()

    def _show(self, change: Any = None) -> None:
        try:
            state = ExplorerState.parse(self.state)
            if not self.prompt or self.prompt["key"] != self.explorer.prompts.key(state):
                self.prompt = self.explorer.prompt(state)
            self.view = self.explorer.look(state)
            self.error = ""
        except REFUSALS as cause:
            self._say(str(cause))

    def _say(self, error: str) -> None:
        self.error = ""  # the same error twice is news, too
        self.error = error
