"""Effects of interventions on answers."""

from corelens.causal.answers import AnswerLogProbs as AnswerLogProbs
from corelens.causal.attribution import attribution_patch as attribution_patch
from corelens.causal.effects import kl_div as kl_div
from corelens.causal.effects import log_prob as log_prob
from corelens.causal.effects import logit_diff as logit_diff
from corelens.causal.effects import logit_margin as logit_margin
from corelens.causal.effects import rank as rank
from corelens.causal.evaluate import Evaluation as Evaluation
from corelens.causal.evaluate import evaluate as evaluate
from corelens.causal.grad_drop import grad_drop as grad_drop
from corelens.causal.integrated_gradients import integrated_gradients as integrated_gradients
from corelens.causal.qk_attribution import QKAttribution as QKAttribution
from corelens.causal.qk_attribution import qk_attribution as qk_attribution
from corelens.causal.routes import HeadRoutes as HeadRoutes
from corelens.causal.routes import key_routes as key_routes
from corelens.causal.routes import ov_by_route as ov_by_route
from corelens.causal.self_repair import SelfRepair as SelfRepair
from corelens.causal.self_repair import self_repair as self_repair
from corelens.causal.session import Session as Session
from corelens.metrics.paired import PairedDifference as PairedDifference
