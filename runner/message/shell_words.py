"""Words as a POSIX shell splits them from a line, and nothing else that a shell does.

https://pubs.opengroup.org/onlinepubs/9699919799/utilities/V3_chap02.html#tag_18_02 is the quoting. ``shlex`` keeps
backslashes that a shell removes: within double quotes those before ``$`` and a backquote, and before ends of lines.
"""

from __future__ import annotations

import re

_PIECE = re.compile(
    r"""(?P<between>[ \t\n]+)|'(?P<single>[^']*)'|"(?P<double>(?:[^"\\]|\\.)*)"|\\(?P<one>.)"""
    r"""|(?P<plain>[^ \t\n'"\\]+)""",
    re.DOTALL,
)
# What a backslash in double quotes is for; before all else it is a character.
_ESCAPED = re.compile(r'\\([$`"\\]|\n)')


def split(line: str) -> list[str]:
    """Return the words. Raises ValueError when a quote is not closed, or nothing follows a backslash."""
    words: list[str] = []
    word: str | None = None
    end = 0
    while end < len(line):
        piece = _PIECE.match(line, end)
        if piece is None:
            raise ValueError("a quote is not closed, or nothing follows a backslash")
        end = piece.end()
        if piece["between"] is None:
            word = _added(word, piece)
        elif word is not None:
            words.append(word)
            word = None
    return words if word is None else [*words, word]


def _added(word: str | None, piece: re.Match[str]) -> str | None:
    """Return the word with a piece more; None is one that has not begun, which is not the same as an empty one."""
    if piece["one"] == "\n":
        return word
    if piece["double"] is not None:
        return (word or "") + _ESCAPED.sub(lambda found: found[1].strip("\n"), piece["double"])
    return (word or "") + piece[piece.lastgroup or 0]
