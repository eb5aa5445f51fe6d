"""The explorer: attention, ablation and answers of a model by mouse, in notebooks and on a page."""

from corelens.explorer.view import Explorer as Explorer
from corelens.explorer.widget import explore as explore
