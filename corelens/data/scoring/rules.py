"""Scores of short answers: 0 to 1, or None for an unreadable answer."""

import math
import re
import string
from collections.abc import Sequence

UNSIGNED = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
"""Pattern of a number without its sign."""

_SIGNED = re.compile(rf"((?<![\w%)])-)?[$€£¥]?({UNSIGNED})")
"""A hyphen behind a number or a word is no minus: `3-5` is a range, `2020-05` a month."""

_MINUS = str.maketrans(dict.fromkeys("\u2212\u2010\u2011\u2013\ufe63\uff0d", "-"))
"""The minus, hyphens and the dash that texts have in place of the keyboard's hyphen."""

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def without_articles(text: str) -> str:
    """Normalize a text as SQuAD does: lower case, without punctuation, articles and superfluous space."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split())


def numbers_in(text: str) -> list[float]:
    """All finite numbers in a text; commas between digits separate thousands."""
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", plain_minus(text))
    text = re.sub(r"(?<=\d)\s*[x\u00d7*]\s*10\s*\^\s*\{?([+-]?\d+)\}?", r"e\1", text)  # 1.5 x 10^3
    numbers = (float((sign or "") + number) for sign, number in _SIGNED.findall(text))
    return [number for number in numbers if math.isfinite(number)]


def plain_minus(text: str) -> str:
    """The same text with the keyboard's hyphen for every minus and dash."""
    return text.translate(_MINUS)


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


def phrase(prediction: str, answers: Sequence[str]) -> float:
    """Return 1 if an accepted answer occurs as whole words that are not denied, ignoring case and articles.

    `It is red.` is right where the answer is `red`; `not red`, `bored`, `-7` or `17` where it is `7`, and `7.5` are
    not. Punctuation around the answer and commas in thousands do not count. An answer among others, as in `red or
    blue`, is right.

    Source:
        corelens's own: MMLongBench's `sub_em` (`contains`) finds `no` in `know`.
    """
    text = _plain(prediction)
    return float(any(_says(text, _plain(answer).strip(_AROUND)) for answer in answers))


_ARTICLES = re.compile(r"\b(?:a|an|the)\s+(?=\S)")
_AROUND = string.punctuation.replace("-", "") + " "
_LETTER = r"[^\W\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]"
"""Letters and digits of scripts that put spaces between words, so that others end a word."""


def _plain(text: str) -> str:
    """Lower case with single spaces, plain hyphens, no articles before other words and no commas in thousands."""
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", plain_minus(text.lower()))
    return " ".join(_ARTICLES.sub("", text).split())


def _says(text: str, answer: str) -> bool:
    """True if the answer occurs in a text as whole words, not within a compound or a number, and is not denied."""
    before = rf"(?<!{_LETTER})(?<!{_LETTER}-)(?<!\d[.,:/])" + (r"(?<!-)" if answer[:1].isdigit() else "")
    after = rf"(?!-?{_LETTER})(?![.,:/]\d)"
    found = re.finditer(f"{before}{re.escape(answer)}{after}", text) if answer else ()
    return any(not _is_denied(text, match.span()) for match in found)


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

    The option is read from, in this order: the text of one option, word for word; a letter after "answer is" or
    "answer:", the last; a letter at the beginning, as in `B`, `(B) blue` or `B.`; letters after "option"; the options
    whose texts occur; the capital letters of options that stand alone, other than the words A and I. Options that are
    denied ("not B", "B is wrong") do not count, and what follows a correction ("Wait, ...") counts alone if it names
    an option.

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
    *_, correction = _CORRECTION.split(text)
    said = _options_said(correction, choices) or _options_said(text, choices)
    return float(said == {correct}) if len(said) == 1 else None


_CORRECTION = re.compile(r"\b(?:wait|actually|correction|sorry|i mean|on second thoughts?)\b", re.IGNORECASE)
_DENIED_BEFORE = re.compile(
    r"(?:\bnot|n't|\bneither|\bnor|\bexcept|\brather than|\binstead of)(?:\s+(?:be|the|option|answer))*[\s:\"'(*]*$",
    re.IGNORECASE,
)
_DENIED_AFTER = re.compile(
    r"[)\"'*]*\s+(?:is|was|can|could|would)(?:n't|\s*not)\b|[)\"'*]*\s+(?:is|was)\s+(?:wrong|incorrect|false)\b",
    re.IGNORECASE,
)


def _options_said(text: str, choices: Sequence[str]) -> set[int]:
    """Options that a text names and does not deny, by the clearest way in which it names any."""
    letters = string.ascii_uppercase[: len(choices)]

    def named(pattern: str) -> list[re.Match[str]]:
        """Letters in a pattern's places that are neither words nor denied."""
        matches = re.finditer(rf"{pattern}\(?\b([{letters}])\b", text)
        # The article and the pronoun have a word after them.
        word = re.compile(r"\s+(?!(?:or|and|nor|is|was)\b)[a-z]|'[a-z]")
        return [
            m for m in matches if not (m[1] in "AI" and word.match(text, m.end(1))) and not _is_denied(text, m.span(1))
        ]

    if claims := named(r"(?i:\banswer(?:\s+is)?)\s*:?\s*")[-1:] or [
        m for m in named(r"^") if re.match(r"[).:,]|\s*$", text[m.end(1) :])
    ]:
        index = letters.index(claims[0][1])
        rest = text[claims[0].end(1) :].lstrip(").: ")
        rest = rest[len(choices[index]) :] if rest.lower().startswith(choices[index].lower()) else rest
        hedge = re.match(rf"[\s,/&]*(?:(?:or|and)\s+)?(?:option\s+)?\(?([{letters}])\b(?!\s+[a-z])", rest)
        return {index} | ({letters.index(hedge[1])} if hedge else set())
    if options := named(r"(?i:\boption)\s*:?\s*"):
        return {letters.index(option[1]) for option in options}
    texts = {
        index
        for index, option in enumerate(choices)
        if len(option) > 1
        for match in re.finditer(rf"(?<!\w){re.escape(option.strip())}(?!\w)", text, re.IGNORECASE)
        if not _is_denied(text, match.span())
    }
    return texts or {letters.index(letter[1]) for letter in named("")}


def _is_denied(text: str, span: tuple[int, int]) -> bool:
    """True if the words before or after a span of a text deny it."""
    return _DENIED_BEFORE.search(text[: span[0]]) is not None or _DENIED_AFTER.match(text, span[1]) is not None


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
        MMLongBench's `soft_acc`, which reads the digits before and behind a comma or point as two numbers.
    """
    numbers = _whole_numbers(prediction)
    return float(any(sum(numbers) == sum(_whole_numbers(answer) or []) for answer in answers)) if numbers else None


def _whole_numbers(text: str) -> list[int] | None:
    lists = re.findall(r"\[[\d\s,]+\]", text)
    return [int(number) for number in re.findall(r"\d+", lists[-1])] if lists else _whole(text) or None


def _whole(text: str) -> list[int]:
    return [int(number) for number in numbers_in(text) if number >= 0 and number.is_integer()]


def label(prediction: str, answers: Sequence[str]) -> float | None:
    """Return 1 if the number after "label:", or else the last whole number, is accepted; None without a number.

    Source:
        MMLongBench's `cls_acc`.
    """
    match = re.search(r"label:\s*(\d+)", prediction, re.IGNORECASE)
    numbers = [int(match[1])] if match else _whole(prediction)
    return float(numbers[-1] in {int(answer) for answer in answers}) if numbers else None
