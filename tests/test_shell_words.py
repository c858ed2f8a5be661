"""Words are those that a real shell makes of a line in which it has nothing to expand."""

from __future__ import annotations

import random
import shlex
import subprocess

import pytest

from runner.message import shell_words

LINES = [
    "",
    " a  b\tc ",
    "'two words' \"two more\" one\\ word",
    """'it'"'"'s' "it's" it\\'s""",
    "'' \"\" a''b",
    r"""'a\b\$' "a\b\$x\`id\`\"\\" a\b\$x\`id\`\"\\""",
    "a\\\nb 'a\\\nb' \"a\\\nb\" \\\n c",
    "a#b '#' \\# '*' '~' '{a,b}' é\u00a0\u2028x\r",
]


@pytest.mark.parametrize("line", LINES)
def test_a_real_shell_agrees(line: str) -> None:
    told = subprocess.run(["sh", "-c", f"set -- {line}\nprintf '%s\\0' \"$@\""], capture_output=True, check=True).stdout
    words = told.decode().split("\0")[:-1]
    assert words == (shell_words.split(line) or [""]), "printf makes an empty word of none"


def test_what_clients_quote_comes_out_as_it_was() -> None:
    chance = random.Random(0)
    for _ in range(200):
        words = ["".join(chance.choices("ab'\"\\$` \n\té", k=chance.randrange(6))) for _ in range(4)]
        assert shell_words.split(" ".join(map(shlex.quote, words))) == words


@pytest.mark.parametrize("line", ["'", "a 'b", '"', '"a\\"', "a\\", "'a' \"b"])
def test_a_line_that_goes_on_is_none(line: str) -> None:
    with pytest.raises(ValueError, match="not closed"):
        shell_words.split(line)
