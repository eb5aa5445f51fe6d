"""Invoices: boxes hold their values and nothing else."""

from dataclasses import replace

import numpy as np

from corelens.data.synthetic.documents import draw_document, draw_page
from tests.helpers.pictures import around, changed


def test_changing_a_field_of_a_document_changes_pixels_in_its_box_alone():
    document = draw_document(np.random.default_rng(0))
    before, boxes = draw_page(document)
    assert len(boxes) == len(document.fields) + 3 * len(document.items)
    for name in document.fields:
        after, moved = draw_page(replace(document, fields={**document.fields, name: "QQQQQQQ"}))
        # The box is as tight as can be: what differs from the page without the value is the box itself.
        assert changed(before, after) == around(boxes[name], moved[name])
    item = next(iter(document.items))
    for column in document.items[item]:
        items = {**document.items, item: {**document.items[item], column: "00000"}}
        after, moved = draw_page(replace(document, items=items))
        assert changed(before, after) == around(boxes[f"{item}, {column}"], moved[f"{item}, {column}"])


def test_no_value_occurs_twice_in_a_document():
    for seed in range(50):
        document = draw_document(np.random.default_rng(seed))
        values = [*document.fields.values(), *(value for item in document.items.values() for value in item.values())]
        assert len(set(values)) == len(values)
