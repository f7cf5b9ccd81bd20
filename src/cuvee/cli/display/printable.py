"""Makes text from other sources safe to print on a terminal or into a log."""

from __future__ import annotations

from cuvee.core.errors import one_line, printable

__all__ = ["one_line", "printable"]
