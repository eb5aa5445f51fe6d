"""Tasks without a picture."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corelens.toy.texts import draw_text_question


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10**6))
def test_text_tasks_are_right(seed: int):
    rng = np.random.default_rng(seed)
    question, answer = draw_text_question(rng, "sum")
    _, _, first, _, second, _ = question.split()
    assert int(first) + int(second) == int(answer)
    question, answer = draw_text_question(rng, "copy")
    assert question == f"copy {answer}"
    question, answer = draw_text_question(rng, "recall")
    words = question.split(" . ")[0].split()
    pairs = dict(zip(words[::2], words[1::2], strict=True))
    subject = question.split()[-2]
    assert answer == (pairs[subject] if subject in pairs else {v: k for k, v in pairs.items()}[subject])
    with pytest.raises(ValueError, match="task='sing' is not known; it is one of copy, recall, sum"):
        draw_text_question(rng, "sing")
