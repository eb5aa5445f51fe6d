"""The rule that a sample names, and the mean of scores."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corelens.data import Sample, Tally, score, tally, tally_by
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
    assert score(Sample("s", "q", "red"), "It is red.") == 1
    assert score(Sample("s", "q", "red", scoring="exact"), "It is red.") == 0


@given(
    st.text(max_size=30),
    st.sampled_from(["phrase", "exact", "contains", "anls", "numeric", "yes-no", "count", "label", "choice"]),
)
def test_scores_of_any_text_lie_between_zero_and_one_or_are_none(prediction: str, rule: str):
    result = score(Sample("s", "q", "7", scoring=rule, choices=("7", "cup")), prediction)
    assert result is None or 0 <= result <= 1


def test_unreadable_answers_count_as_wrong_and_are_counted_separately():
    assert tally([1.0, None, 0.5, None]) == Tally(mean=0.375, n=4, n_unreadable=2)
    with pytest.raises(ValueError, match="there are no scores"):
        tally([])


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([None, 0.0, 0.5, 1.0])), max_size=12))
def test_groups_are_tallied_apart(values: list[tuple[str, float | None]]):
    samples = [Sample(str(index), "q", "a", about={"task": task}) for index, (task, _) in enumerate(values)]
    tallies = tally_by("task", samples, [value for _, value in values])
    assert tallies == {task: tally(value for other, value in values if other == task) for task, _ in values}
    assert sum(one.n for one in tallies.values()) == len(values)


def test_a_sample_without_a_group_is_an_error():
    sample = Sample("s", "q", "a", about={"domain": "law"})
    with pytest.raises(ValueError, match="sample s has no 'task'; it is about domain"):
        tally_by("task", [sample], [1.0])
    with pytest.raises(ValueError, match="zip"):
        tally_by("domain", [sample], [])
