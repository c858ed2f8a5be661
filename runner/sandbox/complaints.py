"""What pip says of why it failed, read from its own log (``pip --log``): whose fault it was, in one sentence.

An index that is down is easily taken for one that does not have the package. pip of all versions notes in its log, and
only there, what it could not fetch before it said that there is "no matching distribution".
"""

from __future__ import annotations

import re
import textwrap

from runner.errors import MachineError, RequirementError, RunnerError, Unavailable
from runner.secrets.redaction import public

# Since pip 20.
_TIME = re.compile(r"^\d{4}-\d\d-\d\dT[\d:,.]+ ", re.MULTILINE)
# What follows is pip's own traceback.
_TRACEBACK = re.compile(r"^\s*Exception information:$.*", re.MULTILINE | re.DOTALL)

# An index may say 403, 404 or 410 of what it does not have. Hashes come from the index too: a proxy damaged the file.
_NETWORK = re.compile(
    r"""Could\ not\ fetch\ URL\ \S+\ (?!(?:403|404|410)\ )
    | \b5\d\d\ Server\ Error | \b(?:401|407|408|425|429)\ Client\ Error
    | HTTP\ error\ (?:5\d\d|401|407|408|425|429)\ while\ getting
    | Could\ not\ install\ packages\ due\ to\ an\ \w+:\ HTTPS?ConnectionPool
    | ^pip\._vendor\.[\w.]*(?:Timeout|Connection|Protocol|IncompleteRead|ChunkedEncoding|SSL)\w*:
    | DO\ NOT\ MATCH\ THE\ HASHES
    | fatal:\ unable\ to\ access.*(?:resolve|connect|timed\ out|reset|returned\ error:\ (?:5\d\d|429))
    | RPC\ failed | early\ EOF""",
    re.VERBOSE | re.MULTILINE,
)
# pip tries again: what fails then may have another reason.
_RETRIED = re.compile(r"Retrying \(Retry\(")
_SURELY_THEIRS = re.compile(
    r"""(?:Getting\ requirements\ to\ build\ wheel|Preparing\ metadata\ \S+|egg_info"?)\ (?:exited|did\ not\ run|failed)
    | Failed\ building\ wheel | Command\ errored\ out | conflicting\ dependencies | Invalid\ requirement""",
    re.VERBOSE,
)
_MISMATCH = re.compile(r"Expected \w+ (?P<expected>[0-9a-f]{32,})\s+Got\s+(?P<had>[0-9a-f]{32,})")
_DISK = re.compile(r"No space left on device|Disk quota exceeded")

# Lines that say something. pip before 19 does not begin them with ERROR.
_USEFUL = re.compile(
    r"""^(?:ERROR:\ (?!ResolutionImpossible)|\u00d7\ |fatal:\ )
    | ^error:\ (?!subprocess-exited|metadata-generation|legacy-install)
    | ^\w*(?:Error|Exception):\ | ^Could\ not\ | ^No\ matching\ | ^Command\ .*\ failed | ^Double\ requirement
    | ^Invalid\ requirement | \ has\ requirement\ | ^\S+:\d+:\d+:\ (?:fatal\ )?error:\ """,
    re.VERBOSE,
)
# What says once more that a package was not built, when that is said already.
_AGAIN = re.compile(
    r"Building wheel for .* (?:exited|did not run)|Could not build wheels|Failed to build installable|<Install"
)
# What fails before a package has told its name is of the last one that pip has begun with.
_BEGINS = re.compile(r"^(?:Collecting|Obtaining|Processing) (\S+)", re.MULTILINE)
_NAMELESS = re.compile(
    r"egg_info|Getting requirements to build|[Pp]reparing metadata|package metadata|build dependencies"
)
_LINES, _LONGEST = 3, 240
# How much of the log is looked at: the last characters, and of each line the first ones.
_LARGEST, _LONGEST_LINE = 4 * 1024 * 1024, 4096


def error(status: int, log: str) -> RunnerError:
    """Return the error that pip's exit status and its log mean."""
    # What a package's own build says has any length, and the expressions take longer than that.
    lines = log[-_LARGEST:].split("\n")
    text = _TIME.sub("", "\n".join(line[:_LONGEST_LINE] for line in lines))
    if status < 0:
        return MachineError(f"pip was killed by signal {-status} while it installed the requirements")
    if _DISK.search(text):
        return MachineError("the disk is full: the requirements could not be installed")
    if fault := _NETWORK.search(text) or (None if _SURELY_THEIRS.search(text) else _RETRIED.search(text)):
        line = text[text.rfind("\n", 0, fault.start()) + 1 :].partition("\n")[0]
        return Unavailable(f"a package index does not answer as it should: {_shown(line)}")
    return RequirementError(f"the requirements cannot be installed: {_summary(text)}")


def mismatch(log: str) -> tuple[str, str]:
    """Return the hash that a file should have had, and that which it had; "" twice where that was not the trouble."""
    match = _MISMATCH.search(_TIME.sub("", log))
    return (match["expected"], match["had"]) if match else ("", "")


def _summary(text: str) -> str:
    lines = [line.strip() for line in _TRACEBACK.sub("", text).splitlines() if line.strip()]
    useful = list(dict.fromkeys(line for line in lines if _USEFUL.search(line) and not _AGAIN.search(line)))
    said = "; ".join(_shown(line) for line in useful[-_LINES:] or lines[-1:]) or "pip does not say why"
    begun = _BEGINS.findall(text)
    return f"{_shown(begun[-1])}: {said}" if begun and _NAMELESS.search(said) else said


def _shown(line: str) -> str:
    """Cut between words, for half a secret would not be found in what is shown."""
    return textwrap.shorten(
        public(line.strip().removeprefix("ERROR: ").removeprefix("[present-rich] ")), _LONGEST, placeholder=" …"
    )
