"""Questions without a picture: the control that tells "cannot see" from "cannot answer"."""

from corelens.data.sample import Sample

SUMS = ((8, 5), (9, 8), (15, 14), (20, 22), (31, 8), (46, 13), (50, 27), (60, 21), (44, 12), (70, 25))
COPIED = (
    "lamp", "river", "seven green apples", "a window", "copper", "blue horse", "4719", "quiet morning", "B52", "tango",
)  # fmt: skip


def plain_text() -> list[Sample]:
    """Ten sums and ten texts to repeat; an answer is right if it contains the accepted one."""
    sums = [(f"What is {a} plus {b}? Answer with the number only.", str(a + b)) for a, b in SUMS]
    copied = [(f"Repeat this text, and say nothing else: {text}", text) for text in COPIED]
    return [
        Sample(f"text-{number}", question, answer, scoring="contains")
        for number, (question, answer) in enumerate([*sums, *copied])
    ]
