"""The explorer: what is asked, what the model computes for it, and how that is shown, in notebooks and on a page."""

from corelens.explorer.view import Explorer as Explorer
from corelens.explorer.widget import explore as explore
