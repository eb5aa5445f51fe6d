"""Scores of short answers: 0 to 1, or None where an answer cannot be read as an answer at all."""

import re
import string
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def without_articles(text: str) -> str:
    """Lower case, without punctuation, articles and superfluous space: SQuAD's normal form."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split())


def numbers_in(text: str) -> list[float]:
    """All numbers in a text; commas between digits separate thousands."""
    return [float(number) for number in re.findall(r"-?(?:\d+\.?\d*|\.\d+)", re.sub(r"(?<=\d),(?=\d{3})", "", text))]


def similarity(one: str, other: str) -> float:
    """One minus the Levenshtein distance as a share of the longer text; two empty texts are the same."""
    if not one and not other:
        return 1.0
    distances = list(range(len(other) + 1))
    for row, a in enumerate(one, 1):
        diagonal, distances[0] = distances[0], row
        for column, b in enumerate(other, 1):
            diagonal, distances[column] = (
                distances[column],
                min(diagonal + (a != b), distances[column] + 1, distances[column - 1] + 1),
            )
    return 1 - distances[-1] / max(len(one), len(other))


def exact(said: str, answers: Sequence[str]) -> float:
    """One if the answer is one of those accepted, letter for letter, but for space around it."""
    return float(said.strip() in {answer.strip() for answer in answers})


def contains(said: str, answers: Sequence[str]) -> float:
    """One if an accepted answer occurs in what was said, without case, punctuation and articles.

    Source:
        MMLongBench's `sub_em`. An accepted answer of which nothing is left never counts; theirs always would.
    """
    said = without_articles(said)
    return float(any((bare := without_articles(answer)) != "" and bare in said for answer in answers))


def anls(said: str, answers: Sequence[str], threshold: float = 0.5) -> float:
    """Normalised Levenshtein similarity to the nearest accepted answer, without case; 0 at the threshold or below.

    Source:
        Biten et al. 2019 (ST-VQA), equation 1; the mean over samples is ANLS.
    """
    best = max(similarity(said.strip().lower(), answer.strip().lower()) for answer in answers)
    return best if best > threshold else 0.0


def numeric(said: str, answers: Sequence[str], tolerance: float = 0.05) -> float | None:
    """One if the only, or else the last, number said is within a share of an accepted number; None without a number.

    Source:
        Relaxed accuracy of ChartQA (Masry et al. 2022), which takes the whole answer as a number and counts others as
        wrong. As there, 0 is met only by 0, and a percent sign changes nothing.
    """
    found = numbers_in(said)
    if not found:
        return None
    wanted = [number for answer in answers for number in numbers_in(answer)]
    return float(any(abs(found[-1] - number) <= tolerance * abs(number) for number in wanted))


def choice(said: str, choices: Sequence[str], answer: str) -> float | None:
    """One if the chosen option is the right one; None if no option, or more than one, can be read from what was said.

    Read, in this order: the text of one option, word for word; a letter at the beginning, as in `B`, `(B) blue` or
    `B.`; a letter after "answer is", "answer:" or "option"; the only option whose text occurs; the only capital letter
    of an option that stands alone, other than the words A and I.

    Source:
        MLVU takes what stands before the first `)`, MMLongBench the last lone capital; both count what they cannot
        read as wrong.
    """
    right, text = list(choices).index(answer), said.strip()
    same = [index for index, option in enumerate(choices) if option.strip().lower() == text.rstrip(".").lower()]
    if len(same) == 1:
        return float(same[0] == right)
    letters = string.ascii_uppercase[: len(choices)]
    for pattern in (
        rf"\(?([{letters}])(?:[).:,]|\s*$)",
        rf"(?:.*?)\b(?i:answer(?:\s+is)?|option)\s*:?\s*\(?([{letters}])\b",
    ):
        if match := re.match(pattern, text, re.DOTALL):
            return float(letters.index(match[1]) == right)
    named = [index for index, option in enumerate(choices) if len(option) > 1 and _says(text, option)]
    if not named:
        alone = set(re.findall(rf"\b([{letters}])\b", text)) - {"A", "I"}
        named = [letters.index(letter) for letter in alone]
    return float(named[0] == right) if len(named) == 1 else None


def _says(text: str, option: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(option.strip())}(?!\w)", text, re.IGNORECASE) is not None


def yes_no(said: str, answers: Sequence[str]) -> float | None:
    """One if the last yes or no that was said is right; None if there is neither.

    Source:
        MMLongBench's `binary_acc`, which gives a fixed guess for an answer without either.
    """
    found = re.findall(r"\b(yes|no)\b", said.lower())
    return float(found[-1] in {answer.strip().lower() for answer in answers}) if found else None


def count(said: str, answers: Sequence[str]) -> float | None:
    """One if the numbers said have the sum of the accepted ones; None without a number.

    Of what was said, the last list in brackets counts, or else all whole numbers.

    Source:
        MMLongBench's `soft_acc`.
    """
    found = _whole_numbers(said)
    return float(any(sum(found) == sum(_whole_numbers(answer) or []) for answer in answers)) if found else None


def _whole_numbers(text: str) -> list[int] | None:
    lists = re.findall(r"\[[\d\s,]+\]", text)
    return [int(number) for number in re.findall(r"\d+", lists[-1] if lists else text)] or None


def label(said: str, answers: Sequence[str]) -> float | None:
    """One if the number after "label:", or else the last whole number, is an accepted one; None without a number.

    Source:
        MMLongBench's `cls_acc`.
    """
    found = re.search(r"label:\s*(\d+)", said, re.IGNORECASE)
    numbers = [found[1]] if found else re.findall(r"\b\d+\b", said)
    return float(int(numbers[-1]) in {int(answer) for answer in answers}) if numbers else None
