"""The explorer: attention, ablation and answers of a model by mouse, in notebooks and on a page."""

from corelens.errors import optional_import

with optional_import("app"):
    from corelens.explorer.view import Explorer as Explorer
