"""What the values of options may be: each parser returns the value, or raises ValueError with what is wrong with it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from runner.log import FORMATS
from runner.machine.users import User
from runner.units import parse_size

# In bytes.
_SMALLEST_CACHE = 10**9

_TRUE, _FALSE = ("true", "t", "1", "yes", "on"), ("false", "f", "0", "no", "off")


def log_format(value: str) -> str:
    """Parse the form of the log."""
    return _one_of(FORMATS, value)


def log_level(value: str) -> str:
    """Parse the least level that is logged."""
    return _one_of(("debug", "info", "warn", "error"), value)


def _one_of(words: Sequence[str], value: str) -> str:
    if value.lower() not in words:
        raise ValueError(f"is {value!r}, but must be {', '.join(words[:-1])} or {words[-1]}")
    return value.lower()


def text(value: str) -> str:
    """Take it as it is."""
    return value


def boolean(value: str) -> bool:
    """Parse an option that needs no value; the earlier runner took one letter, too."""
    if value.lower() not in _TRUE + _FALSE:
        raise ValueError(f"is {value!r}, but must be true or false")
    return value.lower() in _TRUE


def count(value: str) -> int:
    """Parse a whole number."""
    if not value.isascii() or not value.isdigit():
        raise ValueError(f"is {value!r}, but must be a whole number, 0 or more")
    return int(value)


def niceness(value: str) -> int:
    """Parse how much less than others something gets of the processors."""
    number = count(value)
    if number > 19:
        raise ValueError(f"is {value!r}, but must be 0 to 19")
    return number


def user(value: str) -> str:
    """Parse the name of a user that experiments can run as."""
    if os.geteuid() != 0:
        raise ValueError("needs a runner that is root: start it as that user instead")
    try:
        user = User.named(value)
    except KeyError:
        raise ValueError(f"is {value!r}, but there is no such user on this machine") from None
    if user.uid == 0:
        raise ValueError(f"is {value!r}, which is root: name another user")
    return value


def pattern(value: str) -> str:
    """Check a regular expression."""
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"is {value!r}, which is no regular expression: {error}") from None
    return value


def words(value: str) -> tuple[str, ...]:
    """Parse words with commas between."""
    return tuple(word.strip() for word in value.split(",") if word.strip())


def directory(value: str) -> str:
    """Parse the path of a directory that has to be there."""
    path = Path(value).expanduser()
    if not path.is_dir():
        raise ValueError(f"is {value!r}, which is not a directory: create it, or name another one")
    return str(path.resolve())


def path(value: str) -> str:
    """Parse a path, of what may not be there yet."""
    return str(Path(value).expanduser().resolve())


def cache_size(value: str) -> int:
    """Parse the size of a cache, in bytes."""
    size = parse_size(value)
    if size < _SMALLEST_CACHE:
        raise ValueError(f"is {value!r}, but must be at least 1 GB")
    return size


def uv(value: str) -> str:
    """Parse which uv builds environments."""
    if value in ("auto", "never"):
        return value
    path = Path(value).expanduser()
    if not os.access(path, os.X_OK) or path.is_dir():
        raise ValueError(f"is {value!r}, but must be auto, never, or the path of uv")
    return str(path.absolute())


def container_program(value: str) -> str:
    """Parse which program runs containers."""
    path = Path(value).expanduser()
    if value != "auto" and (not os.access(path, os.X_OK) or path.is_dir()):
        raise ValueError(f"is {value!r}, but must be auto, or the path of apptainer or singularity")
    return value if value == "auto" else str(path.absolute())


def references(value: str) -> tuple[str, ...]:
    """Parse references of images, or their beginnings with a * after them."""
    found = words(value)
    for word in found:
        if word != "*" and "://" not in word:
            raise ValueError(f"is {word!r}, but must be the reference of an image, such as docker://python:3.11")
        if "*" in word[:-1]:
            raise ValueError(f"is {word!r}, but a * can only stand at its end")
    return found


def queues(value: str) -> tuple[str, ...]:
    """Parse names of queues that work is in."""
    names = words(value)
    if reserved := [name for name in names if name.endswith("_response")]:
        raise ValueError(
            f"is {reserved[0]!r}, but queues of that name carry reports: name the queue that the work is in"
        )
    return names


def directories(value: str) -> tuple[str, ...]:
    """Parse the paths of directories that have to be there."""
    return tuple(directory(word) for word in words(value))


def file(value: str) -> str:
    """Parse the path of a file that has to be there."""
    if not Path(value).is_file():
        raise ValueError(f"is {value!r}, but there is no such file")
    return str(Path(value).resolve())


def hook(value: str) -> str:
    """Check the URL of one of Slack's web hooks."""
    if not re.fullmatch(r"https?://[^\s/@]+/\S+", value):
        raise ValueError("must be the URL that Slack has made for an incoming web hook, https://…")  # never the value
    return value


def broker(value: str) -> str:
    """Check the beginning of RabbitMQ's URL, with variables of the environment in it."""
    if not re.match(r"amqps?://.", os.path.expandvars(value)):
        raise ValueError("cannot be understood: amqp[s]://USER:PASSWORD@HOST:PORT/VHOST is needed")  # never the value
    return value


def address(value: str) -> str:
    """Parse an address to listen on; "" is none."""
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.%]+\]|[^\[\]:/\s]*):(\d{1,5})", value)
    if value and not (match and int(match[2]) < 65536):
        raise ValueError(f"is {value!r}, but must be [HOST]:PORT, or empty for none")
    return value


def new_file(value: str) -> str:
    """Parse the path of a file that will be written."""
    if not Path(value).absolute().parent.is_dir() or Path(value).is_dir():
        raise ValueError(f"is {value!r}, but must be a file in a directory that is there")
    return str(Path(value).absolute())


def endpoint(value: str) -> str:
    """Parse a server's address as a URL without a path."""
    url = value if "://" in value else f"http://{value}"  # STORAGE_EMULATOR_HOST is often no more than HOST:PORT
    if not re.fullmatch(r"https?://[A-Za-z0-9.:\[\]_-]+/?", url):
        raise ValueError("must be http[s]://HOST[:PORT]")
    return url.rstrip("/")
