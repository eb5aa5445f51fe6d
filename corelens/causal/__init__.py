"""What interventions do to answers."""

from corelens.causal.effects import answers_right as answers_right
