"""What interventions do to answers."""

from corelens.causal.attribution import attribute as attribute
from corelens.causal.doses import DoseCurve as DoseCurve
from corelens.causal.doses import dose_curve as dose_curve
from corelens.causal.effects import kl as kl
from corelens.causal.effects import log_probability as log_probability
from corelens.causal.effects import logit_difference as logit_difference
from corelens.causal.effects import rank as rank
from corelens.causal.generation import Answers as Answers
from corelens.causal.generation import answers as answers
from corelens.causal.paired import Paired as Paired
from corelens.causal.said import Said as Said
from corelens.causal.session import Session as Session
from corelens.causal.sweeps import Sweep as Sweep
from corelens.causal.sweeps import sweep as sweep
