"""Rules of heads under a plan: the tokens that a head may attend to."""

from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass
from typing import Any


@dataclass(frozen=True)
class Full:
    """Rule of a head that attends to everything before it."""


@dataclass(frozen=True)
class Streaming:
    """Rule of a head that attends to the first tokens, to the last, and optionally to all text of the prompt.

    Only those tokens are cached, so that this rule also saves memory and time in decoding. The paper's own rule is
    `StreamingBlocks`.

    Source: StreamingLLM (sinks and window); 128 and 2,048 are what Elastic Attention, of the authors' laboratory, uses.
    """

    sink: int = 128
    """Number of first tokens (attention sinks), padding not counted."""

    window: int = 2048
    """Number of last tokens, the query itself included."""

    keep_text: bool = False
    """True if the head also attends to every token of the prompt that is not part of a picture or video."""

    def __post_init__(self) -> None:
        if self.sink < 0 or self.window < 1:
            raise ValueError(
                f"a streaming head needs sink >= 0 and window >= 1, and these are {self.sink} and {self.window}."
            )


@dataclass(frozen=True)
class StreamingBlocks:
    """Rule of a head that, in the prompt, attends to the first blocks of tokens and to the last; then to everything.

    Block b holds positions `b * block` to `(b + 1) * block - 1`, padding not counted. A query of block b attends to
    those positions up to its own that lie in blocks 0 to `sink - 1` and `b - window + 1` to b: with the defaults to 512
    sinks and 3,969 to 4,096 local tokens. A pass of one token is decoding, which attends to everything, so that the
    keys of all positions are cached: this rule saves time in the prefill, and nothing else.

    Source:
        Algorithm 3 (appendix G.2): `streaming_info` of [4, 32] for `block_streaming_attn_func`, in passes of more than
        one token. That function is in MIT's Block-Sparse-Attention, whose code (`fwdStreaming`, and the mask of its
        tests) says: blocks of 128, for queries and keys; the query's own block is one of the 32; every query head has
        its own kind. Appendix G.1 has a window around the query instead, w tokens before it and after it, which is not
        what that function computes. The paper is silent about padding and prompts that come in pieces; here
        blocks begin at the first real token, and lie where they lie in the whole prompt.
    """

    sink: int = 4
    """Number of first blocks."""

    window: int = 32
    """Number of last blocks, that of the query included."""

    block: int = 128
    """Number of tokens of a block."""

    def __post_init__(self) -> None:
        if self.sink < 0 or self.window < 1 or self.block < 1:
            raise ValueError(
                f"a head that streams blocks needs sink >= 0, window >= 1 and block >= 1, and these are {self.sink}, "
                f"{self.window} and {self.block}."
            )

    @property
    def in_tokens(self) -> Streaming:
        """Rule of tokens with as many sinks and as long a window."""
        return Streaming(self.sink * self.block, self.window * self.block)


@dataclass(frozen=True)
class TopBlocks:
    """Rule of a head that, in the prompt, attends to the key blocks with most estimated attention; then to everything.

    Source: XAttention (antidiagonal scores).
    """

    top_p: float = 0.9
    """Share of the estimated attention that the selected blocks hold, in (0, 1]."""

    def __post_init__(self) -> None:
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], and is {self.top_p}.")


@dataclass(frozen=True)
class Off:
    """Rule of a head whose output is zero."""


HeadRule = Full | Streaming | StreamingBlocks | TopBlocks | Off
"""The tokens that a head may attend to."""

RULES: dict[str, type[HeadRule]] = {
    rule.__name__.lower(): rule for rule in (Full, TopBlocks, StreamingBlocks, Streaming, Off)
}
"""Rules by their name in files, the most permissive first."""


def permissiveness_order(rule: HeadRule) -> tuple[float | int, ...]:
    """Sort key that puts the most permissive rules first."""
    return (list(RULES.values()).index(type(rule)), *(-setting for setting in astuple(rule)))


def describe_rule(rule: HeadRule) -> str:
    """Return the rule in words, for tables and messages."""
    match rule:
        case Full():
            return "full"
        case Streaming(sink, window, keep_text):
            return f"streaming (first {sink}, last {window}{', text' if keep_text else ''})"
        case StreamingBlocks(sink, window, block):
            return f"streaming in the prompt (first {sink} and last {window} blocks of {block})"
        case TopBlocks(top_p):
            return f"top blocks (p = {top_p:g})"
        case Off():
            return "off"


def rule_to_json(rule: HeadRule) -> dict[str, Any]:
    """Return the rule as JSON-serializable values."""
    return {"kind": type(rule).__name__.lower(), **asdict(rule)}


def rule_from_json(saved: Mapping[str, Any]) -> HeadRule:
    """Return the rule that `rule_to_json` wrote."""
    settings = {name: value for name, value in saved.items() if name not in ("kind", "heads")}
    return RULES[saved["kind"]](**settings)
