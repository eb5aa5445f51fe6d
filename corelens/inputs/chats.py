"""Questions and chats as users write them, and the prompt that the model's chat template makes of them."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from PIL import Image

from corelens.errors import docs_link
from corelens.inputs.media import Clip, Footage, Picture, load_clip, load_picture
from corelens.tokens import Role

_SENTINEL = re.compile("\ue000(\\d+)\ue001")
"""Stands for the n-th text of a chat, to find where the template puts it; private characters no one types."""


class Chat(NamedTuple):
    """Messages whose contents are lists of parts, each picture and video loaded and in its place."""

    messages: list[dict[str, Any]]

    @property
    def pictures(self) -> list[Image.Image]:
        return self._of("image")

    @property
    def clips(self) -> list[Clip]:
        return self._of("video")

    @property
    def texts(self) -> list[tuple[Role, str]]:
        """What is said, in order, and what it is."""
        return [
            (_role(message, last=message is self.messages[-1]), part["text"])
            for message in self.messages
            for part in message["content"]
            if part["type"] == "text"
        ]

    def _of(self, kind: str) -> list[Any]:
        return [part[kind] for message in self.messages for part in message["content"] if part["type"] == kind]


class Span(NamedTuple):
    """Where a text of the chat stands in the prompt, in characters."""

    start: int
    end: int
    role: Role


class Prompt(NamedTuple):
    """A chat as the model's chat template writes it."""

    text: str
    """For the processor, which may lay it out once more before it replaces pictures and videos."""

    template_text: str
    spans: list[Span]
    """Where the texts of the chat stand in `laid_out`."""


def chats(question: Any, images: Any, videos: Any, processor: Any) -> list[Chat]:
    """One chat per sample."""
    if not isinstance(question, Sequence):
        raise TypeError(
            f"a question is a text, a chat, or a list of them, not {type(question).__name__}; the pictures come before "
            f"it, as in prepare(image, question)."
        )
    if isinstance(question, str) or (len(question) > 0 and isinstance(question[0], Mapping)):
        question, images, videos = [question], [images], [videos]
    if not len(question):
        raise ValueError("there is no question: give a string, a chat, or a list of them.")
    pictures, footage = _per_sample(images, "picture", len(question)), _per_sample(videos, "video", len(question))
    return [_chat(*sample, processor) for sample in zip(question, pictures, footage, strict=True)]


def _per_sample(given: Any, kind: str, n_samples: int) -> list[list[Any]]:
    """The pictures or the videos of each sample."""
    given = [None] * n_samples if given is None else given
    one = isinstance(given, Picture | Footage)
    if one or len(given) != n_samples:
        raise ValueError(
            f"{n_samples} questions came with {f'one {kind}' if one else f'{kind}s for {len(given)}'}: give one entry "
            f"per question, each a {kind}, a list of {kind}s or None. {docs_link('batch')}"
        )
    return [[] if own is None else list(own) if isinstance(own, list | tuple) else [own] for own in given]


def _chat(asked: str | Sequence[Mapping[str, Any]], images: list[Any], videos: list[Any], processor: Any) -> Chat:
    given = {"image": images, "video": videos}
    if isinstance(asked, str):
        places = [{"type": kind} for kind, own in given.items() for _ in own]
        asked = [{"role": "user", "content": [*places, {"type": "text", "text": asked}]}]
    named = {"image": "pictures", "video": "videos"}
    messages, waiting = [], {kind: list(own) for kind, own in given.items()}
    for message in asked:
        content, parts = message["content"], []
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            kind = part["type"]
            if kind == "text":
                parts.append({"type": "text", "text": part["text"]})
            elif kind in given:
                source = part.get(kind, part.get("path"))
                if source is None and not waiting[kind]:
                    raise ValueError(f"the chat names more {named[kind]} than the {len(given[kind])} given.")
                source = waiting[kind].pop(0) if source is None else source
                loaded = load_picture(source) if kind == "image" else load_clip(source, processor)
                parts.append({"type": kind, kind: loaded})
            else:
                raise ValueError(f"a chat part of type {kind!r} cannot be prepared; text, image and video can.")
        messages.append({"role": message["role"], "content": parts})
    for kind, left in waiting.items():
        if left:
            raise ValueError(
                f"{len(left)} of {len(given[kind])} {named[kind]} have no place in the chat: it needs one "
                f"{{'type': {kind!r}}} part for each."
            )
    if not messages:
        raise ValueError("the chat is empty; it must end with the question.")
    if messages[-1]["role"] != "user":
        raise ValueError(
            f"the chat ends with a message of the {messages[-1]['role']!r}; it must end with the question."
        )
    chat = Chat(messages)
    if not any(text.strip() for role, text in chat.texts if role == Role.QUESTION):
        raise ValueError("the question is empty: there is no token to measure attention from.")
    return chat


def _role(message: dict[str, Any], last: bool) -> Role:
    return Role.SYSTEM if message["role"] == "system" else Role.QUESTION if last else Role.CONTEXT


def render(chat: Chat, processor: Any) -> Prompt:
    """The prompt, and where the texts of the chat stand in it.

    The template is rendered a second time with a private mark in place of every text; what stands around the marks is
    the template's own, whatever it looks like.
    """
    if not getattr(processor, "chat_template", None):
        raise ValueError(
            f"{type(processor).__name__} has no chat template, so a question cannot be put to the model. Give it the "
            f"one that the model was trained with, in Jinja: processor.chat_template = '...' {docs_link('no-template')}"
        )
    for kind in ("image", "video"):
        token = getattr(processor, f"{kind}_token", None)
        if token and any(str(token) in text for _, text in chat.texts):
            name = "picture" if kind == "image" else kind
            raise ValueError(
                f"the text holds {str(token)!r}, which stands for a {name}; pass {name}s instead. {docs_link('placeholder')}"
            )

    def written(text_of: Callable[[int, str], str]) -> str:
        texts = (text_of(index, text) for index, (_, text) in enumerate(chat.texts))
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

    def laid_out(text: str) -> str:
        images = [chat.pictures] if chat.pictures else None
        return processor.prepare_inputs_layout(images=images, text=[text])[1][0]

    text = written(lambda index, text: text)
    prompt = laid_out(text)
    spans, cursor = [], 0
    literal, *rest = _SENTINEL.split(laid_out(written(lambda index, text: f"\ue000{index}\ue001")))
    for index, after in zip(rest[::2], rest[1::2], strict=True):
        cursor += len(literal)
        role, said = chat.texts[int(index)]
        # Templates may trim.
        found = next((form for form in (said, said.strip()) if prompt.startswith(form + after, cursor)), None)
        if found is None:
            raise ValueError(f"the chat template changes the text {said!r}, so its tokens cannot be told apart.")
        spans.append(Span(cursor, cursor + len(found), role))
        cursor, literal = cursor + len(found), after
    return Prompt(text, prompt, spans)
