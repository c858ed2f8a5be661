"""An attempt's own thin environment: it works as any other does, and the shared one below it stays as it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.sandbox import layer
from tests.servers import index
from tests.servers.http import HttpServer, serving

# What pip would install, made by hand: a namespace of the old kind, an editable package, a script, data.
NAMESPACE = (
    "import sys, types, os;p = os.path.join(sys._getframe(1).f_locals['sitedir'], 'spaced');"
    "m = sys.modules.setdefault('spaced', types.ModuleType('spaced'));"
    "mp = m.__dict__.setdefault('__path__', []);(p not in mp) and mp.append(p)\n"
)


@pytest.fixture(scope="module")
def offered() -> Iterator[HttpServer]:
    with serving() as server:
        index.offer(server, index.wheel("apple", "1", script=True), index.wheel("apple", "2", script=True))
        index.offer(server, index.wheel("plum", "1", files={"space/plum.py": "taste = 'sour'\n"}, script=True))
        yield server


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, offered: HttpServer) -> Path:
    """A shared environment with pip and packages; nobody may change it."""
    made = tmp_path_factory.mktemp("shared") / "venv"
    venv.create(made, symlinks=True, with_pip=True)
    checkout = made / "src" / "edited"
    checkout.mkdir(parents=True)
    (checkout / "edited.py").write_text("where = 'checkout'\n")
    pip(made, offered, "apple==1")
    packages = layer.site_packages(made)
    (packages / "__editable__.pth").write_text(f"{checkout}\n")
    (packages / "spaced-nspkg.pth").write_text(NAMESPACE)
    for directory, module in (("spaced", "old"), ("space", "pear")):
        (packages / directory).mkdir()
        (packages / directory / f"{module}.py").write_text("taste = 'sweet'\n")
    (made / "share" / "kernels").mkdir(parents=True)
    (made / "share" / "kernels" / "kernel.json").write_text("{}")
    return made


@pytest.fixture
def own(tmp_path: Path, shared: Path) -> Path:
    layer.lay(shared, tmp_path / "own")
    return tmp_path / "own"


def pip(environment: Path, server: HttpServer, *words: str, python: str = "bin/python") -> str:
    env = {"PATH": "/usr/bin:/bin", "PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": f"http://{server.host}/simple/"}
    argv = [environment / python, *(["-m", "pip"] if python.endswith("python") else []), "install", "--no-cache-dir"]
    return subprocess.run([*argv, *words], env=env, check=True, capture_output=True, text=True).stdout


def run(environment: Path, code: str) -> object:
    """Run Python code there that ends by printing JSON."""
    script = environment.parent / "script.py"
    script.write_text(textwrap.dedent(code))
    argv = [environment / "bin" / "python", script]
    return json.loads(subprocess.run(argv, check=True, capture_output=True, env={}).stdout)


def inventory(root: Path) -> dict[str, int]:
    found = {str(path.relative_to(root)): path.lstat().st_mtime_ns for path in root.rglob("*")}
    return {path: when for path, when in found.items() if "__pycache__" not in path}


def test_python_takes_it_for_its_own_environment_and_finds_everything(own: Path, shared: Path) -> None:
    code = """
        import importlib.metadata, json, sys
        import apple, edited, space.pear, spaced.old
        print(json.dumps([sys.prefix, sys.base_prefix, importlib.metadata.version("apple"), apple.__file__,
                          edited.where, space.pear.taste, spaced.old.taste]))
    """
    apple = str(layer.site_packages(shared) / "apple.py")
    assert run(own, code) == [str(own), sys.base_prefix, "1", apple, "checkout", "sweet", "sweet"]
    assert (own / "share" / "kernels" / "kernel.json").read_text() == "{}"


def test_console_scripts_run_in_it_and_not_in_the_shared_one(own: Path) -> None:
    said = subprocess.run([own / "bin" / "apple"], check=True, capture_output=True, text=True, env={}).stdout
    assert said == f"apple 1 {own}\n"


def test_processes_that_multiprocessing_spawns_are_in_it(own: Path) -> None:
    code = """
        import json, multiprocessing, sys
        def where(_): import apple; return [sys.prefix, apple.version]
        if __name__ == "__main__":
            with multiprocessing.get_context("spawn").Pool(1) as pool: print(json.dumps(pool.map(where, [0])[0]))
    """
    assert run(own, code) == [str(own), "1"]


@pytest.mark.parametrize("python", ["bin/python", "bin/pip"])
def test_an_experiment_installs_for_itself_and_the_shared_environment_stays(
    own: Path, shared: Path, offered: HttpServer, python: str
) -> None:
    before = inventory(shared)
    pip(own, offered, "apple==2", "plum", python=python)
    code = """
        import importlib.metadata, json
        import apple, space.pear, space.plum
        print(json.dumps([importlib.metadata.version("apple"), apple.version, space.pear.taste, space.plum.taste]))
    """
    assert run(own, code) == ["2", "2", "sweet", "sour"]
    said = subprocess.run([own / "bin" / "apple"], check=True, capture_output=True, text=True, env={}).stdout
    assert said == f"apple 2 {own}\n"
    assert inventory(shared) == before
