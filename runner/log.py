"""The runner's log: one line an event on standard error, levels as LOGXI names them."""

from __future__ import annotations

import logging
import sys

from runner.masking import Secrets

_LEVELS = {
    "TRC": logging.DEBUG,
    "DBG": logging.DEBUG,
    "INF": logging.INFO,
    "WRN": logging.WARNING,
    "ERR": logging.ERROR,
}


_masked: dict[object, Secrets] = {}


def mask(whose: object, secrets: Secrets) -> None:
    """Mask secrets in the log from now on, in place of those that the same one had before."""
    _masked[whose] = secrets


def unmask(whose: object) -> None:
    """Forget the secrets of somebody who is gone."""
    _masked.pop(whose, None)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        for secrets in list(_masked.values()):
            line = secrets.mask_text(line)
        return line


def level_of(logxi: str, *, debug: bool = False) -> int:
    """Return the level that ``LOGXI`` asks for (``*=DBG,other=ERR``: the star's counts); without one, INFO."""
    for rule in logxi.split(","):
        name, _, level = rule.strip().partition("=")
        if name == "*" and level.upper() in _LEVELS:
            return _LEVELS[level.upper()]
    return logging.DEBUG if debug else logging.INFO


def start(level: int) -> None:
    """Send the log to standard error; other packages' only from warnings up.

    Neither pika's, which repeats ours, nor urllib3's: it shows whole URLs, and those may be signed.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("runner").setLevel(level)
    for name in ("pika", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
