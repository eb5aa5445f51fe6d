"""Scores of generated answers against equality of texts."""

from corelens import HookedMLLM, ablate, evaluate, prepare_batches, toy


def test_answers_are_right_wrong_or_none(toy_model: HookedMLLM):
    scenes = list(toy.scenes(4, seed=8))
    batches = list(prepare_batches(toy_model, scenes, 2, "prepare"))
    evaluation = evaluate(toy_model, batches, choices={sample.answer for sample in scenes})
    assert evaluation.scores.tolist() == [
        float(prediction == sample.answer) for prediction, sample in zip(evaluation.predictions, scenes, strict=True)
    ]
    assert evaluation.accuracy == evaluation.scores.sum().item() / 4
    hooks = ablate(toy_model.heads)
    assert not evaluate(toy_model, batches, hooks, choices=["no such answer"]).parsed.any()
    assert evaluate(toy_model, batches, hooks).parsed.all()
