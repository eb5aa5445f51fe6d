"""The rules of the two benchmarks on long documents, by the format of the answer."""

import ast
import json
import math
import re
from collections import Counter
from collections.abc import Sequence

from corelens.data.scoring.rules import anls, numbers_in, without_articles

NOT_ANSWERABLE = "Not answerable"


def mmlongbench_doc(said: str, answer: str, answer_format: str) -> float | None:
    """Score by MMLongBench-Doc's rules: `Int`, `Float`, `Str`, `List` or `None`, which is "Not answerable".

    Source:
        `eval_score.py` of the benchmark. The authors first let a language model shorten the answer and name its
        format; here `said` is taken as it is, so the prompt must ask for a short answer. Lists are read as literals,
        never evaluated, and what is no number where one is expected is None instead of 0.
    """
    if answer_format == "Int":
        found = _number(said)
        return None if found is None else float(int(found) == int(float(_clean(answer))))
    if answer_format == "Float":
        found = _number(_clean(said))
        return None if found is None else float(_same_number(found, float(_clean(answer))))
    if answer_format in ("Str", "None"):
        return _same_text(_clean(said), _clean(answer))
    if answer_format != "List":
        raise ValueError(f"answer_format={answer_format!r} is not known; formats are Int, Float, Str, List and None.")
    ours, theirs = (sorted(map(_clean, _items(text))) for text in (said, answer))
    if len(ours) != len(theirs):
        return 0.0
    if _number(theirs[0]) is not None or _is_exact(theirs[0]):
        return float(ours == theirs)
    return min(anls(one, [other]) for one, other in zip(ours, theirs, strict=True))


def f1_of_answerable(said: Sequence[str], answers: Sequence[str], scores: Sequence[float | None]) -> float:
    """MMLongBench-Doc's F1: scores on questions with an answer, as a share of those and of those answered."""
    kept = [score or 0.0 for answer, score in zip(answers, scores, strict=True) if answer != NOT_ANSWERABLE]
    n_answered = sum(_clean(text) != NOT_ANSWERABLE.lower() for text in said)
    if not kept or not n_answered or not sum(kept):
        return 0.0
    recall, precision = sum(kept) / len(kept), sum(kept) / n_answered
    return 2 * recall * precision / (recall + precision)


def _clean(text: str) -> str:
    text = re.sub(r"\s*\([^)]*\)", "", text.lower().strip()).strip()
    text = re.sub(r"^['\"]|['\"]$", "", text).strip()
    return text.lstrip("$").strip().rstrip("%").strip()


def _number(text: str) -> float | None:
    try:
        return number if math.isfinite(number := float(text)) else None
    except ValueError:
        return None


def _same_number(said: float, wanted: float) -> bool:
    """Within one percent, or the same when rounded to the coarser of both, also as a share or as percent."""
    for number in (wanted / 100, wanted, wanted * 100):
        places = max(2, min(len(str(number_).partition(".")[2]) for number_ in (said, number)))
        if math.isclose(number, said, rel_tol=0.01) or round(said, places) == round(number, places):
            return True
    return False


def _same_text(said: str, answer: str) -> float:
    return float(said == answer) if _is_exact(answer) else anls(said, [answer])


def _is_exact(answer: str) -> bool:
    """Links, files, pages, telephone numbers, times, dates and addresses, of which nearly right is wrong."""
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
        found = ast.literal_eval(text.strip()) if text.strip().startswith("[") else text
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        found = text
    return [str(item) for item in found] if isinstance(found, list) and found else [str(text)]


# --- MMLongBench, the other benchmark --------------------------------------------------------------------------------


def mmlongbench_docqa(said: str, answer: str, answer_format: str) -> float | None:
    """Score by the rules of MMLongBench's document questions: `Integer`, `Float`, `String`, `List` or `None`.

    Numbers count if they occur in what was said, texts by the F1 of their words, lists by the mean over their items,
    with all texts of a list joined to one.

    Source:
        `eval_docqa_score` of the benchmark, its version without a judge. What holds no number where one is expected is
        None instead of 0.
    """
    said = re.sub(r".*?answer:", "", said, count=1, flags=re.IGNORECASE | re.DOTALL).strip()
    if answer_format in ("Integer", "Int", "Float"):
        found = numbers_in(said)
        return float(_number_occurs(found, answer, answer_format)) if found else None
    if answer_format in ("String", "Str", "None"):
        return _text_occurs(said, answer)
    if answer_format != "List":
        raise ValueError(
            f"answer_format={answer_format!r} is not known; formats are Integer, Float, String, List and None."
        )
    items = [str(item) for item in json.loads(answer)]
    words = [item for item in items if _number(_bare(item)) is None and not _must_occur(item)]
    others = [item for item in items if item not in words]
    scores = [_item_occurs(said, item) for item in ([" ".join(words)] if words else []) + others]
    return sum(scores) / len(scores)


def _item_occurs(said: str, item: str) -> float:
    if (number := _number(_bare(item))) is None:
        return _text_occurs(said, item)
    whole = number == int(number) and "%" not in item
    return float(_number_occurs(numbers_in(said), item, "Integer" if whole else "Float"))


def _number_occurs(found: Sequence[float], answer: str, answer_format: str) -> bool:
    wanted = float(_bare(answer))
    if answer_format != "Float":
        return wanted in found
    return any(
        math.isclose(number, said, rel_tol=0.01) for said in found for number in (wanted / 100, wanted, wanted * 100)
    )


def _bare(text: str) -> str:
    """A number without its unit."""
    text = text.lower().strip().replace(",", "")
    units = ("kg", "meters", "acres", "minutes", "miles", "mile", "feet", "million", "thousand", "billion", "mm", "m")
    for unit in units:
        text = text.removesuffix(unit).strip()
    return text.strip("'\"").strip().strip("$").strip("£").strip("%").strip()


def _must_occur(answer: str) -> bool:
    return _is_exact(answer) or re.fullmatch(r"\d{1,4}[-/\s]\d{1,2}([-/\s]\d{1,4})?", answer) is not None


def _text_occurs(said: str, answer: str) -> float:
    if _must_occur(answer):
        return float(answer in said)
    ours, theirs = without_articles(said).split(), without_articles(answer).split()
    same = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * same / (len(ours) + len(theirs)) if same else 0.0
