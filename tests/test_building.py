"""Building environments with real pip and real uv, from an index that is here and not always well."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
import venv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from runner.errors import MachineError, RequirementError, Unavailable
from runner.message import request
from runner.order import Options, Order
from runner.place import Place
from runner.sandbox import interpreters, layer
from runner.sandbox.base import Job, Run
from runner.sandbox.building import Builder
from runner.sandbox.indexes import Indexes
from runner.sandbox.recipe import Recipe
from runner.sandbox.requirements import Installable
from runner.sandbox.venv import VirtualEnvironment, installed
from tests.servers import index
from tests.servers.faulty import FaultyProxy, faulty
from tests.servers.http import HttpServer, serving

UV = str(Path(sys.executable).parent / "uv")
VERSION = ".".join(map(str, sys.version_info[:3]))


@pytest.fixture(scope="module")
def offered() -> Iterator[HttpServer]:
    with serving() as server:
        index.offer(server, *(index.wheel("apple", version, extras={"crisp": "plum"}) for version in ("1", "2")))
        index.offer(server, index.wheel("plum", "1"), index.wheel("pie", "1", requires=("apple==2",)))
        yield server


@pytest.fixture
def proxy(offered: HttpServer) -> Iterator[FaultyProxy]:
    with faulty(offered.host) as made:
        yield made


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with pip, which tests install into."""
    made = tmp_path_factory.mktemp("bare") / "venv"
    venv.create(made, symlinks=True, with_pip=True)
    return made


def run(argv: Sequence[str], env: Mapping[str, str], cwd: Path) -> int:
    return subprocess.run(argv, env=env, cwd=cwd, check=False).returncode


def job(home: Path, *, python: str = sys.executable, version: str = VERSION, **lists: list[str]) -> Job:
    workspace = {"qualified": "s3://h:1/b/k.tar", "credentials": {"aws": {"access_key": "", "secret_access_key": ""}}}
    experiment = {"key": "k", "filename": "x.py", "artifacts": {"workspace": workspace}}
    document = {
        "experiment": {**experiment, "pythonenv": lists.get("pythonenv", [])},
        "config": {"pip": lists.get("pip")},
    }
    order = Order(document, "q", 0, None, 3, python, version, False, Options(home=str(home), uv="never"))
    place = Place(home, "name-1")
    for directory in (place.scratch, place.workspace):
        directory.mkdir(parents=True, exist_ok=True)
    return Job(request.from_document(document), order, place, run, print, time.sleep)


def settings(host: str, **more: str) -> Indexes:
    path = {"PATH": os.environ["PATH"], "PIP_CONFIG_FILE": os.devnull, "UV_NO_CACHE": "1", "UV_HTTP_RETRIES": "0"}
    return Indexes.read({**path, "PIP_INDEX_URL": f"http://{host}/simple/", "PIP_RETRIES": "0", **more})


def recipe(*lists: list[str], python: str = sys.executable, version: str = VERSION) -> Recipe:
    return Recipe(python, version, "", tuple(Installable(tuple(each), ()) for each in lists))


def packages(environment: Path) -> dict[str, str]:
    listed = installed(str(layer.site_packages(environment)))
    return {each["package"]["key"]: each["package"]["installed_version"] for each in listed}


def test_uv_makes_the_same_environment_as_pip(tmp_path: Path, offered: HttpServer, bare: Path) -> None:
    lists = recipe(
        ["apple[crisp]==1", "# a comment", f"plum @ http://{offered.host}/files/plum-1-py3-none-any.whl"], ["pie"]
    )
    told: list[str] = []
    made = dataclasses.replace(job(tmp_path), say=told.append)
    Builder(made, lists, settings(offered.host), uv=UV).build(tmp_path / "uv")
    assert len(told) == 1, told
    Builder(made, lists, settings(offered.host)).install(bare)
    assert packages(tmp_path / "uv") == packages(bare)
    assert packages(bare)["apple"] == "2"
    assert {"pip", "plum", "pie"} <= set(packages(bare))
    site = layer.site_packages(tmp_path / "uv")
    assert list(site.glob("__pycache__/pie.*.pyc")), "byte code is there before the tree is read-only"


def install(tmp_path: Path, bare: Path, indexes: Indexes, *lines: str, patience: float = 30.0) -> list[float]:
    """Install with pip, and return how long was waited between tries, a thousand times faster."""
    waited: list[float] = []

    def pause(seconds: float) -> None:
        waited.append(seconds)
        time.sleep(seconds / 1000)

    made = job(tmp_path)
    options = dataclasses.replace(made.order.options, index_patience=patience)
    made = dataclasses.replace(made, pause=pause, order=dataclasses.replace(made.order, options=options))
    Builder(made, recipe([*lines]), indexes).install(bare)
    return waited


@pytest.mark.parametrize(
    ("fault", "of"),
    [
        ("answer 503", "/simple/"),
        ("answer 429", "/simple/"),
        ("reset", "/simple/"),
        ("cut", ".whl"),
        ("damage", ".whl"),
    ],
)
def test_the_networks_fault_is_waited_for(tmp_path: Path, bare: Path, proxy: FaultyProxy, fault: str, of: str) -> None:
    if fault.startswith("answer"):
        proxy.answer(int(fault.split()[1]), of=of, times=2)
    elif fault == "cut":
        proxy.cut(100, of=of, times=2)
    else:
        proxy.break_one("damaged answer" if fault == "damage" else "reset", 1 if fault == "damage" else 0)
    assert install(tmp_path, bare, settings(proxy.host, PIP_FORCE_REINSTALL="1"), "plum")


def test_an_index_that_stays_down_is_not_the_experiments_fault(tmp_path: Path, bare: Path, proxy: FaultyProxy) -> None:
    proxy.answer(502, times=100)
    indexes = settings(proxy.host.replace("127", "me:s3cret@127"))
    with pytest.raises(Unavailable, match="502") as caught:
        install(tmp_path, bare, indexes, "apple==77", patience=0)
    assert "s3cret" not in str(caught.value)


def test_the_operators_settings_of_pip_do_not_lead_out_of_the_environment(
    tmp_path: Path, offered: HttpServer, bare: Path
) -> None:
    """And all of it is compiled: Python would do that later, and alter what is to stay as it is."""
    more = {"PIP_USER": "1", "PIP_COMPILE": "0", "PIP_FORCE_REINSTALL": "1", "PIP_SRC": str(tmp_path / "src")}
    install(tmp_path, bare, settings(offered.host, **more), "pie", repository(tmp_path / "repository"))
    site = layer.site_packages(bare)
    assert list(site.glob("__pycache__/pie.*.pyc"))
    assert not (tmp_path / "src").exists()


def test_an_old_pip_is_replaced_although_the_index_fails_at_first(tmp_path: Path) -> None:
    """And told nothing that pip 9, which experiments of its days name, does not know."""
    told: list[list[str]] = []

    def pip(argv: Sequence[str], _env: Mapping[str, str], _cwd: Path) -> int:
        told.append([*argv])
        log = Path(argv[argv.index("--log") + 1])
        log.write_text("ERROR: HTTP error 503 while getting http://h/files/pip-9.whl\n" if len(told) == 1 else "")
        return int(len(told) == 1)

    (tmp_path / "venv" / "lib" / "python3.6" / "site-packages" / "pip-18.1.dist-info").mkdir(parents=True)
    made = dataclasses.replace(job(tmp_path), run=pip, pause=lambda _: None)
    Builder(made, recipe(["pip==9.0.3", "apple"]), settings("nowhere")).install(tmp_path / "venv")
    assert [each[-2] for each in told] == ["--upgrade", "--upgrade", "-r"]
    assert "--progress-bar" not in told[0]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["nosuch==1"], "No matching distribution found for nosuch==1"),
        (["apple==77"], "No matching distribution found for apple==77"),
        (["apple==1", "pie"], "conflicting dependencies"),
        (["apple=1"], "Invalid requirement: 'apple=1'"),
    ],
)
def test_the_requirements_fault_is_told_at_once(
    tmp_path: Path, bare: Path, offered: HttpServer, lines: list[str], said: str
) -> None:
    with pytest.raises(RequirementError, match="the requirements cannot be installed: ") as caught:
        install(tmp_path, bare, settings(offered.host), *lines)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_hash_that_the_message_gives_and_nothing_has_is_its_fault(
    tmp_path: Path, bare: Path, offered: HttpServer
) -> None:
    line = f"plum @ http://{offered.host}/files/plum-1-py3-none-any.whl#sha256={'0' * 64}"
    with pytest.raises(RequirementError, match=f"whose hash the message gives as {'0' * 64}, the hash is "):
        install(tmp_path, bare, settings(offered.host, PIP_FORCE_REINSTALL="1"), line)


@pytest.mark.parametrize("how", ["link", "pipe", "directory", "very much"])
def test_what_a_packages_build_puts_in_the_place_of_pips_log_harms_nobody(tmp_path: Path, how: str) -> None:
    """A build in a container must reach nothing of the host through what the runner writes and reads afterwards."""
    outside, log = tmp_path / "outside", tmp_path / "experiments" / "name-1" / "_runner" / "pip.log"
    outside.write_text("ERROR: of the host")
    tried = []

    def build(argv: Sequence[str], _env: Mapping[str, str], _cwd: Path) -> int:
        tried.append(argv)
        log.unlink()
        if how == "link":
            log.symlink_to(outside)
        elif how == "pipe":
            os.mkfifo(log)
        elif how == "directory":
            log.mkdir()
        else:
            log.touch()
            os.truncate(log, 2**40)
        return 1

    made = dataclasses.replace(job(tmp_path, pythonenv=["apple"]), run=build)
    environment = tmp_path / "venv"
    (environment / "lib" / "python3" / "site-packages").mkdir(parents=True)
    for _ in range(2):
        with pytest.raises(RequirementError) as caught:
            Builder(made, recipe(["apple"]), settings("nowhere")).install(environment)
        assert "of the host" not in str(caught.value)
    assert outside.read_text() == "ERROR: of the host"


def test_a_python_that_cannot_make_environments_is_this_machines_fault(tmp_path: Path, offered: HttpServer) -> None:
    with pytest.raises(MachineError, match="cannot make virtual environments"):
        Builder(job(tmp_path), recipe([], python="/bin/false"), settings(offered.host)).build(tmp_path / "venv")


@pytest.mark.parametrize(("wanted", "uv"), [("3.6", UV), ("3.8", UV), ("3.13", "/bin/false")])
def test_other_pythons_work_and_what_uv_cannot_do_pip_does(
    tmp_path: Path, offered: HttpServer, wanted: str, uv: str
) -> None:
    try:
        python = interpreters.find(wanted)
    except MachineError:
        pytest.skip(f"no Python {wanted} here")
    made = recipe(["apple==1"], ["pie"], python=str(python.path), version=str(python))
    Builder(job(tmp_path), made, settings(offered.host), uv=uv).build(tmp_path / "venv")
    layer.lay(tmp_path / "venv", tmp_path / "own")
    code = "import sys, apple, pie; print(sys.version_info[:2], sys.prefix, apple.version)"
    said = subprocess.check_output([tmp_path / "own" / "bin" / "python", "-c", code], text=True)
    assert said == f"{python.version[:2]} {tmp_path / 'own'} 2\n"
    listing = subprocess.check_output([tmp_path / "own" / "bin" / "pip", "list"], text=True, stderr=subprocess.DEVNULL)
    assert "pie" in listing


BACKEND = """
import zipfile
def build_editable(directory, *_):
    with zipfile.ZipFile(f"{directory}/fig-1-py3-none-any.whl", "w") as wheel:
        import os; wheel.writestr("fig.pth", os.getcwd())
        wheel.writestr("fig-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: fig\\nVersion: 1\\n")
        wheel.writestr("fig-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("fig-1.dist-info/RECORD", "")
    return "fig-1-py3-none-any.whl"
build_wheel = build_editable
"""
PROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'


def repository(root: Path) -> str:
    """Make a git repository with the package ``fig``; return the requirement for it."""
    (root / "fig").mkdir(parents=True)
    for name, text in (("pyproject.toml", PROJECT), ("backend.py", BACKEND), ("fig/__init__.py", "taste = 'sweet'\n")):
        (root / name).write_text(text)
    git = ["git", "-C", str(root), "-c", "user.name=x", "-c", "user.email=x@example.com"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], check=True)
    return f"-e git+file://{root}#egg=fig"


def test_an_editable_package_is_installed_and_the_second_attempt_runs_no_program(
    tmp_path: Path, offered: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in settings(offered.host).environ.items():
        monkeypatch.setenv(name, value)
    lines = ("apple==1", repository(tmp_path / "repository"))

    def attempt(run: Run) -> VirtualEnvironment:
        made = dataclasses.replace(job(tmp_path / "home"), run=run)
        wanted = dataclasses.replace(made.request, pythonenv=lines, pip=("plum",))
        environment = VirtualEnvironment(dataclasses.replace(made, request=wanted))
        environment.prepare()
        argv, env = environment.command()
        code = "import apple, fig, sys; print(apple.version, fig.taste, fig.__file__.split('/')[-4], sys.prefix)"
        said = subprocess.check_output([argv[0], "-c", code], env=env, text=True)
        assert said == f"1 sweet src {made.place.scratch}/venv\n"
        made.place.root.rename(tmp_path / str(time.monotonic_ns()))
        return environment

    def refuse(argv: Sequence[str], env: Mapping[str, str], cwd: Path) -> int:
        raise AssertionError(f"{argv} is run")

    first, second = attempt(run), attempt(refuse)
    assert second.packages() == first.packages() != []
    for each in (first, second):
        assert each.shared is not None and each.shared.intact(thoroughly=True)
        each.shared.close()
