"""Loss of connector and low-rank updates: answers about pictures and lists, and plain text as before."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from training.smol.chats import Chats
from training.smol.low_rank import LowRank


def answer_loss(model: Any, chats: Chats) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of the tokens of answers, and whether each is predicted."""
    base = model.model
    inputs = base.get_input_embeddings()(chats.ids)
    if chats.pixels is not None:
        with torch.no_grad():
            features = base.vision_model(pixel_values=chats.pixels[:, 0]).last_hidden_state
        is_image = (chats.ids == model.config.image_token_id)[..., None]
        inputs = inputs.masked_scatter(is_image, base.connector(features).to(inputs.dtype))
    hidden = base.text_model(inputs_embeds=inputs, attention_mask=chats.mask, use_cache=False).last_hidden_state
    # Logits over 49 thousand tokens, at the places before the answers only.
    logits = model.lm_head(hidden[:, :-1][chats.is_target[:, 1:]]).float()
    target = chats.ids[:, 1:][chats.is_target[:, 1:]]
    return cross_entropy(logits, target), logits.argmax(-1) == target


def plain_loss(model: Any, updates: nn.ModuleDict, ids: Tensor) -> Tensor:
    """Divergence of the next-token distributions on plain text from those without the updates, in nats per token."""

    def log_probabilities() -> Tensor:
        hidden = model.model.text_model(input_ids=ids, use_cache=False).last_hidden_state
        return model.lm_head(hidden[0]).float().log_softmax(-1)

    with torch.no_grad():
        _switch(updates, False)
        before = log_probabilities()
        _switch(updates, True)
    after = log_probabilities()
    return (before.exp() * (before - after)).sum(-1).mean()


def _switch(updates: nn.ModuleDict, is_on: bool) -> None:
    for update in updates.values():
        assert isinstance(update, LowRank)
        update.is_on = is_on
