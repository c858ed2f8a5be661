"""Options: the flag, the environment variable and the help of each derive from one field of a dataclass.

``--queue-match`` is the field ``queue_match`` and the variable ``QUEUE_MATCH``; the flag wins. Go-style single dashes
(``-queue-match=x``), which the earlier runner took, are understood too. An empty variable counts as not set,
but for an option whose default is None: it has "" for a value of its own.
"""

from __future__ import annotations

import dataclasses
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from runner.errors import ConfigError
from runner.options.values import boolean, text
from runner.units import format_duration

T = TypeVar("T")

Parse = Callable[[str], Any]


def option(  # noqa: PLR0913 -- all there is to an option, in one place
    default: Any,
    meaning: str,
    parse: Parse = text,
    *,
    metavar: str = "TEXT",
    many: bool = False,
    prefix: str = "",
    also: str = "",
) -> Any:
    """Declare an option.

    ``many`` lets the flag be repeated; ``parse`` then makes a tuple of each value, and they are joined.
    ``prefix`` goes before the variable's name, where that would be too common a word.
    ``also`` is the name under which other programs know the variable; ours wins.
    """
    metadata = {"help": meaning, "parse": parse, "metavar": metavar, "many": many}
    return dataclasses.field(default=default, metadata={**metadata, "prefix": prefix, "also": also})


def flag_of(field: dataclasses.Field[Any]) -> str:
    """Return ``--queue-match`` for ``queue_match``."""
    return "--" + field.name.replace("_", "-")


def variable_of(field: dataclasses.Field[Any]) -> str:
    """Return ``QUEUE_MATCH`` for ``queue_match``."""
    return str(field.metadata["prefix"]) + field.name.upper()


def variables_of(field: dataclasses.Field[Any]) -> list[str]:
    """Return all variables that an option is read from; the first that is set counts."""
    return [name for name in (variable_of(field), field.metadata["also"]) if name]


def form_of(field: dataclasses.Field[Any]) -> str:
    """Return ``--queue-match RE``: how an option is given."""
    flag = flag_of(field)
    return flag if field.metadata["parse"] is boolean else f"{flag} {field.metadata['metavar']}"


def meaning_of(field: dataclasses.Field[Any]) -> str:
    """Return what an option is for, with its default in brackets."""
    return f"{field.metadata['help']}{_default(field)}"


class HelpWanted(Exception):
    """``--help`` was given; the text is its answer."""


def read(
    kind: type[T], arguments: Sequence[str], environ: Mapping[str, str], *, usage: str, words: bool = False
) -> tuple[T, list[str]]:
    """Make an options object of flags and variables, and return it with the words after the flags.

    Raises ConfigError with every mistake found: unknown flags, bad values, missing features, contradictions (which
    ``kind`` may tell by a ``faults()`` method), and words after the flags unless ``words`` are wanted. Raises
    HelpWanted for ``--help``.
    """
    options, rest, faults = gather(kind, arguments, environ, usage=usage)
    if rest and not words:
        faults.append(f"{rest[0]!r} is no option of this program: see --help")
    if faults:
        raise ConfigError(faults)
    return options, rest


def gather(
    kind: type[T], arguments: Sequence[str], environ: Mapping[str, str], *, usage: str
) -> tuple[T, list[str], list[str]]:
    """Do as ``read`` does, but return the mistakes too: what was given wrongly has its default then."""
    fields = {flag_of(field): field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    given, rest, faults = _split(arguments, fields)
    if "--help" in given:
        raise HelpWanted(f"usage: {usage}\n\n" + "\n".join(map(_help, fields.values())))
    values: dict[str, Any] = {}
    lost = {flag for fault in faults for flag in _flags_in(fault)}
    for flag, field in fields.items():
        name, texts = _origin(field, given.get(flag), environ)
        if texts:
            try:
                values[field.name] = _value(field, texts)
            except ValueError as error:
                faults.append(f"{name} {error}")
                lost.add(flag)
    options = kind(**values)
    together = options.faults() if hasattr(options, "faults") else []
    # What was given wrongly is not missing.
    faults.extend(fault for fault in together if lost.isdisjoint(_flags_in(fault)))
    return options, rest, faults


def _flags_in(sentence: str) -> list[str]:
    return re.findall(r"--[a-z0-9-]+", sentence)


def _split(
    arguments: Sequence[str], fields: Mapping[str, dataclasses.Field[Any]]
) -> tuple[dict[str, list[str]], list[str], list[str]]:
    """Split a command line into the flags' values, the words from the first one that is no flag, and faults."""
    given: dict[str, list[str]] = {}
    faults: list[str] = []
    words = list(arguments)
    while words and words[0].startswith("-") and words[0] not in ("-", "--"):
        flag, equals, value = words.pop(0).partition("=")
        flag = "--" + flag.lstrip("-")
        if flag in ("--help", "--h"):
            given["--help"] = []
        elif flag not in fields:
            faults.append(_unknown(flag, fields))
            if not equals and words and not words[0].startswith("-"):
                words.pop(0)  # its value
        elif equals:
            given.setdefault(flag, []).append(value)
        elif fields[flag].metadata["parse"] is boolean:
            given[flag] = ["true"]
        elif words:
            given.setdefault(flag, []).append(words.pop(0))
        else:
            faults.append(f"{flag} lacks its value: {fields[flag].metadata['metavar']}")
    return given, words[1:] if words[:1] == ["--"] else words, faults


def _unknown(flag: str, known: Iterable[str]) -> str:
    """Say that there is no such flag, and which one was probably meant."""
    from difflib import get_close_matches  # noqa: PLC0415 -- only who makes mistakes pays for it

    meant = get_close_matches(flag, known, n=1, cutoff=0.75)
    return f"{flag} is no option of this program: {f'did you mean {meant[0]}? ' if meant else ''}see --help"


def _origin(
    field: dataclasses.Field[Any], flags: list[str] | None, environ: Mapping[str, str]
) -> tuple[str, list[str]]:
    """Return where a value comes from, and its texts, none when it was not given."""
    if flags:
        return flag_of(field), flags
    for name in variables_of(field):
        value = environ.get(name)
        if value or (value == "" and field.default is None):
            return name, [value]
    return variable_of(field), []


def _value(field: dataclasses.Field[Any], texts: list[str]) -> Any:
    """Parse a value: the last of several, or all where the option may be repeated."""
    parse: Parse = field.metadata["parse"]
    if field.metadata["many"]:
        return tuple(one for text in texts for one in parse(text))
    return parse(texts[-1])


def _help(field: dataclasses.Field[Any]) -> str:
    """Format one option for ``--help``."""
    head = "  " + form_of(field)
    text = textwrap.wrap(meaning_of(field), 76)
    lines = [head.ljust(34) + text[0]] if len(head) < 33 else [head, " " * 34 + text[0]]
    return "\n".join(lines + [" " * 34 + line for line in text[1:]])


def _default(field: dataclasses.Field[Any]) -> str:
    if "[" in field.metadata["help"] or field.default in ("", (), 0) or field.default is False:
        return ""
    if field.default is True:
        return " [true]"
    return f" [{format_duration(field.default) if isinstance(field.default, float) else field.default}]"
