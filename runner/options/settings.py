"""All options of the runner, each declared once; commands have some of their own."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from runner.log import Style
from runner.options import values
from runner.options.reading import option
from runner.units import parse_duration, parse_size


@dataclass(frozen=True)
class ServerSettings:
    """The options that say where queues are. Durations are in seconds.

    ``queues_needed``: it is a mistake to name none.
    """

    queues_needed: ClassVar[bool] = True

    amqp_url: str = option("", "RabbitMQ server, amqp[s]://USER:PASSWORD@HOST:PORT/VHOST", values.broker, metavar="URL")
    amqp_mgt_url: str = option("", "its management API [same host, port + 10000]", metavar="URL")
    amqp_ca: str = option("", "CA certificates of the RabbitMQ server (PEM)", values.file, metavar="FILE")
    sqs_certs: str = option(
        "",
        "directory of AWS credential directories, each for one account's SQS queues",
        values.directory,
        metavar="DIR",
    )
    sqs_region: str = option(
        "",
        "AWS region of SQS queues; credentials from the environment or the instance's role",
        metavar="NAME",
    )
    sqs_endpoint: str = option("", "SQS endpoint other than the region's, for VPC endpoints", metavar="URL")
    sqs_timeout: float = option(15.0, "longest single SQS call", parse_duration, metavar="DURATION")
    queue_root: str = option("", "directory whose sub-directories are queues", values.directory, metavar="DIR")

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

    working_dir: str = option("", "where the runner keeps its files [TMPDIR or /tmp]", values.directory, metavar="DIR")

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
        values.directories,
        metavar="DIR",
        many=True,
    )
    uv: str = option(
        "auto",
        "build environments with uv: auto (if it is there), never, or its path",
        values.uv,
        metavar="PROGRAM",
        prefix="STUDIO_",
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
        values.queues,
        metavar="NAME",
        many=True,
        prefix="STUDIO_",
    )
    queue_match: str = option(
        "^(rmq|sqs|local)_.*$", "take work only from queues matching this", values.pattern, metavar="RE"
    )
    queue_mismatch: str = option("", "and not from queues matching this", values.pattern, metavar="RE")

    clear_text_messages: bool = option(False, "accept messages that are not encrypted", values.boolean, metavar="BOOL")
    allow_env_secrets: bool = option(
        False,
        "use AWS keys from a message's config.env where it has no other credentials",
        values.boolean,
        metavar="BOOL",
    )
    env_allow: tuple[str, ...] = option(
        (), "variables of the runner that a message may read as %NAME%", values.words, metavar="NAME,…", many=True
    )

    file_root: tuple[str, ...] = option(
        (), "directory that file:// artifacts may lie below [none]", values.directories, metavar="DIR", many=True
    )
    allow_link_local: bool = option(
        False,
        "let artifacts be read from link-local addresses and the like, where clouds give machines their credentials",
        values.boolean,
        metavar="BOOL",
    )
    s3_ca: str = option("", "CA certificates of S3 servers (PEM); implies TLS", values.file, metavar="FILE")
    s3_cert: str = option("", "client certificate for S3 servers (PEM)", values.file, metavar="FILE")
    s3_key: str = option("", "its private key", values.file, metavar="FILE")
    google_credentials: str = option(
        "",
        "key file of the service account that reads and writes gs:// artifacts which have no credentials of their own",
        values.file,
        metavar="FILE",
        also="GOOGLE_APPLICATION_CREDENTIALS",
    )
    google_metadata: bool = option(
        True,
        "use this machine's or pod's own identity for them where there is no such file: experiments, which can ask "
        "for it themselves, get no more by it than they have",
        values.boolean,
        metavar="BOOL",
    )
    google_endpoint: str = option(
        "",
        "endpoint of Google Cloud Storage [https://storage.googleapis.com]",
        values.endpoint,
        metavar="URL",
        also="STORAGE_EMULATOR_HOST",
    )
    store_patience: float = option(
        600.0, "how long a store may fail before the attempt is given up", parse_duration, metavar="DURATION"
    )
    cache_create: bool = option(
        False, "create the cache's directory if it is not there", values.boolean, metavar="BOOL"
    )
    cache_dir: str = option(
        "",
        "directory to keep immutable artifacts in, which runners of this machine share [none]",
        values.path,
        metavar="DIR",
    )
    cache_size: int = option(0, "the most disk that it may take, at least 1 GB", values.cache_size, metavar="SIZE")

    singularity: str = option(
        "auto",
        "the program that runs containers: auto (apptainer or singularity, if there is one), or its path",
        values.container_program,
        metavar="PROGRAM",
    )
    singularity_allow: tuple[str, ...] = option(
        (),
        "container images that messages may name in _singularity: whole references, or beginnings with a * after them, "
        "docker://ghcr.io/mylab/*,s3://minio:9000/images/*; dockerhub:// is docker:// [none]",
        values.references,
        metavar="IMAGE,…",
        many=True,
    )

    max_cores: int = option(0, "cores to share out [0: all]", values.count, metavar="N")
    max_mem: int = option(0, "memory to share out [0: 85 % of what is free]", parse_size, metavar="SIZE")
    max_disk: int = option(0, "disk to share out [0: 85 % of what is free]", parse_size, metavar="SIZE")
    cpu_only: bool = option(False, "use no GPU", values.boolean, metavar="BOOL")
    max_attempts: int = option(3, "how often a failing experiment is tried", values.count, metavar="N")
    grace_period: float = option(
        30.0, "how long running experiments may go on after a stop signal", parse_duration, metavar="DURATION"
    )
    enforce_ram: bool = option(
        True, "stop an experiment that uses more memory than it asked for (ram)", values.boolean, metavar="BOOL"
    )
    max_processes: int = option(
        4096, "how many processes an experiment may have [4096; 0: any]", values.count, metavar="N"
    )
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
        0,
        "how much less than others experiments get of the processors, 0 to 19",
        values.niceness,
        metavar="N",
        prefix="STUDIO_",
    )
    run_as: str = option(
        "", "user that experiments and their installers run as, where the runner is root", values.user, metavar="USER"
    )
    echo_output: bool = option(
        False, "write what experiments print to standard output, too", values.boolean, metavar="BOOL"
    )
    schema_logs: bool = option(True, "keep output lines in the metadata document", values.boolean, metavar="BOOL")
    log_format: str = option(
        "",
        "log for people (text, or happy, in colour on a terminal) or as lines of JSON (json) [happy]",
        values.log_format,
        metavar="FORMAT",
    )
    log_level: str = option(
        "", "log events from here on: debug, info, warn, error [info]", values.log_level, metavar="LEVEL"
    )
    debug: bool = option(False, "leave work directories behind and log more", values.boolean, metavar="BOOL")

    limit_tasks: int = option(0, "stop after this many attempts [0: never]", values.count, metavar="N")
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
        values.address,
        metavar="ADDR",
    )
    status_page: bool = option(
        False,
        "show there what runs, with its output, though the address is not this machine's alone",
        values.boolean,
        metavar="BOOL",
    )
    cpu_profile: str = option(
        "",
        "write what the runner itself spent its time on, when it ends, for `python -m pstats`",
        values.new_file,
        metavar="PROFILE",
    )
    k8s_namespace: str = option("", "namespace of the state ConfigMaps [the pod's own]", metavar="NAME")
    k8s_configmap: str = option("studioml-go-runner", "name of the one for all pods", metavar="NAME")
    slack_hook: str = option(
        "", "Slack's incoming web hook for notices of what starts and ends; it is a secret", values.hook, metavar="URL"
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
