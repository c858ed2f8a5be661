"""Every option declared once: flag, environment variable, default, type and help all derive from one field.

``--queue-match`` is the field ``queue_match`` and the variable ``QUEUE_MATCH``; the flag wins. Go-style single dashes
(``-queue-match=x``), which the earlier runner took, are understood too. An empty variable counts as not set.
"""

from __future__ import annotations

import dataclasses
import os
import re
import tempfile
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from runner.errors import ConfigError
from runner.log import FORMATS, Style
from runner.sandbox.users import User
from runner.units import format_duration, parse_duration, parse_size

T = TypeVar("T")

Parse = Callable[[str], Any]

# In bytes.
_SMALLEST_CACHE = 10**9


def _log_format(value: str) -> str:
    return _one_of(FORMATS, value)


def _log_level(value: str) -> str:
    return _one_of(("debug", "info", "warn", "error"), value)


def _one_of(words: Sequence[str], value: str) -> str:
    if value.lower() not in words:
        raise ValueError(f"is {value!r}, but must be {', '.join(words[:-1])} or {words[-1]}")
    return value.lower()


def _text(value: str) -> str:
    return value


def boolean(value: str) -> bool:
    """Parse an option that needs no value."""
    words = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    if value.lower() not in words:
        raise ValueError(f"is {value!r}, but must be true or false")
    return words[value.lower()]


def count(value: str) -> int:
    """Parse a whole number."""
    if not value.isascii() or not value.isdigit():
        raise ValueError(f"is {value!r}, but must be a whole number, 0 or more")
    return int(value)


def _niceness(value: str) -> int:
    number = count(value)
    if number > 19:
        raise ValueError(f"is {value!r}, but must be 0 to 19")
    return number


def _user(value: str) -> str:
    if os.geteuid() != 0:
        raise ValueError("needs a runner that is root: start it as that user instead")
    try:
        user = User.named(value)
    except KeyError:
        raise ValueError(f"is {value!r}, but there is no such user on this machine") from None
    if user.uid == 0:
        raise ValueError(f"is {value!r}, which is root: name another user")
    return value


def _pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"is {value!r}, which is no regular expression: {error}") from None
    return value


def _words(value: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in value.split(",") if word.strip())


def directory(value: str) -> str:
    """Parse the path of a directory that has to be there."""
    path = Path(value).expanduser()
    if not path.is_dir():
        raise ValueError(f"is {value!r}, which is not a directory: create it, or name another one")
    return str(path.resolve())


def _path(value: str) -> str:
    return str(Path(value).expanduser().resolve())


def _cache_size(value: str) -> int:
    size = parse_size(value)
    if size < _SMALLEST_CACHE:
        raise ValueError(f"is {value!r}, but must be at least 1 GB")
    return size


def _uv(value: str) -> str:
    if value in ("auto", "never"):
        return value
    path = Path(value).expanduser()
    if not os.access(path, os.X_OK) or path.is_dir():
        raise ValueError(f"is {value!r}, but must be auto, never, or the path of uv")
    return str(path.absolute())


def _container_program(value: str) -> str:
    path = Path(value).expanduser()
    if value != "auto" and (not os.access(path, os.X_OK) or path.is_dir()):
        raise ValueError(f"is {value!r}, but must be auto, or the path of apptainer or singularity")
    return value if value == "auto" else str(path.absolute())


def _references(value: str) -> tuple[str, ...]:
    words = _words(value)
    for word in words:
        if word != "*" and "://" not in word:
            raise ValueError(f"is {word!r}, but must be the reference of an image, such as docker://python:3.11")
        if "*" in word[:-1]:
            raise ValueError(f"is {word!r}, but a * can only stand at its end")
    return words


def _queues(value: str) -> tuple[str, ...]:
    names = _words(value)
    if reserved := [name for name in names if name.endswith("_response")]:
        raise ValueError(
            f"is {reserved[0]!r}, but queues of that name carry reports: name the queue that the work is in"
        )
    return names


def _directories(value: str) -> tuple[str, ...]:
    return tuple(directory(word) for word in _words(value))


def _file(value: str) -> str:
    if not Path(value).is_file():
        raise ValueError(f"is {value!r}, but there is no such file")
    return str(Path(value).resolve())


def _hook(value: str) -> str:
    if not re.fullmatch(r"https?://[^\s/@]+/\S+", value):
        raise ValueError("must be the URL that Slack has made for an incoming web hook, https://…")  # never the value
    return value


def address(value: str) -> str:
    """Parse an address to listen on; "" is none."""
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.%]+\]|[^\[\]:/\s]*):(\d{1,5})", value)
    if value and not (match and int(match[2]) < 65536):
        raise ValueError(f"is {value!r}, but must be [HOST]:PORT, or empty for none")
    return value


def _new_file(value: str) -> str:
    if not Path(value).absolute().parent.is_dir() or Path(value).is_dir():
        raise ValueError(f"is {value!r}, but must be a file in a directory that is there")
    return str(Path(value).absolute())


def _endpoint(value: str) -> str:
    url = value if "://" in value else f"http://{value}"  # STORAGE_EMULATOR_HOST is often no more than HOST:PORT
    if not re.fullmatch(r"https?://[A-Za-z0-9.:\[\]_-]+/?", url):
        raise ValueError("must be http[s]://HOST[:PORT]")
    return url.rstrip("/")


def option(  # noqa: PLR0913 -- all there is to an option, in one place
    default: Any,
    meaning: str,
    parse: Parse = _text,
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


@dataclass(frozen=True)
class ServerSettings:
    """The options that say where queues are. Durations are in seconds.

    ``queues_needed``: it is a mistake to name none.
    """

    queues_needed: ClassVar[bool] = True

    amqp_url: str = option("", "RabbitMQ server, amqp[s]://USER:PASSWORD@HOST:PORT/VHOST", metavar="URL")
    amqp_mgt_url: str = option("", "its management API [same host, port + 10000]", metavar="URL")
    amqp_ca: str = option("", "CA certificates of the RabbitMQ server (PEM)", _file, metavar="FILE")
    sqs_certs: str = option(
        "",
        "directory of AWS credential directories, each for one account's SQS queues",
        directory,
        metavar="DIR",
    )
    sqs_region: str = option(
        "",
        "AWS region of SQS queues; credentials from the environment or the instance's role",
        metavar="NAME",
    )
    sqs_endpoint: str = option("", "SQS endpoint other than the region's, for VPC endpoints", metavar="URL")
    sqs_timeout: float = option(15.0, "longest single SQS call", parse_duration, metavar="DURATION")
    queue_root: str = option("", "directory whose sub-directories are queues", directory, metavar="DIR")

    def faults(self) -> list[str]:
        """What is wrong with the options taken together."""
        found = []
        if self.queues_needed and not (self.amqp_url or self.queue_root or self.sqs_certs or self.sqs_region):
            found.append("there are no queues: give --amqp-url, --sqs-certs, --sqs-region or --queue-root")
        if self.amqp_ca and not self.amqp_url:
            found.append("--amqp-ca is of no use without --amqp-url")
        if self.sqs_endpoint and not (self.sqs_certs or self.sqs_region):
            found.append("--sqs-endpoint is of no use without --sqs-certs or --sqs-region")
        return found


@dataclass(frozen=True)
class HomeSettings:
    """Where the runner keeps its files."""

    working_dir: str = option("", "where the runner keeps its files [TMPDIR or /tmp]", directory, metavar="DIR")

    @property
    def home(self) -> Path:
        """The runner's one root, ``$STUDIOML_HOME``: a directory of its own below the working directory."""
        return Path(self.working_dir or tempfile.gettempdir()) / "studio-runner"


@dataclass(frozen=True)
class EnvironmentSettings(HomeSettings):
    """How the environments of experiments are built and kept. Sizes are in bytes, durations in seconds."""

    python_dirs: tuple[str, ...] = option(
        (),
        "more Pythons for experiments than those of PATH, pyenv and uv: in this directory, its bin or */bin",
        _directories,
        metavar="DIR",
        many=True,
    )
    uv: str = option(
        "auto", "build environments with uv: auto (if it is there), never, or its path", _uv, metavar="PROGRAM"
    )
    index_patience: float = option(
        300.0, "how long a package index may fail before the attempt is given up", parse_duration, metavar="DURATION"
    )
    environments_size: int = option(
        50 * 1000**3,
        "largest size of all built environments, and of all images; those used longest ago go first [50gb; 0: any]",
        parse_size,
        metavar="SIZE",
    )
    environments_age: float = option(
        30 * 86400.0,
        "how long an environment or image is kept that nobody uses [30d; 0: for ever]",
        parse_duration,
        metavar="DURATION",
    )


@dataclass(frozen=True)
class KeySettings:
    """Where the runner's keys are. What is not there may come while it runs."""

    certs_dir: str = option("./certs", "directory of all keys, but for what the next three name", metavar="DIR")
    encrypt_dir: str = option("", "private keys that open messages [message in --certs-dir]", metavar="DIR")
    request_signatures_dir: str = option(
        "", "public keys of those who may submit [queues/signing in --certs-dir]", metavar="DIR"
    )
    response_signatures_dir: str = option(
        "", "public keys of those who read reports [queues/response-encrypt in --certs-dir]", metavar="DIR"
    )

    @property
    def private_keys(self) -> Path:
        """The directory of the keys that open messages."""
        return Path(self.encrypt_dir or Path(self.certs_dir) / "message").expanduser()

    @property
    def signers(self) -> Path:
        """The directory of the public keys of those who may submit."""
        return Path(self.request_signatures_dir or Path(self.certs_dir) / "queues" / "signing").expanduser()

    @property
    def report_readers(self) -> Path:
        """The directory of the public keys of those who read reports."""
        return Path(self.response_signatures_dir or Path(self.certs_dir) / "queues" / "response-encrypt").expanduser()


@dataclass(frozen=True)
class Settings(EnvironmentSettings, KeySettings, ServerSettings):
    """The options of the runner itself. Sizes are in bytes, durations in seconds."""

    queue: tuple[str, ...] = option(
        (),
        "take work only from this queue; RabbitMQ's management API is not needed then",
        _queues,
        metavar="NAME",
        many=True,
    )
    queue_match: str = option(
        "^(rmq|sqs|local)_.*$", "take work only from queues matching this", _pattern, metavar="RE"
    )
    queue_mismatch: str = option("", "and not from queues matching this", _pattern, metavar="RE")

    clear_text_messages: bool = option(False, "accept messages that are not encrypted", boolean, metavar="BOOL")
    allow_env_secrets: bool = option(
        False, "use AWS keys from a message's config.env where it has no other credentials", boolean, metavar="BOOL"
    )
    env_allow: tuple[str, ...] = option(
        (), "variables of the runner that a message may read as %NAME%", _words, metavar="NAME,…", many=True
    )

    file_root: tuple[str, ...] = option(
        (), "directory that file:// artifacts may lie below [none]", _directories, metavar="DIR", many=True
    )
    allow_link_local: bool = option(
        False,
        "let artifacts be read from link-local addresses and the like, where clouds give machines their credentials",
        boolean,
        metavar="BOOL",
    )
    s3_ca: str = option("", "CA certificates of S3 servers (PEM); implies TLS", _file, metavar="FILE")
    s3_cert: str = option("", "client certificate for S3 servers (PEM)", _file, metavar="FILE")
    s3_key: str = option("", "its private key", _file, metavar="FILE")
    google_credentials: str = option(
        "",
        "key file of the service account that reads and writes gs:// artifacts which have no credentials of their own",
        _file,
        metavar="FILE",
        also="GOOGLE_APPLICATION_CREDENTIALS",
    )
    google_metadata: bool = option(
        True,
        "use this machine's or pod's own identity for them where there is no such file: experiments, which can ask "
        "for it themselves, get no more by it than they have",
        boolean,
        metavar="BOOL",
    )
    google_endpoint: str = option(
        "",
        "endpoint of Google Cloud Storage [https://storage.googleapis.com]",
        _endpoint,
        metavar="URL",
        also="STORAGE_EMULATOR_HOST",
    )
    store_patience: float = option(
        600.0, "how long a store may fail before the attempt is given up", parse_duration, metavar="DURATION"
    )
    cache_create: bool = option(False, "create the cache's directory if it is not there", boolean, metavar="BOOL")
    cache_dir: str = option(
        "", "directory to keep immutable artifacts in, which runners of this machine share [none]", _path, metavar="DIR"
    )
    cache_size: int = option(0, "the most disk that it may take, at least 1 GB", _cache_size, metavar="SIZE")

    singularity: str = option(
        "auto",
        "the program that runs containers: auto (apptainer or singularity, if there is one), or its path",
        _container_program,
        metavar="PROGRAM",
    )
    singularity_allow: tuple[str, ...] = option(
        (),
        "container images that messages may name in _singularity: whole references, or beginnings with a * after them, "
        "docker://ghcr.io/mylab/*,s3://minio:9000/images/*; dockerhub:// is docker:// [none]",
        _references,
        metavar="IMAGE,…",
        many=True,
    )

    max_cores: int = option(0, "cores to share out [0: all]", count, metavar="N")
    max_mem: int = option(0, "memory to share out [0: 85 % of what is free]", parse_size, metavar="SIZE")
    max_disk: int = option(0, "disk to share out [0: 85 % of what is free]", parse_size, metavar="SIZE")
    cpu_only: bool = option(False, "use no GPU", boolean, metavar="BOOL")
    max_attempts: int = option(3, "how often a failing experiment is tried", count, metavar="N")
    grace_period: float = option(
        30.0, "how long running experiments may go on after a stop signal", parse_duration, metavar="DURATION"
    )
    enforce_ram: bool = option(
        True, "stop an experiment that uses more memory than it asked for (ram)", boolean, metavar="BOOL"
    )
    max_processes: int = option(4096, "how many processes an experiment may have [4096; 0: any]", count, metavar="N")
    max_file_size: int = option(
        0, "how large a single file of an experiment may be, holes included [0: any]", parse_size, metavar="SIZE"
    )
    max_output: int = option(
        1000**3,
        "how much of an experiment's output is kept in its log, each attempt for itself [1gb; 0: all]",
        parse_size,
        metavar="SIZE",
    )
    hang_timeout: float = option(
        0.0,
        "stop an experiment that writes nothing and uses no processor for so long [0: never]",
        parse_duration,
        metavar="DURATION",
    )
    nice: int = option(
        0, "how much less than others experiments get of the processors, 0 to 19", _niceness, metavar="N"
    )
    run_as: str = option(
        "", "user that experiments and their installers run as, where the runner is root", _user, metavar="USER"
    )
    echo_output: bool = option(False, "write what experiments print to standard output, too", boolean, metavar="BOOL")
    schema_logs: bool = option(True, "keep output lines in the metadata document", boolean, metavar="BOOL")
    log_format: str = option(
        "",
        "log for people (text, or happy, in colour on a terminal) or as lines of JSON (json) [happy]",
        _log_format,
        metavar="FORMAT",
    )
    log_level: str = option("", "log events from here on: debug, info, warn, error [info]", _log_level, metavar="LEVEL")
    debug: bool = option(False, "leave work directories behind and log more", boolean, metavar="BOOL")

    limit_tasks: int = option(0, "stop after this many attempts [0: never]", count, metavar="N")
    limit_idle_duration: float = option(
        0.0, "stop after this long without work [0: never]", parse_duration, metavar="DURATION"
    )
    limit_interval: float = option(
        0.0,
        "take no more work after this long, finish what runs, and stop [0: never]",
        parse_duration,
        metavar="DURATION",
    )

    prom_address: str | None = option(
        None,
        "address of metrics, /healthz, /readyz and the status page [:9090 if that is free; empty: none]",
        address,
        metavar="ADDR",
    )
    status_page: bool = option(
        False,
        "show there what runs, with its output, though the address is not this machine's alone",
        boolean,
        metavar="BOOL",
    )
    cpu_profile: str = option(
        "",
        "write what the runner itself spent its time on, when it ends, for `python -m pstats`",
        _new_file,
        metavar="PROFILE",
    )
    k8s_namespace: str = option("", "namespace of the state ConfigMaps [the pod's own]", metavar="NAME")
    k8s_configmap: str = option("studioml-go-runner", "name of the one for all pods", metavar="NAME")
    slack_hook: str = option(
        "", "Slack's incoming web hook for notices of what starts and ends; it is a secret", _hook, metavar="URL"
    )
    slack_room: str = option(
        "",
        "channel for notices of messages that name none (config.runner.slack_destination) [the hook's own]",
        metavar="NAME",
    )

    def faults(self) -> list[str]:
        """What is wrong with the options taken together."""
        found = super().faults()
        if bool(self.s3_cert) != bool(self.s3_key):
            found.append("--s3-cert and --s3-key belong together: give both or neither")
        if self.cache_dir and not self.cache_size:
            found.append("--cache-dir needs a --cache-size of at least 1 GB")
        if self.cache_dir and not self.cache_create and not Path(self.cache_dir).is_dir():
            found.append(
                f"--cache-dir is {self.cache_dir!r}, which is not a directory: create it, or give --cache-create"
            )
        if self.run_as and self.singularity_allow:
            found.append("--run-as is not for containers: start the whole runner as that user, or allow no images")
        if self.slack_room and not self.slack_hook:
            found.append("--slack-room is of no use without --slack-hook")
        if self.max_attempts < 1:
            found.append("--max-attempts is 0, but must be at least 1")
        return found


def log_style(settings: Settings, environ: Mapping[str, str]) -> Style:
    """Return how the log is to be written."""
    return Style.of(environ, level=settings.log_level, form=settings.log_format, debug=settings.debug)


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
    for flag, field in fields.items():
        name, texts = _origin(field, given.get(flag), environ)
        if texts:
            try:
                values[field.name] = _value(field, texts)
            except ValueError as error:
                faults.append(f"{name} {error}")
    options = kind(**values)
    # What is missing can only be told when nothing that was given got lost.
    if not faults and hasattr(options, "faults"):
        faults.extend(options.faults())
    return options, rest, faults


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
            faults.append(f"{flag} is no option of this program: see --help")
        elif equals:
            given.setdefault(flag, []).append(value)
        elif fields[flag].metadata["parse"] is boolean:
            given[flag] = ["true"]
        elif words:
            given.setdefault(flag, []).append(words.pop(0))
        else:
            faults.append(f"{flag} lacks its value: {fields[flag].metadata['metavar']}")
    return given, words[1:] if words[:1] == ["--"] else words, faults


def _origin(
    field: dataclasses.Field[Any], flags: list[str] | None, environ: Mapping[str, str]
) -> tuple[str, list[str]]:
    """Return where a value comes from, and its texts, none when it was not given."""
    if flags:
        return flag_of(field), flags
    for name in variables_of(field):
        if value := environ.get(name, ""):
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
