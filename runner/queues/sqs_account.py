"""AWS accounts: where their credentials come from, and calls of SQS with them. Everything here may block."""

from __future__ import annotations

import configparser
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from runner.errors import ConfigError, Unavailable

# A long poll waits so long for a message, in seconds: the longest that SQS allows.
POLL = 20
# How long connecting may take, in seconds.
_CONNECTING = 5.0
# As many queues are asked at once; connections are made when they are needed.
_CONNECTIONS = 1000
# A profile of an ini file has credentials when it has one of these: a key, or a way to one.
_KEYS = {"aws_access_key_id", "role_arn", "credential_process", "sso_session", "sso_account_id"}
# Errors about who asks, and when: to other credentials, or by a clock that is right, the answer may be another.
_ABOUT_US = (
    "Token",
    "Signature",
    "RequestExpired",
    "AccessDenied",
    "InvalidAccessKeyId",
    "UnrecognizedClient",
    "InvalidSecurity",
)
# Errors of the service that pass; all others are an answer.
_PASSING = ("Throttl", "TooManyRequests", "RequestLimitExceeded", "ServiceUnavailable", "InternalError", "OverLimit")


class Refused(Exception):
    """SQS has understood, and will not do it. ``code`` is SQS's own word for why."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code

    @property
    def no_queue(self) -> bool:
        """True when there is no such queue."""
        return "NonExistentQueue" in self.code or "QueueDoesNotExist" in self.code

    @property
    def about_us(self) -> bool:
        """True when it says nothing of queue and message, only that these credentials are not let in."""
        return any(word in self.code for word in _ABOUT_US)


@dataclass(frozen=True)
class Options:
    """How SQS is reached: the operator's options of these names; ``timeout`` is of one call, in seconds."""

    certs: str = ""
    region: str = ""
    endpoint: str = ""
    timeout: float = 15.0


@dataclass(frozen=True)
class Source:
    """Where an account's credentials come from: a directory of ini files, or, without one, AWS's usual places.

    ``mark`` changes with the files' content.
    """

    name: str
    files: tuple[Path, ...] | None = None
    mark: str = ""


def sources(options: Options) -> list[Source]:
    """List what the options lead to just now: directories under ``certs`` come and go. Raises Unavailable."""
    found = []
    if options.certs:
        try:
            directories = sorted(each for each in Path(options.certs).iterdir() if not each.name.startswith("."))
            found = [_source(each) for each in directories if each.is_dir()]
        except OSError as error:
            raise Unavailable(f"{options.certs} cannot be read: {error.strerror}") from error
    if options.region:
        found.append(Source(f"the environment's account in {options.region}"))
    return found


def _source(directory: Path) -> Source:
    # Kubernetes keeps what it mounts in hidden directories, and links to it.
    files = sorted(each for each in directory.iterdir() if each.is_file() and not each.name.startswith("."))
    digest = sha256(b"\0".join(each.read_bytes() for each in files)).hexdigest()
    return Source(str(directory), tuple(files), digest)


class Account:
    """One account's SQS in one region. Its calls may be made from any thread."""

    def __init__(self, source: Source, options: Options) -> None:
        """Find the credentials. Raises ConfigError when there are none, or no region."""
        self.name = source.name
        self.renew(source, options)

    def renew(self, source: Source, options: Options) -> None:
        """Use new credentials from now on. Raises ConfigError, and goes on with the old ones then."""
        session, region = _session(source, options)
        self._client = _client(session, region, options.endpoint, options.timeout)
        self._poller = _client(session, region, options.endpoint, options.timeout + POLL)

    def call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        """Call one operation, named as botocore names it, once. Raises Refused and Unavailable."""
        return self._call(self._client, operation, parameters)

    def receive(self, url: str, visibility: float, poll: int = POLL) -> dict[str, Any] | None:
        """Wait up to ``poll`` seconds for a message, hidden from others for ``visibility`` seconds then.

        Raises Refused and Unavailable.
        """
        answer = self._call(
            self._poller,
            "receive_message",
            {
                "QueueUrl": url,
                "MaxNumberOfMessages": 1,
                "WaitTimeSeconds": poll,
                "VisibilityTimeout": int(visibility),
                "MessageSystemAttributeNames": ["ApproximateReceiveCount", "MessageGroupId"],
                "MessageAttributeNames": ["All"],
            },
        )
        messages = answer.get("Messages") or [None]
        return messages[0]  # type: ignore[no-any-return]

    def queues(self) -> dict[str, str]:
        """Return the URLs of all queues, by name. Raises Refused and Unavailable."""
        urls: list[str] = []
        page: dict[str, Any] = {}
        while True:
            answer = self.call("list_queues", MaxResults=1000, **page)
            urls += answer.get("QueueUrls") or []
            if not answer.get("NextToken"):
                return {url.rpartition("/")[2]: url for url in urls}
            page = {"NextToken": answer["NextToken"]}

    def url(self, queue: str, **owner: str) -> str | None:
        """Return a queue's URL, None when there is no such queue. Raises Refused and Unavailable."""
        try:
            return str(self.call("get_queue_url", QueueName=queue, **owner)["QueueUrl"])
        except KeyError:
            raise Unavailable(
                f"what answers {self.name} is not SQS: check --sqs-endpoint, and what is between"
            ) from None
        except Refused as refusal:
            if refusal.no_queue:
                return None
            raise

    def _call(self, client: Any, operation: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        # Only who uses SQS pays for it.
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError  # noqa: PLC0415

        try:
            return dict(getattr(client, operation)(**parameters))
        except ClientError as error:
            told = error.response.get("Error", {})
            code, status = str(told.get("Code")), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            text = f"SQS refuses {self.name} to {operation.replace('_', ' ')}: {code}, {told.get('Message')}"
            if status >= 500 or any(word in code for word in _PASSING):
                raise Unavailable(
                    f"SQS cannot {operation.replace('_', ' ')} for {self.name} just now: {code}"
                ) from None
            raise Refused(code, text) from None
        except NoCredentialsError:
            where = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give this machine a role"
            raise Unavailable(f"SQS cannot be asked: no AWS credentials are found for {self.name}: {where}") from None
        except RuntimeError as error:  # botocore's word for credentials that were out of date when they were new
            raise Unavailable(f"SQS cannot be asked with the credentials of {self.name}: {error}") from error
        except (BotoCoreError, OSError) as error:
            how = type(error).__name__
            raise Unavailable(f"SQS does not answer {self.name} ({how})") from error


class Place(NamedTuple):
    """Where a queue is."""

    account: Account
    url: str


def _session(source: Source, options: Options) -> tuple[Any, str]:
    """Return a session of botocore's and its region. Raises ConfigError."""
    from botocore.session import Session  # noqa: PLC0415

    if source.files is None:
        return Session(), options.region
    profiles = {file: _profile(file) for file in source.files}
    keys = [file for file, profile in profiles.items() if _KEYS & set(profile)]
    if not keys:
        raise ConfigError(
            f"{source.name} has no file with AWS credentials: put an ini file there, whose section [default] has "
            "aws_access_key_id and aws_secret_access_key"
        )
    regions = [file for file, profile in profiles.items() if profile.get("region")]
    region = profiles[regions[0]]["region"] if regions else options.region
    if not region:
        raise ConfigError(f"{source.name} has no file whose section [default] names a region: add one")
    # A profile that is named keeps the environment's keys out of it.
    session = Session(profile="default")
    session.set_config_variable("credentials_file", str(keys[0]))
    session.set_config_variable("config_file", str((regions or keys)[0]))
    return session, region


def _profile(file: Path) -> dict[str, str]:
    parser = configparser.RawConfigParser(strict=False)
    try:
        parser.read_string(file.read_text())
        # AWS's own tools understand both in a config file, and prefer the longer one.
        return dict(parser["profile default" if parser.has_section("profile default") else "default"])
    except (OSError, ValueError, KeyError, configparser.Error):
        return {}


def _client(session: Any, region: str, endpoint: str, timeout: float) -> Any:
    """Return a client that tries once: who calls it knows when to try again. Raises ConfigError."""
    from botocore.config import Config  # noqa: PLC0415
    from botocore.exceptions import BotoCoreError  # noqa: PLC0415

    config = Config(
        connect_timeout=min(_CONNECTING, timeout),
        read_timeout=timeout,
        max_pool_connections=_CONNECTIONS,
        retries={"total_max_attempts": 1},
    )
    try:
        return session.create_client("sqs", region, endpoint_url=endpoint or None, config=config)
    except (BotoCoreError, ValueError, OSError) as error:  # the last from a credential_process
        raise ConfigError(f"SQS cannot be used: {error}") from error
