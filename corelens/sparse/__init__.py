"""Head-sparse inference: few heads attend to everything, the others to little, so that generation costs less."""

from corelens.sparse.apply import apply as apply
from corelens.sparse.controls import best_groups as best_groups
from corelens.sparse.controls import best_layers as best_layers
from corelens.sparse.controls import plans_and_controls as plans_and_controls
from corelens.sparse.plan import HeadPlan as HeadPlan
from corelens.sparse.plan import hybrid as hybrid
from corelens.sparse.plan import published as published
from corelens.sparse.resolve import resolve as resolve
from corelens.sparse.rules import Full as Full
from corelens.sparse.rules import Off as Off
from corelens.sparse.rules import Streaming as Streaming
from corelens.sparse.rules import StreamingBlocks as StreamingBlocks
from corelens.sparse.rules import TopBlocks as TopBlocks
