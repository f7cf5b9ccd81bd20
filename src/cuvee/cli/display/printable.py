"""Makes text from other sources safe to print on a terminal or into a log."""

from __future__ import annotations

_SPACES = "\u00a0\u3000"  # no-break and ideographic


def printable(text: str, keep: str = "\n\t") -> str:
    """Return `text` with control, format and surrogate characters escaped, as in `\\x1b`.

    Such characters can move the cursor, change colours, reverse text or be invisible. Characters in
    `keep` are not escaped.
    """
    if text.isprintable() or text.translate(dict.fromkeys(map(ord, keep))).isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in keep or c in _SPACES else c.encode("unicode_escape").decode()
        for c in text
    )


def one_line(text: str) -> str:
    """`printable` on one line, so that no text can imitate another line of a log."""
    return printable(text, keep="")
