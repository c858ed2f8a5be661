"""The operator's settings of package indexes: pip's, from its files and variables, and the same in uv's words.

https://pip.pypa.io/en/stable/topics/configuration/ says where pip finds them. uv reads none of that.
"""

from __future__ import annotations

import configparser
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from runner.machine.users import own_home
from runner.secrets.redaction import public

# What never changes the packages that are installed.
_HARMLESS = {
    *(
        "cache-dir",
        "no-cache-dir",
        "disable-pip-version-check",
        "no-input",
        "progress-bar",
        "no-color",
        "log",
        "verbose",
    ),
    *(
        "quiet",
        "no-python-version-warning",
        "root-user-action",
        "break-system-packages",
        "require-virtualenv",
        "retries",
    ),
    *("timeout", "default-timeout", "cert", "client-cert", "proxy", "trusted-host", "config-file", "keyring-provider"),
    *("no-warn-script-location", "no-warn-conflicts", "user", "no-compile", "compile", "src"),
}
_HARMLESS_UV = {
    *("UV_CACHE_DIR", "UV_NO_CACHE", "UV_OFFLINE", "UV_LINK_MODE", "UV_COMPILE_BYTECODE", "UV_NO_PROGRESS"),
    *("UV_HTTP_TIMEOUT", "UV_HTTP_RETRIES", "UV_INSECURE_HOST", "UV_KEYRING_PROVIDER", "UV_NATIVE_TLS"),
    *("UV_SYSTEM_CERTS", "UV_PYTHON_DOWNLOADS", "UV_PYTHON_INSTALL_DIR", "UV_CONCURRENT_DOWNLOADS"),
    *("UV_CONCURRENT_BUILDS", "UV_CONCURRENT_INSTALLS", "UV_REQUEST_TIMEOUT"),
}

# What uv is told by a variable, since it may hold a secret; and its other names, which win. Between several values.
_VARIABLES = {
    "index-url": ("UV_DEFAULT_INDEX", ("UV_INDEX_URL",), " "),
    "extra-index-url": ("UV_EXTRA_INDEX_URL", ("UV_INDEX",), " "),
    "find-links": ("UV_FIND_LINKS", (), ","),
    "cert": ("SSL_CERT_FILE", (), " "),
    "client-cert": ("SSL_CLIENT_CERT", (), " "),
    "proxy": ("ALL_PROXY", ("HTTPS_PROXY", "https_proxy", "all_proxy"), " "),
    "timeout": ("UV_HTTP_TIMEOUT", (), " "),
    "default-timeout": ("UV_HTTP_TIMEOUT", (), " "),
}
# What it is told by an option for each value; and by one that has no value.
_OPTIONS = {
    "constraint": "--constraints",
    "trusted-host": "--allow-insecure-host",
    "no-binary": "--no-binary",
    "only-binary": "--only-binary",
}
_SWITCHES = {
    "no-index": ("--no-index",),
    "pre": ("--prerelease", "allow"),
    "no-build-isolation": ("--no-build-isolation",),
}
_ON = ("1", "true", "yes", "on")
# In pip's files and variables this one has the opposite meaning: https://github.com/pypa/pip/issues/5735
_SWITCHED = {"no-build-isolation": ("0", "false", "no", "off")}


@dataclass(frozen=True)
class Indexes:
    """pip's settings by the names of its options, ``extra-index-url``, and the environment that they are for."""

    settings: Mapping[str, str]
    environ: Mapping[str, str]

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> Indexes:
        """Read what pip would read in this environment."""
        sections: dict[str, dict[str, str]] = {"global": {}, "install": {}}
        for path in _files(environ):
            parser = configparser.RawConfigParser()
            try:
                parser.read(path)
            except (configparser.Error, UnicodeDecodeError):
                continue  # pip will say so
            for name, settings in sections.items():
                if parser.has_section(name):
                    settings.update({key.replace("_", "-").lower(): value for key, value in parser.items(name)})
        variables = {name: value for name, value in environ.items() if name.startswith("PIP_") and value}
        own = {name[4:].replace("_", "-").lower(): value for name, value in variables.items()}
        return cls({**sections["global"], **sections["install"], **own}, environ)

    def counting(self) -> dict[str, str]:
        """Return what changes the packages that are installed, without secrets.

        Passwords in URLs are left out: they say who asks, not for what, and some change every few hours.
        """
        found = {name: _known(name, value) for name, value in self.settings.items() if name not in _HARMLESS}
        uv = {name: value for name, value in self.environ.items() if name.startswith("UV_")}
        return found | {name: public(value) for name, value in uv.items() if name not in _HARMLESS_UV}

    def only_pips(self) -> list[str]:
        """Name the settings that cannot be said to uv."""
        known = _HARMLESS | set(_VARIABLES) | set(_OPTIONS) | set(_SWITCHES)
        return sorted(set(self.settings) - (known - {"keyring-provider"}))

    def options_for_uv(self) -> list[str]:
        """Return uv's options that say the same as pip's settings."""
        options = []
        for name, value in self.settings.items():
            if name in _OPTIONS:
                options += [word for each in value.replace(",", " ").split() for word in (_OPTIONS[name], each)]
            elif name in _SWITCHES and value.strip().lower() in _SWITCHED.get(name, _ON):
                options += _SWITCHES[name]
        return options

    def variables_for_uv(self) -> dict[str, str]:
        """Return an environment for uv; its own variables win over what pip is told."""
        variables = {}
        for name, value in self.settings.items():
            if name in _VARIABLES:
                variable, others, between = _VARIABLES[name]
                if not any(self.environ.get(other) for other in others):
                    variables[variable] = between.join(value.split())
        if not Path(self.environ.get("HOME", "/")).is_dir() and "UV_CACHE_DIR" not in self.environ:
            variables["UV_NO_CACHE"] = "1"  # pip does without a place for its cache, and uv would not
        return {**variables, **self.environ, "UV_PYTHON_DOWNLOADS": "never"}


def _known(name: str, value: str) -> str:
    """A setting as it counts: a file of constraints by what is in it."""
    if name != "constraint":
        return public(value)
    return "\n".join(_text(each) for each in value.split())


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return path


def _files(environ: Mapping[str, str]) -> list[Path]:
    """List pip's configuration files, the one that wins last."""
    home = Path(environ.get("HOME") or own_home())
    named = environ.get("PIP_CONFIG_FILE", "")
    if named == os.devnull:
        return []
    everybody = [Path(each) / "pip" for each in environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":")] + [Path("/etc")]
    user = [home / ".pip", Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip"]
    if named and Path(named).exists():
        return [each / "pip.conf" for each in everybody] + [Path(named)]
    return [each / "pip.conf" for each in [*everybody, *user]]
