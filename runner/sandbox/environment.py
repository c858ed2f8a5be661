"""The variables that an experiment sees: harmless ones of the runner, its message's own, and the protocol's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from runner.sandbox.base import Job, user_of

_HARMLESS = ("PATH", "HOME", "USER", "LANG", "TZ", "LD_LIBRARY_PATH")
_HARMLESS_PREFIXES = ("LC_", "CUDA_")

# The operator's settings of package indexes and of the network: for pip, not for experiments.
_INSTALLER = (
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
    "ssl_cert_file",
    "ssl_cert_dir",
    "requests_ca_bundle",
)
_INSTALLER_PREFIXES = ("PIP_", "UV_")

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "GOTO_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def harmless(environ: Mapping[str, str], allowed: Iterable[str] = ()) -> dict[str, str]:
    """Return the runner's variables that an experiment may know."""
    names = {*_HARMLESS, *allowed}
    return {name: value for name, value in environ.items() if name in names or name.startswith(_HARMLESS_PREFIXES)}


def is_installers(name: str) -> bool:
    """Tell whether a variable is the operator's setting of package indexes or of the network."""
    return name.lower() in _INSTALLER or name.startswith(_INSTALLER_PREFIXES)


def for_installer(job: Job, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that pip is to see: the harmless ones and the operator's package index settings."""
    ours = harmless(environ) | _place(job) | _user(job)
    for name, value in environ.items():
        if is_installers(name):
            ours[name] = value
    return ours


def expand(value: str, known: Mapping[str, str]) -> str:
    """Replace ``%NAME%`` by the known variable NAME; leave other percent signs as they are."""
    names = "|".join(re.escape(name) for name in known)
    return re.sub(f"%({names})%", lambda match: known[match[1]], value) if known else value


def for_experiment(job: Job, environ: Mapping[str, str], path: Path) -> dict[str, str]:
    """Build an experiment's whole environment (protocol section 5). ``path`` goes before the runner's PATH."""
    known = harmless(environ, job.order.options.env_allow)
    variables = harmless(environ) | _user(job)
    variables |= {name: expand(value, known) for name, value in job.request.env.items()}
    gpus = ",".join(job.order.gpus) or "-1"
    variables["PATH"] = f"{path}:{variables.get('PATH', '/usr/bin:/bin')}"
    variables |= _place(job) | {
        "CUDA_VISIBLE_DEVICES": gpus,
        "NVIDIA_VISIBLE_DEVICES": gpus,
        "AWS_SDK_LOAD_CONFIG": "1",
        "PYTHONUNBUFFERED": "1",
        # Crashes leave a traceback in the output, and so do hangs (usage.py).
        "PYTHONFAULTHANDLER": "1",
    }
    return _threads(job.request.resources.cpus) | variables


def _threads(cores: int) -> dict[str, str]:
    """How many threads numerical libraries are to use, unless the message says it itself."""
    return {**dict.fromkeys(_THREADS, str(cores)), "OPENMP": "True"} if cores > 1 else {}


def _user(job: Job) -> dict[str, str]:
    user = user_of(job.order)
    return user.variables if user else {}


def _place(job: Job) -> dict[str, str]:
    """What marks a process as the attempt's (place.clear looks for it), and where it may leave things."""
    return {
        "STUDIOML_EXPERIMENT": job.place.name,
        "STUDIOML_HOME": str(job.place.home),
        "TMPDIR": str(job.place.scratch / "tmp"),
    }
