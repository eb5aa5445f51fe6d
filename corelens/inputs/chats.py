"""Questions and chats as users write them, and the prompts that the model's chat template renders from them."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from PIL import Image

from corelens.errors import docs_link
from corelens.inputs.media import Clip, Footage, Picture, load_clip, load_picture
from corelens.tokens import Role

_MARK = re.compile("\ue000(\\d+)\ue001")
"""Stands for the n-th text of a chat, to find where the template puts it; private characters no one types."""

_PLURALS = {"image": "pictures", "video": "videos"}


class Chat(NamedTuple):
    """Messages whose contents are lists of parts, with all pictures and videos loaded and in their places."""

    messages: list[dict[str, Any]]

    @property
    def pictures(self) -> list[Image.Image]:
        """Pictures of all messages, in order."""
        return self._of("image")

    @property
    def clips(self) -> list[Clip]:
        """Videos of all messages, in order."""
        return self._of("video")

    @property
    def texts(self) -> list["TextPart"]:
        """Texts of all messages, in order, with their roles."""
        return [
            TextPart(
                part["text"], Role.SYSTEM if message["role"] == "system" else Role.CONTEXT, part.get("question", "")
            )
            for message in self.messages
            for part in message["content"]
            if part["type"] == "text"
        ]

    def _of(self, kind: str) -> list[Any]:
        return [part[kind] for message in self.messages for part in message["content"] if part["type"] == kind]


class TextPart(NamedTuple):
    """A text of a chat."""

    text: str
    role: Role
    """Role of the text but for the question that it holds."""

    question: str
    """The part of it that is the question; empty if it holds none."""


class Span(NamedTuple):
    """Characters of the prompt that have one role."""

    start: int
    end: int
    role: Role


class Prompt(NamedTuple):
    """A chat rendered by the model's chat template."""

    text: str
    """The rendered template, for the processor, which may change its layout before it replaces pictures and videos."""

    template_text: str
    """The same text after the processor's change of layout; pictures and videos are still single placeholders."""

    spans: list[Span]
    """Spans of the chat's texts in `template_text`. The question follows the text that it is a part of."""


def build_chats(question: Any, images: Any, videos: Any, processor: Any) -> list[Chat]:
    """Build one chat per sample, with all pictures and videos loaded.

    Raises:
        TypeError: If `question` is neither a string nor a chat nor a list of them.
        ValueError: If there is no question or an empty one, or pictures and videos do not match questions and chats.
    """
    if not isinstance(question, Sequence):
        raise TypeError(
            f"a question is a string, a chat, or a list of them, not {type(question).__name__}; the pictures come "
            f"before it, as in prepare(image, question)."
        )
    if isinstance(question, str) or (len(question) > 0 and isinstance(question[0], Mapping)):
        question, images, videos = [question], [images], [videos]
    if not len(question):
        raise ValueError("there is no question: give a string, a chat, or a list of them.")
    pictures, footage = _per_sample(images, "picture", len(question)), _per_sample(videos, "video", len(question))
    return [_build_chat(*sample, processor) for sample in zip(question, pictures, footage, strict=True)]


def render(chat: Chat, processor: Any) -> Prompt:
    """Render a chat by the model's chat template, and find the chat's texts in the prompt.

    The template is rendered a second time with a private mark in place of every text; what stands around the marks is
    the template's own, whatever it looks like.

    Raises:
        ValueError: If the processor has no chat template, the template changes a text, or a text holds a placeholder
            or a control token.
    """
    if not getattr(processor, "chat_template", None):
        raise ValueError(
            f"{type(processor).__name__} has no chat template, so a question cannot be put to the model. Give it the "
            f"one that the model was trained with, in Jinja: processor.chat_template = '...' {docs_link('no-template')}"
        )
    for kind in ("image", "video"):
        token = getattr(processor, f"{kind}_token", None)
        if token and any(str(token) in part.text for part in chat.texts):
            name = "picture" if kind == "image" else kind
            raise ValueError(
                f"the text holds {str(token)!r}, which stands for a {name}; pass {name}s instead. "
                f"{docs_link('placeholder')}"
            )
    for part in chat.texts:
        if control := control_tokens(processor, part.text):
            raise ValueError(
                f"the text {part.text!r} holds {control[0]!r}, which the model reads as a control token and not as "
                f"words. Leave it out; turns of a conversation are messages of a chat. {docs_link('control-token')}"
            )

    def apply_template(text_of: Callable[[int, str], str]) -> str:
        texts = (text_of(index, part.text) for index, part in enumerate(chat.texts))
        messages = [
            {
                "role": message["role"],
                "content": [
                    {"type": "text", "text": next(texts)} if part["type"] == "text" else {"type": part["type"]}
                    for part in message["content"]
                ],
            }
            for message in chat.messages
        ]
        return processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def apply_layout(text: str) -> str:
        images = [chat.pictures] if chat.pictures else None
        return processor.prepare_inputs_layout(images=images, text=[text])[1][0]

    text = apply_template(lambda index, text: text)
    template_text = apply_layout(text)
    spans, cursor = [], 0
    literal, *rest = _MARK.split(apply_layout(apply_template(lambda index, text: f"\ue000{index}\ue001")))
    for index, next_literal in zip(rest[::2], rest[1::2], strict=True):
        cursor += len(literal)
        original, role, question = chat.texts[int(index)]
        # Templates may trim.
        forms = (original, original.strip())
        rendered = next((form for form in forms if template_text.startswith(form + next_literal, cursor)), None)
        if rendered is None:
            raise ValueError(f"the chat template changes the text {original!r}, so its tokens cannot be told apart.")
        spans.append(Span(cursor, cursor + len(rendered), role))
        if question := question.strip():
            start = cursor + rendered.rindex(question)
            spans.append(Span(start, start + len(question), Role.QUESTION))
        cursor, literal = cursor + len(rendered), next_literal
    return Prompt(text, template_text, spans)


def control_tokens(processor: Any, text: str) -> list[str]:
    """Control tokens that a text becomes: special ones, and those by which the chat template marks turns."""
    tokenizer, template = processor.tokenizer, str(processor.chat_template)
    control = {
        number: token.content
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.special or (token.content.strip() and token.content in template)
    }
    control.pop(tokenizer.unk_token_id, None)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"] if control else []
    return [control[number] for number in ids if number in control]


def answer_opening(processor: Any) -> tuple[str, str]:
    """Text of the chat template around the place where an answer begins.

    Returns:
        The end of every prompt, after the question; and the space that the template writes between it and an answer
        in an earlier turn, and so the model before its own: `"\\nASSISTANT:"` and `" "`, say.
    """
    mark = "\ue0000\ue001"

    def apply_template(*speakers: str) -> str:
        messages = [{"role": speaker, "content": [{"type": "text", "text": mark}]} for speaker in speakers]
        return processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=speakers[-1] == "user")

    prompt = apply_template("user")
    _, _, end = prompt.rpartition(mark)
    opening, _, _ = apply_template("user", "assistant").rpartition(mark)
    space = opening.removeprefix(prompt)
    return end, space if space.isspace() else ""


def _per_sample(media: Any, kind: str, n_samples: int) -> list[list[Any]]:
    """Lists of the pictures or videos of each sample."""
    media = [None] * n_samples if media is None else media
    is_single = isinstance(media, Picture | Footage)
    if is_single or len(media) != n_samples:
        raise ValueError(
            f"{n_samples} questions came with {f'one {kind}' if is_single else f'{kind}s for {len(media)}'}: give one "
            f"entry per question, each a {kind}, a list of {kind}s or None. {docs_link('batch')}"
        )
    return [[] if entry is None else list(entry) if isinstance(entry, list | tuple) else [entry] for entry in media]


def _build_chat(
    question: str | Sequence[Mapping[str, Any]], images: list[Any], videos: list[Any], processor: Any
) -> Chat:
    """Build the chat of one sample: media without a source of their own are taken from the lists, in order."""
    media = {"image": images, "video": videos}
    if isinstance(question, str):
        placeholders = [{"type": kind} for kind, sources in media.items() for _ in sources]
        question = [{"role": "user", "content": [*placeholders, {"type": "text", "text": question}]}]
    remaining = {kind: list(sources) for kind, sources in media.items()}
    messages = []
    for message in question:
        parts = _parts(message)
        loaded_parts = [_load_part(part, media, remaining, processor) for part in parts]
        messages.append({"role": message["role"], "content": loaded_parts})
    for kind, sources in remaining.items():
        if sources:
            raise ValueError(
                f"{len(sources)} of {len(media[kind])} {_PLURALS[kind]} have no place in the chat: it needs one "
                f"{{'type': {kind!r}}} part for each."
            )
    if not messages:
        raise ValueError("the chat is empty; it must end with the question.")
    if messages[-1]["role"] != "user":
        raise ValueError(
            f"the chat ends with a message of the {messages[-1]['role']!r}; it must end with the question."
        )
    _mark_question(messages)
    return Chat(messages)


def _parts(message: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Parts of a message, checked; a content that is a text is one part."""
    role, content = message.get("role"), message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(role, str) or not isinstance(parts, list | tuple):
        raise ValueError(f"{message!r:.200} is no message: it needs a `role`, and a `content` of text or of parts.")
    for part in parts:
        if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
            raise ValueError(f"{part!r:.200} is no part of a message: it needs a `type`: text, image or video.")
        if part["type"] == "text" and not all(
            isinstance(text, str) for text in (part.get("text"), part.get("question", ""))
        ):
            raise ValueError(
                f"{part!r:.200} is no text part: `text` is a string, and `question`, if it is there, the string within "
                f"it that is the question."
            )
    return parts


def _mark_question(messages: list[dict[str, Any]]) -> None:
    """Mark the question: where the chat says, else the last text of the last message.

    Raises:
        ValueError: If there is no question, or a text does not hold the question that is marked in it.
    """
    texts = [part for message in messages for part in message["content"] if part["type"] == "text"]
    for part in texts:
        if "question" in part and not (part["question"].strip() and part["question"].strip() in part["text"]):
            raise ValueError(
                f"the question {part['question']!r} cannot be located in the prompt: it does not occur in "
                f"{part['text']!r}."
            )
    if any("question" in part for part in texts):
        return
    last = [part for part in messages[-1]["content"] if part["type"] == "text" and part["text"].strip()]
    if not last:
        raise ValueError("the question is empty: there is no token to measure attention from.")
    last[-1]["question"] = last[-1]["text"]


def _load_part(
    part: Mapping[str, Any], media: Mapping[str, list[Any]], remaining: Mapping[str, list[Any]], processor: Any
) -> dict[str, Any]:
    """Load a part of a message; a picture or video without a source is the first of the remaining ones."""
    kind = part["type"]
    if kind == "text":
        return {name: part[name] for name in ("type", "text", "question") if name in part}
    if kind not in media:
        raise ValueError(f"a chat part of type {kind!r} cannot be prepared; text, image and video can.")
    source = part.get(kind, part.get("path"))
    if source is None:
        if not remaining[kind]:
            raise ValueError(f"the chat names more {_PLURALS[kind]} than the {len(media[kind])} given.")
        source = remaining[kind].pop(0)
    return {"type": kind, kind: load_picture(source) if kind == "image" else load_clip(source, processor)}


def _role(speaker: str) -> Role:
    return Role.SYSTEM if speaker == "system" else Role.CONTEXT
