"""Scores of the two benchmarks on long documents, by the format of the answer."""

import ast
import math
import re
from collections import Counter
from collections.abc import Sequence

from corelens.data.scoring.rules import anls, numbers_in, plain_minus, without_articles
from corelens.errors import check_choice
from corelens.files import parse_json

DOC_FORMATS = ("Str", "Int", "Float", "List", "None")
DOCQA_FORMATS = ("Integer", "Int", "Float", "String", "Str", "List", "None")
NOT_ANSWERABLE = "Not answerable"


def mmlongbench_doc(prediction: str, answer: str, answer_format: str) -> float | None:
    """Score by MMLongBench-Doc's rules: `Int`, `Float`, `Str`, `List` or `None`, which is "Not answerable".

    Source:
        `eval_score.py` of the benchmark. The authors first let a language model shorten the answer and name its
        format; here `prediction` is used as it is, so the prompt must ask for a short answer. Lists are read as
        literals, never evaluated, and the score is None instead of 0 without a number where one is expected.
    """
    check_choice("answer_format", answer_format, DOC_FORMATS)
    if answer_format == "Int":
        number = _number(prediction)
        return None if number is None else float(int(number) == int(float(_clean(answer))))
    if answer_format == "Float":
        number = _number(_clean(prediction))
        return None if number is None else float(_same_number(number, float(_clean(answer))))
    if answer_format in ("Str", "None"):
        return _same_text(_clean(prediction), _clean(answer))
    predicted, correct = (sorted(map(_clean, _items(text))) for text in (prediction, answer))
    if len(predicted) != len(correct):
        return 0.0
    if _number(correct[0]) is not None or _is_exact(correct[0]):
        return float(predicted == correct)
    return min(anls(item, [correct_item]) for item, correct_item in zip(predicted, correct, strict=True))


def f1_of_answerable(predictions: Sequence[str], answers: Sequence[str], scores: Sequence[float | None]) -> float:
    """F1 of MMLongBench-Doc: scores on answerable questions, as shares of those (recall) and of those answered."""
    answerable = [score or 0.0 for answer, score in zip(answers, scores, strict=True) if answer != NOT_ANSWERABLE]
    n_answered = sum(_clean(text) != NOT_ANSWERABLE.lower() for text in predictions)
    if not answerable or not n_answered or not sum(answerable):
        return 0.0
    recall, precision = sum(answerable) / len(answerable), sum(answerable) / n_answered
    return 2 * recall * precision / (recall + precision)


def _clean(text: str) -> str:
    text = re.sub(r"\s*\([^)]*\)", "", text.lower().strip()).strip()
    text = re.sub(r"^['\"]|['\"]$", "", text).strip()
    return text.lstrip("$").strip().rstrip("%").strip()


def _number(text: str) -> float | None:
    try:
        return number if math.isfinite(number := float(plain_minus(text))) else None
    except ValueError:
        return None


def _same_number(prediction: float, answer: float) -> bool:
    """True if both agree within one percent or after rounding to the coarser one, also as a share or as percent."""
    for number in (answer / 100, answer, answer * 100):
        places = max(2, min(len(str(value).partition(".")[2]) for value in (prediction, number)))
        if math.isclose(number, prediction, rel_tol=0.01) or round(prediction, places) == round(number, places):
            return True
    return False


def _same_text(prediction: str, answer: str) -> float:
    return float(prediction == answer) if _is_exact(answer) else anls(prediction, [answer])


def _is_exact(answer: str) -> bool:
    """True for links, files, pages, telephone numbers, times, dates and addresses, which must match exactly."""
    return (
        "https://" in answer
        or answer.endswith((".py", "ipynb"))
        or answer.startswith("page")
        or "a.m." in answer
        or "p.m." in answer
        or re.fullmatch(r"\d+([-\s]\d+)?|\d{4}[-\s]\d{2}[-\s]\d{2}|[\w.%+-]+@[\w.-]+\.[a-z]{2,}", answer) is not None
    )


def _items(text: str) -> list[str]:
    try:
        value = ast.literal_eval(text.strip()) if text.strip().startswith("[") else text
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = text
    return [str(item) for item in value] if isinstance(value, list) and value else [str(text)]


def mmlongbench_docqa(prediction: str, answer: str, answer_format: str) -> float | None:
    """Score by the rules of MMLongBench's document questions: `Integer`, `Float`, `String`, `List` or `None`.

    Numbers count if they occur in the prediction, texts by the F1 of their words, lists by the mean over their items,
    with all texts of a list joined to one.

    Source:
        `eval_docqa_score` of the benchmark, its version without a judge, except that the score is None instead of 0
        without a number where one is expected.
    """
    check_choice("answer_format", answer_format, DOCQA_FORMATS)
    prediction = re.sub(r".*?answer:", "", prediction, count=1, flags=re.IGNORECASE | re.DOTALL).strip()
    if answer_format in ("Integer", "Int", "Float"):
        numbers = numbers_in(prediction)
        return float(_number_occurs(numbers, answer, answer_format)) if numbers else None
    if answer_format in ("String", "Str", "None"):
        return _text_occurs(prediction, answer)
    if not isinstance(listed := parse_json(answer), list) or not listed:
        raise ValueError(f"the answer {answer!r:.80} is no list of items, as its format says.")
    items = [str(item) for item in listed]
    texts = [item for item in items if _number(_without_unit(item)) is None and not _must_occur(item)]
    others = [item for item in items if item not in texts]
    scores = [_item_occurs(prediction, item) for item in ([" ".join(texts)] if texts else []) + others]
    return sum(scores) / len(scores)


def _item_occurs(prediction: str, item: str) -> float:
    if (number := _number(_without_unit(item))) is None:
        return _text_occurs(prediction, item)
    is_whole = number == int(number) and "%" not in item
    return float(_number_occurs(numbers_in(prediction), item, "Integer" if is_whole else "Float"))


def _number_occurs(numbers: Sequence[float], answer: str, answer_format: str) -> bool:
    correct = float(_without_unit(answer))
    if answer_format != "Float":
        return correct in numbers
    return any(
        math.isclose(scaled, number, rel_tol=0.01)
        for number in numbers
        for scaled in (correct / 100, correct, correct * 100)
    )


def _without_unit(text: str) -> str:
    """Strip the unit from a number."""
    text = text.lower().strip().replace(",", "")
    units = ("kg", "meters", "acres", "minutes", "miles", "mile", "feet", "million", "thousand", "billion", "mm", "m")
    for unit in units:
        text = text.removesuffix(unit).strip()
    return text.strip("'\"").strip().strip("$").strip("£").strip("%").strip()


def _must_occur(answer: str) -> bool:
    return _is_exact(answer) or re.fullmatch(r"\d{1,4}[-/\s]\d{1,2}([-/\s]\d{1,4})?", answer) is not None


def _text_occurs(prediction: str, answer: str) -> float:
    if _must_occur(answer):
        return float(answer in prediction)
    predicted, correct = without_articles(prediction).split(), without_articles(answer).split()
    n_common = sum((Counter(predicted) & Counter(correct)).values())
    return 2 * n_common / (len(predicted) + len(correct)) if n_common else 0.0
