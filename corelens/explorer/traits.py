"""The anywidget of the explorer, whose traits are synchronised with its front end."""

import base64
from typing import Any

import anywidget
import traitlets

from corelens.explorer import frontend
from corelens.explorer.state import ExplorerState
from corelens.explorer.view import VIEW_ERRORS, Explorer
from corelens.heads import HeadSet


class ExplorerWidget(anywidget.AnyWidget):
    """An explorer whose state can also be read and set from Python.

    All traits are state, never events: a message that comes twice changes nothing.
    """

    _esm = frontend.MODULE
    _css = frontend.STYLE

    about = traitlets.Dict().tag(sync=True)
    """Constants: the model's heads, the metrics, the gallery."""

    state = traitlets.Dict().tag(sync=True)
    """The user's choices; see `ExplorerState`. Set it to show something else."""

    uploads = traitlets.Dict().tag(sync=True)
    """Uploaded pictures by key: their file's `name`, and its `data` in base64."""

    prompt = traitlets.Dict(allow_none=True).tag(sync=True)
    """The prompt: pictures, the grids of their tokens, and the tokens that can be queries."""

    view = traitlets.Dict().tag(sync=True)
    """The view of the state."""

    error = traitlets.Unicode().tag(sync=True)
    """Reason why the state cannot be shown, or empty; `view` is then the last one that could be."""

    def __init__(self, explorer: Explorer) -> None:
        about = explorer.about()
        super().__init__(about=about, state=about["first"])
        self.explorer = explorer
        self.observe(self._add_uploads, "uploads")
        self.observe(self._show, "state")
        self._show()

    @property
    def heads(self) -> HeadSet:
        """The heads that are shown now, for further work in Python."""
        return HeadSet(ExplorerState.parse(self.state).heads, "chosen in the explorer")

    @property
    def code(self) -> str:
        """Python code that reproduces the view."""
        return self.view.get("code", "")

    def _add_uploads(self, change: Any) -> None:
        """Add uploaded pictures, and show a state that waited for them."""
        try:
            for key, file in self.uploads.items():
                self.explorer.prompts.add_picture(key, str(file["name"]), base64.b64decode(file["data"], validate=True))
        except (ValueError, KeyError, TypeError) as cause:
            self._report(str(cause))
        else:
            self._show()

    def _show(self, change: Any = None) -> None:
        try:
            state = ExplorerState.parse(self.state)
            if not self.prompt or self.prompt["key"] != self.explorer.prompts.key(state):
                self.prompt = self.explorer.prompt(state)
            self.view = self.explorer.view(state)
            self.error = ""
        except VIEW_ERRORS as cause:
            self._report(str(cause))

    def _report(self, error: str) -> None:
        self.error = ""  # so that the same error twice is a change, too
        self.error = error
