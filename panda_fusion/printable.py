"""Making text from strangers' files safe to print on a terminal."""

from __future__ import annotations


def printable(text: str, limit: int | None = None) -> str:
    """Escape every character that a terminal could act on or that hides what stands there.

    Control characters (ESC, CR, backspace, the C1 range, ...), line separators, bidirectional overrides,
    zero-width characters and lone surrogates become `\\x1b`, `\\u202e` and the like. Letters of any script
    stay.

    Args:
        text: any string.
        limit: cut what is longer than this many characters and end it with `...`; None: never cut.
    """
    if limit is not None and len(text) > limit:
        text = text[: max(limit - 3, 0)] + "..."
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
