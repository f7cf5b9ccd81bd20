"""Lexical diversity (MTLD) of a domain, a number that does not grow with the length of the text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import islice

_WORD = re.compile(r"\w+(?:['’]\w+)*")
_THRESHOLD = 0.72
SAMPLE_WORDS = 50_000


def mtld(words: Sequence[str], threshold: float = _THRESHOLD) -> float | None:
    """Return the measure of textual lexical diversity (MTLD), or None without words.

    McCarthy and Jarvis (2010), Behavior Research Methods 42, 381-392. A factor is a run of words
    that ends where the ratio of different words to all words falls to `threshold`. An unfinished
    run counts as the part (1 - ratio)/(1 - threshold) of a factor. MTLD is the number of words over
    the number of factors, averaged over reading forwards and backwards. If no word repeats there is
    no factor; then the result is the number of words, which is a lower bound.
    """
    if not words:
        return None
    return (_one_way(words, threshold) + _one_way(words[::-1], threshold)) / 2


def domain_mtld(texts: Iterable[str]) -> float | None:
    """Return the MTLD of the first 50,000 words of `texts` in lower case, read in order."""
    words = (match.group() for text in texts for match in _WORD.finditer(text.lower()))
    return mtld(list(islice(words, SAMPLE_WORDS)))


def _one_way(words: Sequence[str], threshold: float) -> float:
    factors = 0.0
    seen: set[str] = set()
    length = 0
    for word in words:
        seen.add(word)
        length += 1
        if len(seen) / length <= threshold:
            factors += 1
            seen.clear()
            length = 0
    if length:
        factors += (1 - len(seen) / length) / (1 - threshold)
    return len(words) / factors if factors else float(len(words))
