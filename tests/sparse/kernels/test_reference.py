"""The masks and the reference, against loops over pairs of query and key."""

import torch
from torch.testing import assert_close

from corelens.sparse.kernels import reference, visible_full, visible_streaming
from tests.helpers.kernel_cases import KernelCase


def test_the_masks_are_those_of_a_loop():
    case = KernelCase(12, batch=2, window=3, sink=2, retained_share=0.2, starts=[0, 5])
    full = visible_full(case.position, case.position, start=case.start)
    streaming = visible_streaming(case.position, case.position, case.retained, window=3, start=case.start)
    for row, begin in enumerate([0, 5]):
        for p in range(12):
            for q in range(12):
                assert full[row, 0, p, q] == (begin <= q <= p)
                assert streaming[row, 0, p, q] == (begin <= q <= p and (q > p - 3 or bool(case.retained[row, q])))


def test_the_reference_is_attention_by_a_loop():
    case = KernelCase(5, kv_heads=2, group=2, d_head=3)
    visible = torch.rand(1, 4, 5, 5, generator=torch.Generator().manual_seed(1)) < 0.5
    visible[0, 1, 2] = False
    outputs = reference(case.query, case.key, case.value, visible, 0.7)
    for head in range(4):
        for row in range(5):
            weights = [
                (0.7 * case.query[0, head, row].double() @ case.key[0, head // 2, q].double()).exp()
                for q in range(5) if visible[0, head, row, q]
            ]  # fmt: skip
            values = [case.value[0, head // 2, q].double() for q in range(5) if visible[0, head, row, q]]
            expected = (
                sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights) if weights else torch.zeros(3)
            )
            assert_close(outputs[0, head, row], expected.double())
