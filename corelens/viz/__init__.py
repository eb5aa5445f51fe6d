"""Figures as values, the page that shows them, and the explorer."""

from corelens.viz.figures import accuracy_bars as accuracy_bars
from corelens.viz.figures import attention_over_picture as attention_over_picture
from corelens.viz.figures import head_map as head_map
from corelens.viz.figures import score_curve as score_curve
from corelens.viz.notebook import explore as explore
