"""Write docs/options.md: all options of all commands, as the settings declare them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from runner.commands.doctor.base import DoctorSettings
from runner.commands.explain import ExplainSettings
from runner.commands.keygen import KeygenSettings
from runner.commands.listen import ListenSettings
from runner.commands.message_file import ByHand
from runner.commands.run import RunSettings
from runner.commands.submit import SubmitSettings
from runner.commands.top import TopSettings
from runner.options.reading import form_of, meaning_of, variables_of
from runner.options.settings import Settings

COMMANDS: Mapping[str, type] = {
    "": Settings,
    "submit": SubmitSettings,
    "listen": ListenSettings,
    "explain": ExplainSettings,
    "top": TopSettings,
    "run": RunSettings,
    "validate": ByHand,
    "doctor": DoctorSettings,
    "prepare": ByHand,
    "keys": KeygenSettings,
}
"""What each command reads its options into; the runner itself is the command without a name."""

PAGE = Path(__file__).parent.parent / "docs" / "options.md"

_HEAD = """# Options

Every option is a flag and an environment variable. The flag wins; an empty variable counts as not set, but for
`PROM_ADDRESS`. `--queue-match RE`, `--queue-match=RE` and `-queue-match=RE` are the same. One without a value here is
true or false: `--debug`, `--debug=false`. Of the runner's options that may be given several times the variable has
all, with commas between.
What stands in brackets is the default.

DURATION is `90s`, `1h30m`, `2d`, or a number of seconds; SIZE is `512mb`, `3GB` (powers of 1000), `2GiB` (powers of
1024), or a number of bytes; RE is a regular expression of Python's. All mistakes in the options are told at once, and
the exit status is 2.

`make docs` writes this page, from what the program reads its options with; `studio-runner --help` says the same.
"""

_TABLE = "| option | variable | meaning |\n| --- | --- | --- |"


def page() -> str:
    """Return the page."""
    return "\n".join([_HEAD, *_runner(), *(line for name in COMMANDS if name for line in _command(name))])


def _runner() -> Iterator[str]:
    for kind in _declaring(Settings):
        yield from (f"## {_title(kind)}\n", _TABLE, *map(_row, _own(kind)), "")


def _command(name: str) -> Iterator[str]:
    kinds = list(_declaring(COMMANDS[name]))
    shared = [kind for kind in kinds if kind in Settings.__mro__]
    yield f"## `{name}`\n"
    if Settings in shared:
        yield "All options of the runner; it needs no queues." if name != "doctor" else "All options of the runner."
    elif shared:
        yield f"The options above of: {'; '.join(map(_link, shared))}."
    yield ""
    if rows := [_row(each) for kind in kinds if kind not in shared for each in _own(kind)]:
        yield from (_TABLE, *rows, "")


def _declaring(kind: type) -> list[type]:
    """Return the classes that declare the options of a command, in the order in which --help has them."""
    return [each for each in reversed(kind.__mro__) if dataclasses.is_dataclass(each) and _own(each)]


def _own(kind: type) -> list[dataclasses.Field[Any]]:
    return [each for each in dataclasses.fields(kind) if each.name in vars(kind).get("__annotations__", {})]


def _title(kind: type) -> str:
    return (kind.__doc__ or "").partition(".")[0]


def _link(kind: type) -> str:
    """Link to a heading, as GitHub names it."""
    return f"[{_title(kind)}](#{re.sub(r'[^a-z ]', '', _title(kind).lower()).replace(' ', '-')})"


def _row(field: dataclasses.Field[Any]) -> str:
    several = "; may be given several times" if field.metadata["many"] else ""
    variables = ", ".join(f"`{name}`" for name in variables_of(field))
    meaning = re.sub(r"([*|<])", r"\\\1", meaning_of(field))
    return f"| `{form_of(field)}` | {variables} | {meaning}{several} |"


if __name__ == "__main__":
    PAGE.write_text(page())
