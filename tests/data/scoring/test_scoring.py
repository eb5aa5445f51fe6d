"""The rule that a sample names, and the mean of scores."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corelens.data import Sample, Tally, score, tally
from corelens.data.scoring.documents import mmlongbench_doc, mmlongbench_docqa


def test_unknown_formats_and_rules_are_errors():
    with pytest.raises(ValueError, match="answer_format='Date' is not known"):
        mmlongbench_doc("a", "b", "Date")
    with pytest.raises(ValueError, match="answer_format='Date' is not known"):
        mmlongbench_docqa("a", "b", "Date")
    with pytest.raises(ValueError, match="sample s is scored by 'magic'; the rules of corelens are exact, "):
        score(Sample("s", "q", "a", scoring="magic"), "a")


def test_a_sample_is_scored_by_its_rule_and_every_accepted_answer():
    sample = Sample("s", "q", "car", also_accepted=("automobile",))
    assert score(sample, "automobile") == 1
    assert score(Sample("s", "q", "car", scoring="contains"), "a car!") == 1


@given(
    st.text(max_size=30),
    st.sampled_from(["exact", "contains", "anls", "numeric", "yes-no", "count", "label", "choice"]),
)
def test_scores_of_any_text_lie_between_zero_and_one_or_are_none(prediction: str, rule: str):
    result = score(Sample("s", "q", "7", scoring=rule, choices=("7", "cup")), prediction)
    assert result is None or 0 <= result <= 1


def test_unreadable_answers_count_as_wrong_and_are_counted_separately():
    assert tally([1.0, None, 0.5, None]) == Tally(mean=0.375, n=4, n_unreadable=2)
    with pytest.raises(ValueError, match="there are no scores"):
        tally([])
