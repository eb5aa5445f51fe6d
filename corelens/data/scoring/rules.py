"""Scores of short answers: 0 to 1, or None for an unreadable answer."""

import re
import string
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def without_articles(text: str) -> str:
    """Normalize a text as SQuAD does: lower case, without punctuation, articles and superfluous space."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split())


def numbers_in(text: str) -> list[float]:
    """All numbers in a text; commas between digits separate thousands."""
    return [float(number) for number in re.findall(r"-?(?:\d+\.?\d*|\.\d+)", re.sub(r"(?<=\d),(?=\d{3})", "", text))]


def similarity(first: str, second: str) -> float:
    """One minus the Levenshtein distance divided by the longer length; 1 for two empty texts."""
    if not first and not second:
        return 1.0
    distances = list(range(len(second) + 1))
    for row, a in enumerate(first, 1):
        diagonal, distances[0] = distances[0], row
        for column, b in enumerate(second, 1):
            diagonal, distances[column] = (
                distances[column],
                min(diagonal + (a != b), distances[column] + 1, distances[column - 1] + 1),
            )
    return 1 - distances[-1] / max(len(first), len(second))


def exact(prediction: str, answers: Sequence[str]) -> float:
    """Return 1 if the answer equals an accepted one, apart from surrounding space, and 0 otherwise."""
    return float(prediction.strip() in {answer.strip() for answer in answers})


def contains(prediction: str, answers: Sequence[str]) -> float:
    """Return 1 if an accepted answer occurs in the prediction, ignoring case, punctuation and articles.

    Source:
        MMLongBench's `sub_em`, except that an accepted answer that is empty without articles never counts.
    """
    prediction = without_articles(prediction)
    return float(any((text := without_articles(answer)) != "" and text in prediction for answer in answers))


def anls(prediction: str, answers: Sequence[str], threshold: float = 0.5) -> float:
    """Normalised Levenshtein similarity to the nearest accepted answer, without case; 0 at the threshold or below.

    Source:
        Biten et al. 2019 (ST-VQA), equation 1; the mean over samples is ANLS.
    """
    best = max(similarity(prediction.strip().lower(), answer.strip().lower()) for answer in answers)
    return best if best > threshold else 0.0


def numeric(prediction: str, answers: Sequence[str], tolerance: float = 0.05) -> float | None:
    """Return 1 if the last number is within a relative tolerance of an accepted number; None without a number.

    Source:
        Relaxed accuracy of ChartQA (Masry et al. 2022), which reads the whole answer as a number and counts others as
        wrong. As there, only 0 matches 0, and percent signs are ignored.
    """
    numbers = numbers_in(prediction)
    if not numbers:
        return None
    accepted = [number for answer in answers for number in numbers_in(answer)]
    return float(any(abs(numbers[-1] - number) <= tolerance * abs(number) for number in accepted))


def choice(prediction: str, choices: Sequence[str], answer: str) -> float | None:
    """Return 1 if the chosen option is correct; None if no option, or more than one, can be read from the prediction.

    The option is read from, in this order: the text of one option, word for word; a letter at the beginning, as in `B`,
    `(B) blue` or `B.`; a letter after "answer is", "answer:" or "option"; the only option whose text occurs; the only
    capital letter of an option that stands alone, other than the words A and I.

    Source:
        MLVU takes the text before the first `)`, MMLongBench the last lone capital; both count unreadable answers
        as wrong.
    """
    correct, text = list(choices).index(answer), prediction.strip()
    exact_matches = [
        index for index, option in enumerate(choices) if option.strip().lower() == text.rstrip(".").lower()
    ]
    if len(exact_matches) == 1:
        return float(exact_matches[0] == correct)
    letters = string.ascii_uppercase[: len(choices)]
    for pattern in (
        rf"\(?([{letters}])(?:[).:,]|\s*$)",
        rf"(?:.*?)\b(?i:answer(?:\s+is)?|option)\s*:?\s*\(?([{letters}])\b",
    ):
        if match := re.match(pattern, text, re.DOTALL):
            return float(letters.index(match[1]) == correct)
    candidates = [index for index, option in enumerate(choices) if len(option) > 1 and _contains_words(text, option)]
    if not candidates:
        lone_capitals = set(re.findall(rf"\b([{letters}])\b", text)) - {"A", "I"}
        candidates = [letters.index(letter) for letter in lone_capitals]
    return float(candidates[0] == correct) if len(candidates) == 1 else None


def _contains_words(text: str, option: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(option.strip())}(?!\w)", text, re.IGNORECASE) is not None


def yes_no(prediction: str, answers: Sequence[str]) -> float | None:
    """Return 1 if the last yes or no is correct; None without either.

    Source:
        MMLongBench's `binary_acc`, which gives a fixed guess for an answer without either.
    """
    words = re.findall(r"\b(yes|no)\b", prediction.lower())
    return float(words[-1] in {answer.strip().lower() for answer in answers}) if words else None


def count(prediction: str, answers: Sequence[str]) -> float | None:
    """Return 1 if the numbers have the sum of the accepted ones; None without a number.

    The numbers are those of the last list in brackets, or all whole numbers without one.

    Source:
        MMLongBench's `soft_acc`.
    """
    numbers = _whole_numbers(prediction)
    return float(any(sum(numbers) == sum(_whole_numbers(answer) or []) for answer in answers)) if numbers else None


def _whole_numbers(text: str) -> list[int] | None:
    lists = re.findall(r"\[[\d\s,]+\]", text)
    return [int(number) for number in re.findall(r"\d+", lists[-1] if lists else text)] or None


def label(prediction: str, answers: Sequence[str]) -> float | None:
    """Return 1 if the number after "label:", or else the last whole number, is accepted; None without a number.

    Source:
        MMLongBench's `cls_acc`.
    """
    match = re.search(r"label:\s*(\d+)", prediction, re.IGNORECASE)
    numbers = [match[1]] if match else re.findall(r"\b\d+\b", prediction)
    return float(int(numbers[-1]) in {int(answer) for answer in answers}) if numbers else None
