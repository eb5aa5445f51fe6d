"""Head-sparse inference: some heads see everything, the others little, and generation costs less."""

from corelens.sparse.budgets import best_groups as best_groups
from corelens.sparse.budgets import best_layers as best_layers
from corelens.sparse.budgets import plans_and_controls as plans_and_controls
from corelens.sparse.generate import apply as apply
from corelens.sparse.placing import place as place
from corelens.sparse.plan import Full as Full
from corelens.sparse.plan import HeadPlan as HeadPlan
from corelens.sparse.plan import Off as Off
from corelens.sparse.plan import Streaming as Streaming
from corelens.sparse.plan import TopBlocks as TopBlocks
from corelens.sparse.plan import hybrid as hybrid
