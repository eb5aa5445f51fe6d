"""Head-sparse inference: some heads see everything, the others little, and generation costs less."""

from corelens.sparse.generate import apply as apply
from corelens.sparse.placing import place as place
from corelens.sparse.plan import Full as Full
from corelens.sparse.plan import HeadPlan as HeadPlan
from corelens.sparse.plan import Off as Off
from corelens.sparse.plan import Streaming as Streaming
from corelens.sparse.plan import TopBlocks as TopBlocks
from corelens.sparse.plan import best_groups as best_groups
from corelens.sparse.plan import hybrid as hybrid
