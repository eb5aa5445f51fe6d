"""Where the docs say more about a refusal."""

PAGE = "docs/errors.md"
"""In the repository: the docs have no published address yet."""


def docs_link(anchor: str) -> str:
    """The end of a message that has a section on that page."""
    return f"({PAGE}#{anchor})"


def without_docs_link(message: str) -> str:
    """A message without that end, to be part of one that has its own."""
    return message.partition(f" ({PAGE}#")[0]
