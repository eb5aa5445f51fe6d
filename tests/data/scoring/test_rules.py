"""Answers are scored as the authors of each data set score them; what cannot be read is told from what is wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corelens.data import Sample, Tally, score, tally
from corelens.data.scoring import (
    anls,
    box_hit,
    choice,
    contains,
    count,
    exact,
    f1_of_answerable,
    iou,
    label,
    mmlongbench_doc,
    mmlongbench_docqa,
    numeric,
    parse_box,
    yes_no,
)
from corelens.data.scoring.rules import similarity
from corelens.tokens import Box

SIZE = (200, 100)


def distance(one: str, other: str) -> int:
    """Levenshtein's distance by its definition."""
    if not one or not other:
        return len(one) + len(other)
    return min(
        distance(one[1:], other) + 1, distance(one, other[1:]) + 1, distance(one[1:], other[1:]) + (one[0] != other[0])
    )


@given(st.text("ab", max_size=5), st.text("ab", max_size=5))
def test_similarity_is_one_minus_the_share_of_edits(one: str, other: str):
    longest = max(len(one), len(other))
    assert similarity(one, other) == (1 - distance(one, other) / longest if longest else 1)


def test_exact_answers_match_letter_for_letter():
    assert exact(" red ", ["blue", "red"]) == 1
    assert exact("Red", ["red"]) == 0


def test_contained_answers_match_without_case_punctuation_and_articles():
    assert contains("It is the U.S. Army!", ["us army"]) == 1
    assert contains("It is an army", ["navy", "Army."]) == 1
    assert contains("It is an army", ["navy"]) == 0
    assert contains("anything", ["the", "!"]) == 0


def test_anls_is_the_similarity_above_one_half():
    assert anls("Hello", ["hello"]) == 1
    assert anls("hallo", ["hello", "xyz"]) == pytest.approx(0.8)
    assert anls("he", ["help"]) == 0  # exactly one half
    assert anls("hel", ["help"]) == 0.75


def test_numbers_may_be_five_percent_off():
    assert numeric("about 1,050 people", ["1000"]) == 1
    assert numeric("1051", ["1000"]) == 0
    assert numeric("first 3, then 40%", ["40"]) == 1
    assert numeric("-5", ["5"]) == 0
    assert numeric("0.01", ["0"]) == 0
    assert numeric("many", ["5"]) is None


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("B", 1), ("(B)", 1), ("B.", 1), ("B) a pen", 1), ("(A) a cup", 0), ("a pen", 1), ("A pen.", 1), ("A cup", 0),
        ("The answer is B", 1), ("Answer: (C)", 0), ("Best option: (B)", 1), ("I see a pen there.", 1),
        ("It is B, I think", 1), ("a pen or a cup", None), ("B or C", None), ("", None), ("I do not know", None),
        ("E", None), ("It is a penguin", None),
    ],
)  # fmt: skip
def test_choices_are_read_from_letter_or_text(said: str, expected: float | None):
    assert choice(said, ["A cup", "A pen", "A fish", "A key"], "A pen") == expected


def test_the_last_yes_or_no_counts():
    assert yes_no("No. Wait, yes", ["Yes"]) == 1
    assert yes_no("yes", ["No"]) == 0
    assert yes_no("maybe; I know", ["No"]) is None


def test_counts_are_compared_by_their_sum():
    assert count("[1, 2]", ["[2, 1, 0]"]) == 1
    assert count("I saw 1 and 1: [1, 1]", ["[2]"]) == 1
    assert count("3", ["[2]"]) == 0
    assert count("none", ["[2]"]) is None


def test_labels_are_numbers():
    assert label("label: 17", ["17"]) == 1
    assert label("not 3 but 17", ["17"]) == 1
    assert label("label: 3, not 17", ["17"]) == 0
    assert label("a car", ["17"]) is None


@pytest.mark.parametrize(
    "said",
    [
        "[50, 20, 100, 80]", "(50,20),(100,80)", "<box>(50, 20), (100, 80)</box>", "<box>[[50, 20, 100, 80]]</box>",
        '```json\n[{"bbox_2d": [50, 20, 100, 80], "label": "cup 2"}]\n```', "It is at 50 20 100 80.",
        "<|box_start|>(50,20),(100,80)<|box_end|>", "[50.0, 20.0, 100.0, 80.0]",
    ],
)  # fmt: skip
def test_boxes_are_read_from_the_forms_in_which_models_say_them(said: str):
    assert parse_box(said, SIZE, "pixels") == Box(50, 20, 100, 80)


def test_boxes_are_scaled_from_the_unit_that_is_stated():
    expected = Box(50, 20, 100, 80)
    assert parse_box("[250, 200, 500, 800]", SIZE, "thousandths") == expected
    assert parse_box("[0.25, 0.2, 0.5, 0.8]", SIZE, "fractions") == expected
    assert parse_box("[100, 40, 200, 160]", SIZE, (400, 200)) == expected


def test_boxes_that_do_not_fit_their_unit_or_have_no_area_are_not_guessed():
    assert parse_box("[250, 200, 500, 800]", SIZE, "pixels") is None
    assert parse_box("[250, 200, 500, 800]", SIZE, "fractions") is None
    assert parse_box("[50, 20, 50, 80]", SIZE, "pixels") is None
    assert parse_box("[100, 20, 50, 80]", SIZE, "pixels") is None
    assert parse_box("[1, 2, 3]", SIZE, "pixels") is None
    # The shape checks of the tests are as quick to refuse it as corelens is without them.
    with pytest.raises((ValueError, TypeError), match="percent"):
        parse_box("[1, 2, 3, 4]", SIZE, "percent")


def test_iou_is_counted_pixel_by_pixel():
    one, other = Box(0, 0, 4, 6), Box(2, 1, 7, 5)
    pixels = [
        {(x, y) for x in range(int(b.left), int(b.right)) for y in range(int(b.top), int(b.bottom))}
        for b in (one, other)
    ]
    assert iou(one, other) == len(pixels[0] & pixels[1]) / len(pixels[0] | pixels[1])
    assert iou(one, one) == 1
    assert iou(one, Box(4, 0, 5, 6)) == 0


def test_a_box_hits_from_an_iou_of_one_half():
    right = Box(0, 0, 10, 10)
    assert box_hit("[0, 0, 10, 5]", right, SIZE, "pixels") == 1
    assert box_hit("[0, 0, 10, 4.9]", right, SIZE, "pixels") == 0
    assert box_hit("there", right, SIZE, "pixels") is None


@pytest.mark.parametrize(
    ("said", "answer", "answer_format", "expected"),
    [
        ("8", "8", "Int", 1), ("8.0", "8", "Int", 1), ("9", "8", "Int", 0), ("eight", "8", "Int", None),
        ("18.29%", "18.29%", "Float", 1), ("0.1829", "18.29%", "Float", 1), ("1829", "18.29", "Float", 1),
        ("18.4", "18.29%", "Float", 1), ("18.6", "18.29%", "Float", 0), ("$5 (est.)", "5.0", "Float", 1),
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
    said: str, answer: str, answer_format: str, expected: float | None
):
    found = mmlongbench_doc(said, answer, answer_format)
    assert found == (expected if expected is None else pytest.approx(expected))


def test_mmlongbench_doc_f1_is_over_questions_with_an_answer_and_questions_answered():
    said = ["8", "dog", "Not answerable", "cat"]
    answers = ["8", "Not answerable", "Not answerable", "mouse"]
    # One of two answerable questions right, three answered.
    recall, precision = 1 / 2, 1 / 3
    assert f1_of_answerable(said, answers, [1.0, 0.0, 1.0, None]) == pytest.approx(
        2 * recall * precision / (recall + precision)
    )
    assert f1_of_answerable(["Not answerable"], ["8"], [0.0]) == 0


@pytest.mark.parametrize(
    ("said", "answer", "answer_format", "expected"),
    [
        ("Answer: 18 people", "18", "Integer", 1), ("17 or 18", "18", "Integer", 1), ("17", "18", "Integer", 0),
        ("many", "18", "Integer", None), ("1,200 kg", "1200 kg", "Integer", 1), ("it is 0.5", "50%", "Float", 1),
        ("it is 0.6", "50%", "Float", 0), ("a red car", "the red bike", "String", 0.5),
        ("see https://a.com", "https://a.com", "String", 1), ("none", "https://a.com", "String", 0),
        ("Ann and Bob in 1999", '["Ann", "Bob", 1999]', "List", (4 / 7 + 1) / 2), ("2", '["1", "2"]', "List", 0.5),
        ("Not answerable.", "Not answerable", "None", 1),
    ],
)  # fmt: skip
def test_mmlongbench_scores_document_questions_by_what_occurs(
    said: str, answer: str, answer_format: str, expected: float | None
):
    found = mmlongbench_docqa(said, answer, answer_format)
    assert found == (expected if expected is None else pytest.approx(expected))


def test_unknown_formats_and_rules_are_refused():
    with pytest.raises(ValueError, match="answer_format='Date' is not known"):
        mmlongbench_doc("a", "b", "Date")
    with pytest.raises(ValueError, match="answer_format='Date' is not known"):
        mmlongbench_docqa("a", "b", "Date")
    with pytest.raises(ValueError, match="sample s is scored by 'magic'; the rules that corelens has are exact, "):
        score(Sample("s", "q", "a", scoring="magic"), "a")


def test_a_sample_is_scored_by_its_rule_and_every_accepted_answer():
    sample = Sample("s", "q", "car", also_accepted=("automobile",))
    assert score(sample, "automobile") == 1
    assert score(Sample("s", "q", "car", scoring="contains"), "a car!") == 1


@given(
    st.text(max_size=30),
    st.sampled_from(["exact", "contains", "anls", "numeric", "yes-no", "count", "label", "choice"]),
)
def test_scores_of_any_text_lie_between_zero_and_one_or_are_none(said: str, rule: str):
    found = score(Sample("s", "q", "7", scoring=rule, choices=("7", "cup")), said)
    assert found is None or 0 <= found <= 1


@given(st.text(max_size=30), st.sampled_from(["Int", "Float", "Str", "List", "None"]))
def test_document_scores_of_any_text_lie_between_zero_and_one_or_are_none(said: str, answer_format: str):
    for rule in (mmlongbench_doc, mmlongbench_docqa):
        found = rule(said, "[7]" if answer_format == "List" else "7", answer_format)
        assert found is None or 0 <= found <= 1


def test_what_cannot_be_read_counts_as_wrong_and_apart():
    assert tally([1.0, None, 0.5, None]) == Tally(mean=0.375, n=4, n_unreadable=2)
    with pytest.raises(ValueError, match="there are no scores"):
        tally([])
