"""The explorer: interventions by mouse on a picture and a question, in notebooks and as a page."""

from corelens.errors import optional_import

with optional_import("app"):
    from corelens.explorer.view import Explorer as Explorer
