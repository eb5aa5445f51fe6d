"""The static cache layer against the growing one."""

from hypothesis import given, settings
from hypothesis import strategies as st

from corelens.sparse.cache import StaticHeadSparseLayer
from corelens.sparse.cache_layer import HeadSparseLayer
from tests.helpers.planned_layers import PlannedLayer, planned_layers, run_passes


@given(planned_layers(), st.integers(0, 9))
@settings(max_examples=80, deadline=None)
def test_a_static_layer_is_the_growing_one(case: PlannedLayer, seed: int):
    plan, qkv = case.plan(keep_text=False), case.random_qkv(seed)
    growing = run_passes(HeadSparseLayer(plan), qkv, case.start, case.spans, None)
    static = StaticHeadSparseLayer(plan, case.length + 3)
    case.check(run_passes(static, qkv, case.start, case.spans, None), growing)
