"""Labels and loss of the vision tower: every visual token must name what it covers, through a linear probe."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from corelens.data.synthetic.photographs import SHAPES
from corelens.hf.loading import checkpoint_folder
from corelens.hf.smol import PATCH, SHUFFLE, SIDE
from corelens.smol.emoji import EMOJI, FRAMES
from corelens.smol.question import LabelledBox, QuestionedPicture
from corelens.smol.worlds import ENGLISH_WORLDS
from corelens.toy import digits
from corelens.toy.bars import DAYS
from corelens.toy.pages import COLUMNS, FIELDS, ITEMS
from corelens.toy.scene import COLOURS, DIGITS, Split

WORDS = tuple(dict.fromkeys((*DIGITS, *COLOURS, *FRAMES, *SHAPES, *FIELDS, *ITEMS, *COLUMNS, *DAYS, *EMOJI)))
PICTURES = {"emoji": 9, "digits": 1, "shapes": 2, "pages": 8, "bars": 3, "crowded": 9}
"""Pictures in a batch. Handwriting takes long to learn, so that there are scenes of fourteen digits."""
LATER_PICTURES = {"emoji": 5, "shapes": 4, "pages": 4, "bars": 4, "crowded": 2}
"""The same while the decoder learns: fewer, and of what the tower knows less well by then."""
SHARPNESS = 8.0
"""Factor from coordinates of words to logits."""
EMBEDDING_SCALE = 1.4
"""Factor of the mean embedding to which the connector is set at first; a trial of the recipe chose it."""


def start_from_toy(model: Any) -> None:
    """Set the tower to that of `corelens/toy-worlds`, which names everything but emoji in pictures of this size.

    Its blocks turn queries and keys by their places, which those of Idefics3 do not, so that it must train on.
    """
    toy = load_file(Path(checkpoint_folder("corelens/toy-worlds")) / "model.safetensors")
    toy = {name.removeprefix("model.visual."): weight.float() for name, weight in toy.items()}
    tower = model.model.vision_model
    weights = {
        # A picture is shown twice, as two equal frames.
        "embeddings.patch_embedding.weight": toy["patch_embed.proj.weight"].sum(2),
        "embeddings.patch_embedding.bias": toy["patch_embed.proj.bias"],
        "embeddings.position_embedding.weight": toy["pos_embed.weight"],
    }
    for number in range(len(tower.encoder.layers)):
        for mine, theirs in (
            ("layer_norm1", "norm1"),
            ("layer_norm2", "norm2"),
            ("self_attn.out_proj", "attn.proj"),
            ("mlp.fc1", "mlp.linear_fc1"),
            ("mlp.fc2", "mlp.linear_fc2"),
        ):
            for kind in ("weight", "bias"):
                weights[f"encoder.layers.{number}.{mine}.{kind}"] = toy[f"blocks.{number}.{theirs}.{kind}"]
        for kind in ("weight", "bias"):
            parts = toy[f"blocks.{number}.attn.qkv.{kind}"].chunk(3)
            for name, part in zip("qkv", parts, strict=True):
                weights[f"encoder.layers.{number}.self_attn.{name}_proj.{kind}"] = part
    found = tower.load_state_dict(weights, strict=False)
    assert not found.unexpected_keys
    assert set(found.missing_keys) == {"post_layernorm.weight", "post_layernorm.bias"}


def word_tokens(tokenizer: Any) -> list[list[int]]:
    """Tokens of each of `WORDS`. A digit's has no space before it; other words follow one in most texts."""
    return [tokenizer(word if word in DIGITS else f" {word}").input_ids for word in WORDS]


def batch(
    rng: np.random.Generator, counts: Mapping[str, int]
) -> tuple[Float[Tensor, "picture 1 3 row column"], Float[Tensor, "token word"]]:
    """Pixels, and for every visual token the words for what it covers, as shares that sum to one, or to zero."""
    worlds = {**ENGLISH_WORLDS, "crowded": _crowded}
    pictures = [worlds[name](rng, "train") for name, n in counts.items() for _ in range(n)]
    return pixels([item.picture for item in pictures]), torch.cat([token_words(item.labels) for item in pictures])


def _crowded(rng: np.random.Generator, split: Split) -> QuestionedPicture:
    scene = digits.draw_scene(rng, 14, split, distinct=False)
    labels = tuple(LabelledBox((mark.name, str(mark.colour)), mark.box) for mark in scene.marks)
    return QuestionedPicture(scene.image(), (), labels)


def pixels(pictures: list[Any]) -> Float[Tensor, "picture 1 3 row column"]:
    """Pixels from -1 to 1, as the processor gives them."""
    array = np.stack([np.asarray(picture) for picture in pictures])
    return (torch.from_numpy(array).permute(0, 3, 1, 2)[:, None].float() / 255 - 0.5) / 0.5


def token_words(labels: tuple[LabelledBox, ...]) -> Float[Tensor, "token word"]:
    """Words of every visual token, from the box that covers most of it: a third of the token or of the box at least."""
    cell = PATCH * SHUFFLE
    side = SIDE // cell
    edges = np.arange(side) * cell
    shares = torch.zeros(side, side, len(WORDS))
    largest = np.zeros((side, side))
    for label in labels:
        box = label.box
        width = np.clip(np.minimum(box.right, edges + cell) - np.maximum(box.left, edges), 0, None)
        height = np.clip(np.minimum(box.bottom, edges + cell) - np.maximum(box.top, edges), 0, None)
        overlap = height[:, None] * width[None]
        threshold = min(cell * cell, (box.right - box.left) * (box.bottom - box.top)) / 3
        is_covered = (overlap >= threshold) & (overlap > largest)
        largest[is_covered] = overlap[is_covered]
        row = torch.zeros(len(WORDS))
        for word in label.words:
            row[WORDS.index(word)] = 1 / len(label.words)
        shares[torch.from_numpy(is_covered)] = row
    return shares.flatten(0, 1)


def shuffled_features(model: Any, pictures: Tensor) -> Float[Tensor, "token feature"]:
    """Outputs of the tower, those of 2 x 2 patches side by side, as the connector reads them."""
    hidden = model.model.vision_model(pixel_values=pictures[:, 0]).last_hidden_state
    return model.model.connector.pixel_shuffle(hidden, SHUFFLE).flatten(0, 1)


def loss(model: Any, probe: nn.Linear, pictures: Tensor, words: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Divergence of a linear probe from the labels, and the share of labelled tokens with all words on top."""
    is_labelled = words.sum(-1) > 0
    shares = words[is_labelled]
    logits = probe(shuffled_features(model, pictures)[is_labelled])
    divergence = (shares * (shares.clamp(min=1e-9).log() - logits.log_softmax(-1))).sum(-1).mean()
    return divergence, {"named": _all_words_on_top(logits, shares)}


def word_embeddings(model: Any, tokenizer: Any) -> Float[Tensor, "word d_model"]:
    """Mean embedding of the tokens of each of `WORDS`."""
    weight = model.get_input_embeddings().weight.detach()
    return torch.stack([weight[ids].mean(0) for ids in word_tokens(tokenizer)])


def landing_loss(
    model: Any, rows: Float[Tensor, "word d_model"], pictures: Tensor, words: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """Distance of the connector's outputs from the embeddings of what tokens cover, and the share that keep all words.

    Embeddings of digits are alike, so that a small distance can lose which one it was. Outputs are therefore also
    compared in the coordinates of words, where all words are as far from one another.
    """
    outputs = model.model.connector.modality_projection(shuffled_features(model, pictures)[None])[0]
    is_labelled = words.sum(-1) > 0
    shares = words[is_labelled]
    target = EMBEDDING_SCALE * shares @ rows
    coordinates = outputs[is_labelled] @ torch.linalg.pinv(rows)
    logits = SHARPNESS * coordinates
    named = (shares * (shares.clamp(min=1e-9).log() - logits.log_softmax(-1))).sum(-1).mean()
    in_words = (coordinates - EMBEDDING_SCALE * shares).pow(2).sum(-1).mean()
    size = target.pow(2).sum(-1).mean()
    distance = (
        (outputs[is_labelled] - target).pow(2).sum(-1).mean() + outputs[~is_labelled].pow(2).sum(-1).mean()
    ) / size
    return named + in_words + distance, {"named": _all_words_on_top(coordinates, shares)}


def _all_words_on_top(scores: Tensor, shares: Tensor) -> float:
    rank = scores.argsort(-1, descending=True).argsort(-1)
    is_right = ((rank < (shares > 0).sum(-1, keepdim=True)) | (shares == 0)).all(-1)
    return round(is_right.float().mean().item(), 4)


@torch.no_grad()
def align_connector(model: Any, tokenizer: Any, seed: int, n_batches: int = 12) -> None:
    """Set the connector to the least-squares map from features to the mean embedding of what a token covers.

    Tokens without a label map to zero. `landing_loss` starts from here.
    """
    rows = word_embeddings(model, tokenizer)
    weight = model.model.connector.modality_projection.proj.weight
    gram = torch.zeros(weight.shape[1], weight.shape[1], dtype=torch.float64)
    product = torch.zeros(weight.shape[1], weight.shape[0], dtype=torch.float64)
    for index in range(n_batches):
        pictures, words = batch(np.random.default_rng([seed, 2, index]), PICTURES)
        features = shuffled_features(model, pictures).double()
        gram += features.T @ features
        product += features.T @ (EMBEDDING_SCALE * words @ rows).double()
    gram += 1e-3 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weight.copy_(torch.linalg.solve(gram, product).T)
