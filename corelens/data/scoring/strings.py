"""What the rules share: bare text, numbers, similarity."""

import re
import string

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
