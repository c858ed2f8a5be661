"""Whose fault it was, from logs as several versions of pip have written them."""

from __future__ import annotations

import pytest

from runner.errors import MachineError, RequirementError, Unavailable
from runner.sandbox import complaints

NONE = "Could not find a version that satisfies the requirement six==1 (from versions: none)\n"
NONE += "No matching distribution found for six==1\nException information:\nTraceback (most recent call last):\n  x\n"


@pytest.mark.parametrize(
    "line",
    [
        "Could not install packages due to an EnvironmentError: HTTPConnectionPool(host='h', port=1): Max retries",
        "  Could not fetch URL http://h/simple/six/: 429 Client Error: Too Many Requests for url: http://h/ - skipping",
        "2026-11-25T20:02:50,896 Could not fetch URL http://h/simple/six/: HTTPConnectionPool(host='h', port=1)",
        "  Retrying (Retry(total=0, connect=None, read=None)) after connection broken by 'NewConnectionError('<pip: "
        "Failed to establish a new connection: [Errno -3] Temporary failure in name resolution')': /simple/six/",
        "ERROR: HTTP error 503 while getting http://h/files/six-1.whl",
        "pip._vendor.urllib3.exceptions.ReadTimeoutError: HTTPConnectionPool(host='h', port=80): Read timed out.",
        "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. If you have updated the package",
        "  fatal: unable to access 'https://h/x/': Could not resolve host: h",
    ],
)
def test_an_index_that_fails_is_unavailable_whatever_pip_concludes(line: str) -> None:
    error = complaints.error(1, f"Collecting six\n{line}\n{NONE}")
    assert isinstance(error, Unavailable)
    assert line.strip().removeprefix("ERROR: ")[30:60] in str(error)


@pytest.mark.parametrize("status", ["404 Client Error: Not Found", "403 Client Error: Forbidden"])
def test_an_index_that_does_not_have_it_is_well(status: str) -> None:
    log = f"  Could not fetch URL http://h/simple/six/: {status} for url: http://h/simple/six/ - skipping\n{NONE}"
    error = complaints.error(1, log)
    assert isinstance(error, RequirementError)
    assert str(error).endswith("(from versions: none); No matching distribution found for six==1")


# pip 18, and pip 23 with its time stamps.
BUILDS = """    Running command python setup.py egg_info
    Traceback (most recent call last):
      File "setup.py", line 1, in <module>
        requests.get("https://me:s3cret@h/x?token=s3cret")
    RuntimeError: no answer of https://me:s3cret@h/x?token=s3cret
Cleaning up...
Command "python setup.py egg_info" failed with error code 1 in /tmp/pip-req-build-277_u3cl/
Exception information:
pip._internal.exceptions.InstallationError: Command "python setup.py egg_info" failed with error code 1
"""
STAMPED = """2026-11-25T20:03:45,100   RuntimeError: boom
2026-11-25T20:03:45,300   error: subprocess-exited-with-error
2026-11-25T20:03:45,300   \u00d7 python setup.py egg_info did not run successfully.
2026-11-25T20:03:45,300   \u2570\u2500> See above for output.
2026-11-25T20:03:45,407 Exception information:
2026-11-25T20:03:45,407 pip._internal.exceptions.MetadataGenerationFailed: metadata generation failed
"""


def test_a_build_that_fails_is_told_by_its_last_words_without_secrets() -> None:
    old, new = complaints.error(1, BUILDS), complaints.error(1, STAMPED)
    assert isinstance(old, RequirementError)
    assert "RuntimeError: no answer of https://h/x?token=; Command" in str(old)
    assert "s3cret" not in str(old)
    assert str(new).endswith(": RuntimeError: boom; \u00d7 python setup.py egg_info did not run successfully.")


# pip 23, 25.
NOT_COMPILED = """2026-11-27T00:58:02,600 Collecting cext
2026-11-27T00:58:04,255   x.c:1:10: fatal error: nosuch.h: No such file or directory
2026-11-27T00:58:04,269   error: command '/usr/bin/gcc' failed with exit code 1
2026-11-27T00:58:04,388   ERROR: [present-rich] Building wheel for cext (pyproject.toml) exited with 1
2026-11-27T00:58:04,401   ERROR: Failed building wheel for cext
"""


@pytest.mark.parametrize(
    "end",
    [
        "ERROR: Could not build wheels for cext, which is required to install pyproject.toml-based projects",
        "ERROR: <InstallWheelBuildError: failed-wheel-build-for-install>",
    ],
)
def test_what_does_not_compile_is_told_by_what_the_compiler_says(end: str) -> None:
    retried = (
        "WARNING: Retrying (Retry(total=4, connect=None)) after connection broken by 'ProtocolError()': /simple/x/"
    )
    error = complaints.error(1, f"{retried}\n{NOT_COMPILED}2026-11-27T00:58:04,402 {end}\n")
    assert isinstance(error, RequirementError)
    assert str(error).endswith(
        ": x.c:1:10: fatal error: nosuch.h: No such file or directory; error: command '/usr/bin/gcc' failed with exit "
        "code 1; Failed building wheel for cext"
    )


def test_the_package_is_named_whose_build_fails_before_it_has_said_its_name() -> None:
    log = "Collecting six==1\nCollecting git+https://me:s3cret@h/boom\n  Collecting setuptools>=40.8.0\n"
    log += "  ModuleNotFoundError: No module named 'numpy'\n  ERROR: [present-rich] Getting requirements to build wheel"
    said = str(complaints.error(1, f"{log} exited with 1\n"))
    assert ": git+https://h/boom: ModuleNotFoundError: No module named 'numpy'; Getting requirements to build" in said


def test_a_full_disk_and_a_killed_pip_are_the_machines_fault() -> None:
    full = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"
    assert isinstance(complaints.error(1, full), MachineError)
    assert isinstance(complaints.error(-9, ""), MachineError)


def test_a_pip_that_says_nothing_is_told_as_such_and_a_long_line_is_cut() -> None:
    assert str(complaints.error(2, "")).endswith("pip does not say why")
    assert len(str(complaints.error(1, "ERROR: " + "1.0, " * 10_000))) < 400


def test_no_word_is_cut_in_two_since_half_a_secret_would_not_be_found() -> None:
    secret = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY"
    for before in range(200, 250):
        said = str(complaints.error(1, f"RuntimeError: {'x ' * (before // 2)}{secret} was refused"))
        assert secret in said or secret[:4] not in said
