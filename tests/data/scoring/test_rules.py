"""Scores of short answers, against the rules of the authors of each data set."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corelens.data.scoring.rules import (
    anls,
    choice,
    contains,
    count,
    exact,
    label,
    numbers_in,
    numeric,
    phrase,
    similarity,
    yes_no,
)


def levenshtein_distance(first: str, second: str) -> int:
    """lev(a, b) = min(lev(a', b) + 1, lev(a, b') + 1, lev(a', b') + [a0 != b0]), where ' drops the first letter."""
    if not first or not second:
        return len(first) + len(second)
    return min(
        levenshtein_distance(first[1:], second) + 1,
        levenshtein_distance(first, second[1:]) + 1,
        levenshtein_distance(first[1:], second[1:]) + (first[0] != second[0]),
    )


@given(st.text("ab", max_size=5), st.text("ab", max_size=5))
def test_similarity_is_one_minus_the_share_of_edits(first: str, second: str):
    longest = max(len(first), len(second))
    assert similarity(first, second) == (1 - levenshtein_distance(first, second) / longest if longest else 1)


def test_exact_answers_match_letter_for_letter():
    assert exact(" red ", ["blue", "red"]) == 1
    assert exact("Red", ["red"]) == 0


def test_contained_answers_match_without_case_punctuation_and_articles():
    assert contains("It is the U.S. Army!", ["us army"]) == 1
    assert contains("It is an army", ["navy", "Army."]) == 1
    assert contains("It is an army", ["navy"]) == 0
    assert contains("anything", ["the", "!"]) == 0


PHRASES = {
    ("It is red.", "red"): 1, ("The answer is **Red**", "red"): 1, ("a red cup", "the red cup"): 1,
    ("cup on the table", "Cup on a table"): 1, ("It's -7", "-7"): 1, ("\u22127", "-7"): 1, ("1,000 people", "1000"): 1,
    ("$1,234.50", "$1,234.50"): 1, ("5 %", "5%"): 1, ("It is 7.", "7"): 1, ("12:30", "12:30"): 1, ("A", "A"): 1,
    ("\u662f\u7ea2\u8272\u7684", "\u7ea2\u8272"): 1, ("red or blue", "red"): 1, ("not sure, but red", "red"): 1,
    ("bored", "red"): 0, ("I do not know", "no"): 0, ("It is not red", "red"): 0, ("It isn't the red", "red"): 0,
    ("red is wrong", "red"): 0, ("17", "7"): 0, ("-7", "7"): 0, ("7.5", "7"): 0, ("3.7", "7"): 0,
    ("it is a dog", "A"): 0,
    ("co-op", "op"): 0, ("7-year", "7"): 0, ("", "red"): 0, ("red", "!"): 0, ("blue", "red"): 0,
}  # fmt: skip
"""Predictions and answers, and whether one says the other."""


@pytest.mark.parametrize(("prediction", "answer"), PHRASES)
def test_answers_in_a_sentence_are_found_as_whole_words_that_are_not_denied(prediction: str, answer: str):
    assert phrase(prediction, ["no such answer", answer]) == PHRASES[prediction, answer]


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


NUMBERS = {
    "\u22125": [-5], "it fell by \u20130.5": [-0.5], "-5": [-5], "(-5)": [-5], "x=-5": [-5], "-$5": [-5], "$-5": [-5],
    "3-5": [3, 5], "3\u20135": [3, 5], "3 - 5": [3, 5], "5%-7%": [5, 7], "2020-05": [2020, 5], "COVID-19": [19],
    "1,000": [1000], "1,234,567.5": [1234567.5], "1, 2": [1, 2], "1,2345": [1, 2345], "1e3": [1000], "1.5E-2": [0.015],
    "1.5 x 10^3": [1500], "1.5 \u00d7 10^{-2}": [0.015], "1e999": [], ".5 and 5.": [0.5, 5], "none": [],
}  # fmt: skip
"""Texts, and the numbers in them."""


@pytest.mark.parametrize("text", NUMBERS)
def test_numbers_are_read_as_they_are_meant(text: str):
    assert numbers_in(text) == pytest.approx(NUMBERS[text])


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("B", 1), ("(B)", 1), ("B.", 1), ("B) a pen", 1), ("(A) a cup", 0), ("a pen", 1), ("A pen.", 1), ("A cup", 0),
        ("The answer is B", 1), ("Answer: (C)", 0), ("Best option: (B)", 1), ("I see a pen there.", 1),
        ("It is B, I think", 1), ("a pen or a cup", None), ("B or C", None), ("", None), ("I do not know", None),
        ("E", None), ("It is a penguin", None), ("It must be A", 0), ("A dog is here, so B", 1), ("I say B", 1),
        # denied
        ("not B", None), ("It is not B.", None), ("B is not right", None), ("B is wrong", None), ("It isn't (B)", None),
        ("neither A nor B", None), ("B, not C", 1), ("A is wrong, it is B", 1), ("The answer is not B", None),
        ("The answer is B, not A", 1), ("It is not a pen", None), ("a cup, not a pen", 0), ("not a cup but a pen", 1),
        ("rather B than A", None), ("all except B", None),
        # more than one
        ("A or B", None), ("Both A and B", None), ("(A) or (B)", None), ("A, B", None), ("A/B", None),
        ("B and C", None),
        ("The answer is A or B", None), ("(A) a cup or (B) a pen", None), ("option A or option B", None),
        # taken back
        ("Answer: A. Wait, actually the answer is B", 1), ("The answer is A. No, the answer is B.", 1),
        ("A. Sorry, I mean B.", 1), ("B. Wait, it is a cup", 0), ("A. Wait, B or C", None),
        ("Sorry, the answer is B", 1), ("(B) because (A) is too small", 1),
        ("The answer is B. Option A is too small.", 1),
    ],
)  # fmt: skip
def test_choices_are_read_from_letter_or_text(prediction: str, expected: float | None):
    assert choice(prediction, ["A cup", "A pen", "A fish", "A key"], "A pen") == expected


def test_the_last_yes_or_no_counts():
    assert yes_no("No. Wait, yes", ["Yes"]) == 1
    assert yes_no("yes", ["No"]) == 0
    assert yes_no("maybe; I know", ["No"]) is None


def test_counts_are_compared_by_their_sum():
    assert count("[1, 2]", ["[2, 1, 0]"]) == 1
    assert count("I saw 1 and 1: [1, 1]", ["[2]"]) == 1
    assert count("3", ["[2]"]) == 0
    assert count("none", ["[2]"]) is None
    assert count("1,000", ["1000"]) == 1
    assert count("2 of them, 1.5 apart", ["2"]) == 1


def test_labels_are_numbers():
    assert label("label: 17", ["17"]) == 1
    assert label("not 3 but 17", ["17"]) == 1
    assert label("label: 3, not 17", ["17"]) == 0
    assert label("a car", ["17"]) is None
    assert label("17, at 0.5", ["17"]) == 1
