"""Steering curves against answers generated one by one."""

import pytest

from corelens import HeadSet, HookedMLLM, bias_attention, steering_curve, toy
from corelens.data import score

TOP = HeadSet.parse("L2H4, L2H10")


def test_scores_are_those_of_answers_generated_one_by_one(toy_model: HookedMLLM):
    pairs = list(toy.scene_pairs(3, seed=0))
    curve = steering_curve(
        toy_model, pairs, {"top": [TOP], "other": [HeadSet.parse("L3H1"), HeadSet.parse("L3H2")]}, (2, 6)
    )
    for number, (own, target) in enumerate(pairs):
        inputs = toy_model.prepare(own.images[0], own.question)
        region = inputs.tokens.in_box(target.evidence[0].box)  # pyright: ignore
        for at, strength in enumerate((2, 6)):
            with toy_model.hooks(fwd_hooks=bias_attention(TOP, "from_question", region, strength)):
                (answer,) = toy_model.answer(inputs)
            assert float(curve.to_target["top"][0, at, number]) == score(target, answer)
            assert float(curve.to_own["top"][0, at, number]) == score(own, answer)
        (answer,) = toy_model.answer(inputs)
        assert float(curve.plain_own[number]) == score(own, answer)
    assert curve.to_target["other"].shape == (2, 2, 3)
    rows = curve.table()
    assert [(row["heads"], row["strength"]) for row in rows] == [
        ("none", 0), ("top", 2), ("top", 6), ("other", 2), ("other", 6),
    ]  # fmt: skip
    gain = curve.success("top", 6)
    assert gain.mean == pytest.approx(rows[2]["target"] - rows[0]["target"])


def test_pairs_are_about_two_things_of_one_scene():
    for own, target in toy.scene_pairs(5, seed=3):
        assert own.images[0].tobytes() == target.images[0].tobytes()  # pyright: ignore
        assert own.answer != target.answer
        assert own.evidence != target.evidence
        assert own.question.split()[:2] == target.question.split()[:2]
    again = next(toy.scene_pairs(1, seed=3))
    assert again[0].question == next(toy.scene_pairs(5, seed=3))[0].question


def test_pairs_that_could_not_show_success_are_refused(toy_model: HookedMLLM):
    own, target = next(toy.scene_pairs(1, seed=0))
    with pytest.raises(ValueError, match=r"are a pair, and have the same answer"):
        steering_curve(toy_model, [(own, own)], {"top": [TOP]})
    with pytest.raises(ValueError, match="at least one pair"):
        steering_curve(toy_model, [(own, target)], {"top": []})
    with pytest.raises(ValueError, match="n_things=1 is less than two"):
        toy.scene_pairs(1, seed=0, n_things=1)
