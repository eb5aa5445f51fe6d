"""Tokens as words, and words as tokens, of plain text and of prompts with pictures.

model.to_str_tokens(inputs)                      ['<s>', 'image 0,0', 'image 0,1', ..., 'what', 'colour', ...]
model.get_token_position("colour", inputs)       the position of that word in the prompt
model.to_tokens("a text")                        the tokenizer's ids; `model.prepare` applies the chat template
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.utilities.lm_utils import lm_cross_entropy_loss

from corelens.errors import check_choice, docs_link
from corelens.inputs.prepare import PreparedInputs
from corelens.tokens import Role, TokenMap

TokenIds = Int[Tensor, "*batch_position"]
Inputs = PreparedInputs | Mapping[str, Any]
Occurrence = Literal["first", "last"]


class TextTools:
    """Text and tokens of a wrapped model, by its own tokenizer and under TransformerLens's names."""

    processor: Any

    if TYPE_CHECKING:

        @property
        def hf_model(self) -> Any: ...

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer.

        Raises:
            ValueError: If there is no processor.
        """
        if self.processor is None:
            raise ValueError(
                f"the model was wrapped without a processor: HookedMLLM(hf_model, processor) has its tokenizer. "
                f"{docs_link('no-processor')}"
            )
        return self.processor.tokenizer

    def to_tokens(
        self, text: str | Sequence[str] | Inputs, prepend_bos: bool | None = None, padding_side: str | None = None
    ) -> Int[Tensor, "batch position"]:
        """Token ids of plain text, which is no prompt: `prepare` applies the chat template.

        Args:
            text: One text or several; or inputs, whose ids are returned.
            prepend_bos: Begin with the token that begins a sequence; None for what the tokenizer does by itself, False
                for a part of a text.
            padding_side: Where shorter texts are padded; None for where the tokenizer does it.

        Raises:
            ValueError: If the tokenizer has no token that begins a sequence, and `prepend_bos` is True.
        """
        if isinstance(text, Mapping):
            return text["input_ids"]
        tokenizer, texts = self.tokenizer, [text] if isinstance(text, str) else list(text)
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        rows = [list(tokenizer(one, add_special_tokens=prepend_bos is not False)["input_ids"]) for one in texts]
        if prepend_bos is not False:
            rows = [row[:-1] if len(row) > 1 and row[-1] == eos else row for row in rows]
        if prepend_bos and bos is None:
            raise ValueError(
                f"prepend_bos=True needs a token that begins a sequence, and {type(tokenizer).__name__} has none."
            )
        if prepend_bos:
            rows = [row if row[:1] == [bos] else [bos, *row] for row in rows]
        longest, left = max(map(len, rows)), (padding_side or tokenizer.padding_side) == "left"
        if any(len(row) < longest for row in rows) and tokenizer.pad_token_id is None:
            raise ValueError(
                "these texts have different numbers of tokens, and the tokenizer has no padding: one each."
            )
        padding = [[tokenizer.pad_token_id] * (longest - len(row)) for row in rows]
        padded = [pad + row if left else row + pad for row, pad in zip(rows, padding, strict=True)]
        return torch.tensor(padded, device=self.hf_model.device)

    def to_string(self, tokens: Sequence[int] | TokenIds | Inputs) -> str | list[str]:
        """Text of token ids: a string, or for a batch a list of strings."""
        ids = _ids(tokens)
        decode = self.tokenizer.decode if ids.ndim < 2 else self.tokenizer.batch_decode
        return decode(ids, clean_up_tokenization_spaces=False)

    def to_str_tokens(
        self, text: str | TokenIds | Inputs | Sequence[Any], prepend_bos: bool | None = None
    ) -> list[str] | list[list[str]]:
        """One readable word for each position.

        Visual tokens are `image 3,5`, row and column in the picture's grid counted from zero; with several pictures, or
        several views of one, these are named before: `image 1 view 2 3,5`.

        Args:
            text: A text, ids of one sequence, or inputs; or a list of these.
            prepend_bos: As in `to_tokens`, for texts.

        Returns:
            A list of words; for inputs of several samples, and for lists, a list of such lists.
        """
        if isinstance(text, Mapping):
            tokens = getattr(text, "tokens", None)
            words = [
                self._words(ids, None if tokens is None else tokens[sample])
                for sample, ids in enumerate(text["input_ids"])
            ]
            return words[0] if len(words) == 1 else words
        if isinstance(text, str):
            return self._words(self.to_tokens(text, prepend_bos)[0])
        if isinstance(text, Sequence):
            return [self.to_str_tokens(one, prepend_bos) for one in text]  # pyright: ignore[reportReturnType]
        ids = torch.as_tensor(text).reshape(-1) if len(text) == 1 or text.ndim < 2 else text
        if ids.ndim != 1:
            raise ValueError(f"ids of shape {tuple(ids.shape)} are several sequences: give a list of them.")
        return self._words(ids)

    def to_single_token(self, string: str) -> int:
        """Id of a text that is one token.

        Raises:
            ValueError: If it is several.
        """
        (ids,) = self.to_tokens(string, prepend_bos=False)
        if len(ids) != 1:
            parts = ", ".join(map(repr, self._words(ids)))
            raise ValueError(
                f"{string!r} is {len(ids)} tokens: {parts}. A word within a text may be one only with its space, "
                f"{' ' + string!r}."
            )
        return int(ids)

    def to_single_str_token(self, int_token: int) -> str:
        """Text of one token id."""
        return self._words(torch.tensor([int_token]))[0]

    def get_token_position(
        self,
        single_token: str | int,
        text: str | TokenIds | Inputs,
        mode: Occurrence = "first",
        prepend_bos: bool | None = None,
    ) -> int:
        """Position of a token in one sequence.

        Args:
            single_token: Its id, or its text, with or without the space before it.
            text: Inputs of one sample, with pictures or without; ids; or a text.
            mode: Which one, if there are several.
            prepend_bos: As in `to_tokens`, for texts.

        Raises:
            ValueError: If it is not there, or there are several sequences.
        """
        check_choice("mode", mode, Occurrence)
        ids = self.to_tokens(text, prepend_bos) if isinstance(text, str) else _ids(text)
        if ids.ndim == 2 and len(ids) > 1:
            raise ValueError(
                f"these are {len(ids)} sequences, and a position is that of one: give one, such as ids[0]."
            )
        ids = ids.reshape(-1)
        if isinstance(single_token, int):
            positions = (ids == single_token).nonzero().flatten().tolist()
        else:
            words = self._words(ids)
            exact = [position for position, word in enumerate(words) if word == single_token]
            positions = exact or [at for at, word in enumerate(words) if word.strip() == single_token.strip()]
        if not positions:
            raise ValueError(
                f"{single_token!r} is no token of this sequence. Its words: {' '.join(map(repr, self._words(ids)))}"
            )
        return positions[0 if mode == "first" else -1]

    def loss_fn(
        self,
        logits: Float[Tensor, "batch position vocabulary"],
        tokens: Int[Tensor, "batch position"] | Inputs,
        attention_mask: Int[Tensor, "batch position"] | Bool[Tensor, "batch position"] | None = None,
        per_token: bool = False,
    ) -> Float[Tensor, "*each"]:
        """Cross-entropy of every token but the first, placeholders of pictures among them.

        Args:
            logits: Logits of a pass.
            tokens: Its token ids, or its inputs, whose padding is left out.
            attention_mask: Mask of the tokens that are no padding.
            per_token: Return the loss of each token instead of the mean.
        """
        if isinstance(tokens, Mapping):
            attention_mask = tokens.get("attention_mask") if attention_mask is None else attention_mask
        mask = None if attention_mask is None else attention_mask.bool().to(logits.device)
        return lm_cross_entropy_loss(logits, _ids(tokens).to(logits.device), mask, per_token)

    def _words(self, ids: Int[Tensor, "position"], tokens: TokenMap | None = None) -> list[str]:
        words = self.tokenizer.batch_decode([[one] for one in ids.tolist()], clean_up_tokenization_spaces=False)
        if tokens is None:
            return words
        return [_visual_name(tokens, position) or word for position, word in enumerate(words)]


def _ids(tokens: Any) -> TokenIds:
    return torch.as_tensor(tokens["input_ids"] if isinstance(tokens, Mapping) else tokens)


def _visual_name(tokens: TokenMap, position: int) -> str:
    """Name of a visual token in a map of one sample; empty for others."""
    role = int(tokens.role[0, position])
    if role not in (Role.IMAGE, Role.VIDEO):
        return ""
    media, view, row, column = (int(of[0, position]) for of in (tokens.media, tokens.view, tokens.row, tokens.column))
    several_views = (tokens.view[0][tokens.media[0] == media] > 0).any()
    name = [Role(role).name.lower(), f"{media}" * (len(tokens.sizes[0]) > 1), f"view {view}" * bool(several_views)]
    return " ".join(filter(None, [*name, f"{row},{column}" * (row >= 0)]))
