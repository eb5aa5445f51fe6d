"""The explorer: what is asked, what the model computes for it, and how that is shown, in notebooks and on a page."""

from corelens.viz.explorer.explorer import Explorer as Explorer
