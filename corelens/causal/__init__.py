"""What interventions do to answers."""

from corelens.causal.answers import Said as Said
from corelens.causal.attribution import attribute as attribute
from corelens.causal.effects import kl as kl
from corelens.causal.effects import log_probability as log_probability
from corelens.causal.effects import logit_difference as logit_difference
from corelens.causal.effects import rank as rank
from corelens.causal.evaluate import Answers as Answers
from corelens.causal.evaluate import answers as answers
from corelens.causal.paired import Paired as Paired
from corelens.causal.session import Session as Session
