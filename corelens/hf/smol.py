"""The checkpoint of `corelens/smol`: the language model that is installed, joined with what comes with corelens.

With corelens come a vision tower, a connector and low-rank updates of the attention's matrices.
"""

import hashlib
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import HF_HOME
from safetensors.torch import load_file
from torch import Tensor
from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessorPil, Idefics3Processor

from corelens.hf.smollm2 import language_file, load_language

SHIPPED_PARTS = Path(__file__).parents[1] / "smol" / "weights"
"""Folder of the parts that come with corelens."""

SIDE, PATCH, SHUFFLE = 128, 8, 2
"""Pixels of a picture's and of a patch's side, and patches of a visual token's side."""
N_VISUAL = (SIDE // PATCH // SHUFFLE) ** 2
IMAGE, AROUND, GLOBAL = "<image>", "<fake_token_around_image>", "<global-img>"
ADDED_TOKENS = (IMAGE, AROUND, GLOBAL, "<end_of_utterance>")
"""Tokens of Idefics3's processor. Their embeddings are the mean of all others, and stay so."""
UPDATE_SCALE = 2.0
"""Factor of the low-rank updates."""

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if loop.first and message.role != 'system' -%}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{%- endif -%}"
    "{{ '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.content is string -%}{{ message.content }}"
    "{%- else -%}{%- for part in message.content -%}"
    "{%- if part.type == 'image' -%}<image>"
    "{%- elif part.type == 'text' -%}{{ part.text }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{{ '<|im_end|>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
"""The language model's own template, with places for pictures."""


def joined_folder() -> Path:
    """Folder of the joined checkpoint in Hugging Face's cache, written when it is first asked for.

    Raises:
        ModuleNotFoundError: If the language model is not installed.
        OSError: If its file is another one, or the cache cannot be written.
    """
    language = language_file()
    digest = hashlib.sha256()
    for file in sorted(path for path in SHIPPED_PARTS.iterdir() if path.suffix in (".json", ".safetensors")):
        digest.update(file.read_bytes())
    folder = Path(HF_HOME) / "corelens" / f"smol-{digest.hexdigest()[:12]}"
    if not folder.is_dir():
        print(f"Joining corelens/smol from {language.name}, once: 540 MB in {folder}", file=sys.stderr)
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=folder.parent))
        try:
            join(SHIPPED_PARTS, unfinished)
            unfinished.rename(folder)
        except BaseException:
            shutil.rmtree(unfinished)
            raise
    return folder


def join(shipped: Path, folder: Path) -> None:
    """Write the checkpoint that the language model and a folder of what was trained make up."""
    _, weights, tokenizer = load_language()
    config = Idefics3Config.from_pretrained(shipped)
    model: Any = Idefics3ForConditionalGeneration(config)
    model.load_state_dict(joined_weights(weights, load_file(shipped / "trained.safetensors")), strict=False)
    model.tie_weights()
    model.save_pretrained(folder)
    processor(tokenizer).save_pretrained(folder)
    shutil.copy(shipped / "record.json", folder)


def joined_weights(language: dict[str, Tensor], trained: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the whole model by name, the low-rank updates added to the matrices that they update."""
    trained = {name: tensor.float() for name, tensor in trained.items()}
    joined = {f"model.text_model.{name}": tensor for name, tensor in language.items()}
    embedding = "model.text_model.embed_tokens.weight"
    mean = joined[embedding].mean(0, keepdim=True)
    joined[embedding] = torch.cat([joined[embedding], mean.expand(len(ADDED_TOKENS), -1)])
    joined["lm_head.weight"] = joined[embedding]
    for name, tensor in trained.items():
        part, _, rest = name.partition(".")
        if part == "tower":
            joined[f"model.vision_model.{rest}"] = tensor
        elif part == "connector":
            joined[f"model.connector.{rest}"] = tensor
        elif rest.endswith(".up"):
            _, layer, matrix = rest.removesuffix(".up").split("-")
            target = f"model.text_model.layers.{layer}.self_attn.{matrix}.weight"
            joined[target] = joined[target] + UPDATE_SCALE * tensor @ trained[name.removesuffix("up") + "down"]
    return joined


def processor(tokenizer: Any) -> Idefics3Processor:
    """Processor of the model: pictures of one size in 64 visual tokens, and the language model's template.

    Args:
        tokenizer: The language model's, to which the tokens around pictures are added.
    """
    tokenizer.add_special_tokens({"additional_special_tokens": list(ADDED_TOKENS)})
    tokenizer.padding_side = "left"
    pictures = Idefics3ImageProcessorPil(
        size={"longest_edge": SIDE}, max_image_size={"longest_edge": SIDE}, do_image_splitting=False
    )
    return Idefics3Processor(
        image_processor=pictures, tokenizer=tokenizer, image_seq_len=N_VISUAL, chat_template=CHAT_TEMPLATE
    )
