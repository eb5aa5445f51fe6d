"""The scores of long-document benchmarks, against the rules of their authors."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corelens.data.scoring.documents import f1_of_answerable, mmlongbench_doc, mmlongbench_docqa


@pytest.mark.parametrize(
    ("prediction", "answer", "answer_format", "expected"),
    [
        ("8", "8", "Int", 1), ("8.0", "8", "Int", 1), ("9", "8", "Int", 0), ("eight", "8", "Int", None),
        ("18.29%", "18.29%", "Float", 1), ("0.1829", "18.29%", "Float", 1), ("1829", "18.29", "Float", 1),
        ("18.4", "18.29%", "Float", 1), ("18.6", "18.29%", "Float", 0), ("$5 (est.)", "5.0", "Float", 1),
        ("\u22125", "-5", "Int", 1), ("\u22125", "-5.0", "Float", 1),
        ("none", "5.0", "Float", None), ("0", "0.0", "Float", 1),
        ("less well off", "Less well-off", "Str", 1 - 1 / 13), ("'Blue' (dark)", "blue", "Str", 1),
        ("https://a.com/b", "https://a.com/c", "Str", 0), ("https://a.com/c", "https://a.com/c", "Str", 1),
        ("page 12", "Page 13", "Str", 0), ("2015-06", "2015-07", "Str", 0), ("main.py", "maim.py", "Str", 0),
        ("not answerable", "Not answerable", "None", 1), ("The dog", "Not answerable", "None", 0),
        ("['10%', 'White']", "['White', '10%']", "List", 1), ("['White']", "['White', '10%']", "List", 0),
        ("['Circle', 'Rectangles']", "['Circle', 'Rectangle']", "List", 0.9),
        ("['2', '3']", "['2', '4']", "List", 0), ("White", "['White']", "List", 1), ("[broken", "['White']", "List", 0),
        ("[__import__('os').getcwd()]", "['White']", "List", 0),
    ],
)  # fmt: skip
def test_mmlongbench_doc_scores_by_the_format_of_the_answer(
    prediction: str, answer: str, answer_format: str, expected: float | None
):
    result = mmlongbench_doc(prediction, answer, answer_format)
    assert result == (expected if expected is None else pytest.approx(expected))


def test_mmlongbench_doc_f1_is_over_questions_with_an_answer_and_questions_answered():
    predictions = ["8", "dog", "Not answerable", "cat"]
    answers = ["8", "Not answerable", "Not answerable", "mouse"]
    # One of two answerable questions right, three answered.
    recall, precision = 1 / 2, 1 / 3
    assert f1_of_answerable(predictions, answers, [1.0, 0.0, 1.0, None]) == pytest.approx(
        2 * recall * precision / (recall + precision)
    )
    assert f1_of_answerable(["Not answerable"], ["8"], [0.0]) == 0


@pytest.mark.parametrize(
    ("prediction", "answer", "answer_format", "expected"),
    [
        ("Answer: 18 people", "18", "Integer", 1), ("17 or 18", "18", "Integer", 1), ("17", "18", "Integer", 0),
        ("many", "18", "Integer", None), ("3-5", "5", "Integer", 1),
        ("3-5", "-5", "Integer", 0), ("1,200 kg", "1200 kg", "Integer", 1), ("it is 0.5", "50%", "Float", 1),
        ("it is 0.6", "50%", "Float", 0), ("a red car", "the red bike", "String", 0.5),
        ("see https://a.com", "https://a.com", "String", 1), ("none", "https://a.com", "String", 0),
        ("Ann and Bob in 1999", '["Ann", "Bob", 1999]', "List", (4 / 7 + 1) / 2), ("2", '["1", "2"]', "List", 0.5),
        ("Not answerable.", "Not answerable", "None", 1),
    ],
)  # fmt: skip
def test_mmlongbench_scores_document_questions_by_the_answers_that_occur(
    prediction: str, answer: str, answer_format: str, expected: float | None
):
    result = mmlongbench_docqa(prediction, answer, answer_format)
    assert result == (expected if expected is None else pytest.approx(expected))


@given(st.text(max_size=30), st.sampled_from(["Int", "Float", "Str", "List", "None"]))
def test_document_scores_of_any_text_lie_between_zero_and_one_or_are_none(prediction: str, answer_format: str):
    for rule in (mmlongbench_doc, mmlongbench_docqa):
        result = rule(prediction, "[7]" if answer_format == "List" else "7", answer_format)
        assert result is None or 0 <= result <= 1


@pytest.mark.parametrize("answer", ["[" * 5000, "[]", "5", "no list", '{"a": 1}'])
def test_gold_answers_that_are_no_list_are_refused(answer: str):
    with pytest.raises(ValueError, match=r"is no list of items|nested too deeply|Expecting value"):
        mmlongbench_docqa("x", answer, "List")
