"""The runner's log: one line an event on standard error, levels as LOGXI names them."""

from __future__ import annotations

import logging
import sys

_LEVELS = {
    "TRC": logging.DEBUG,
    "DBG": logging.DEBUG,
    "INF": logging.INFO,
    "WRN": logging.WARNING,
    "ERR": logging.ERROR,
}


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
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("runner").setLevel(level)
    for name in ("pika", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
