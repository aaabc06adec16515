"""Suggestions for misspelt words in error messages."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(word: str, candidates: Iterable[str], likeness: float = 0.6) -> str:
    """Return the candidate most similar to a word; "" if none is similar enough.

    Args:
        word: the word as written.
        candidates: the words that it may stand for.
        likeness: least similarity, from 0 to 1, as `difflib` measures it.
    """
    names = list(candidates)
    for spelling in (word, word.lower()):
        for match in get_close_matches(spelling, names, n=1, cutoff=likeness):
            return match
    return ""


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for a similar candidate, else a list of the candidates."""
    candidates = sorted(candidates)
    near = nearest(word, candidates)
    if near:
        return f"; did you mean {near!r}?"
    return f"; there are: {', '.join(candidates)}"
