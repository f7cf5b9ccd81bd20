"""Text from outside, made safe for a terminal and a log."""

from __future__ import annotations


def printable(text: str, keep: str = "\n\t") -> str:
    """`text` with every control, format and surrogate character written out, as in `\\x1b`.

    Such characters move the cursor, change colours, reverse the direction of text or hide in it. Those in `keep` stay.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in keep or c == "\u3000" else c.encode("unicode_escape").decode()
        for c in text
    )


def one_line(text: str) -> str:
    """`printable` in one line, so that no text can look like another line of a log."""
    return printable(text, keep="")
