"""What makes two environments the same, and what the operator's settings of pip are in uv's words."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runner.errors import RequirementError
from runner.sandbox.indexes import Indexes
from runner.sandbox.recipe import Recipe, identity, located
from runner.sandbox.requirements import Installable


def key(
    *lists: list[str], python: str = "/p", identity: str = "1", paths: tuple[Path, ...] = (), **environ: str
) -> str:
    made = tuple(Installable(tuple(each), ()) for each in lists)
    indexes = Indexes.read({"PIP_CONFIG_FILE": os.devnull, **environ})
    return Recipe(python, "3.11.7", identity, made, paths).key(indexes)


def test_the_lists_their_order_and_the_interpreter_count() -> None:
    keys = [
        key(["a==1"], ["b==1"]),
        key(["b==1"], ["a==1"]),
        key(["a==1", "b==1"], []),
        key(["a", "b"], []),
        key(["b", "a"], []),
        key(["a==1"], ["b==1"], python="/q"),
        key(["a==1"], ["b==1"], identity="2"),
    ]
    assert len(set(keys)) == len(keys)


def test_the_order_of_pinned_requirements_does_not_count() -> None:
    pinned = ["a==1", "b[x]==2; python_version > '3'"]
    assert key(pinned) == key(pinned[::-1])
    assert key(["a==1.*", "b==1"]) != key(["b==1", "a==1.*"])


def test_settings_count_that_change_what_is_installed_and_passwords_do_not(tmp_path: Path) -> None:
    one = key(["a"], PIP_INDEX_URL="https://me:one@h/simple", UV_INDEX="x")
    assert one == key(["a"], PIP_INDEX_URL="https://you:two@h/simple", UV_INDEX="x", PIP_TIMEOUT="9", UV_CACHE_DIR="/c")
    assert (
        len({one, key(["a"]), key(["a"], PIP_INDEX_URL="https://other/simple", UV_INDEX="x"), key(["a"], PIP_PRE="1")})
        == 4
    )
    constraints = tmp_path / "constraints.txt"
    keys = set()
    for text in ("a<2", "a<3"):
        constraints.write_text(text)
        keys.add(key(["a"], PIP_CONSTRAINT=str(constraints)))
    assert len(keys) == 2


def test_files_and_directories_of_the_workspace_count_by_their_content(tmp_path: Path) -> None:
    (tmp_path / "lib" / "sub").mkdir(parents=True)
    (tmp_path / "lib" / "setup.py").write_text("1")
    (tmp_path / "x-1.tar.gz").write_text("1")
    lines, paths = located(["./lib[fast]", "x-1.tar.gz", "a==1", "b @ https://h/lib", "."], tmp_path)
    assert lines == (
        f"{tmp_path}/lib[fast]",
        f"{tmp_path}/x-1.tar.gz",
        "a==1",
        "b @ https://h/lib",
        f"{tmp_path}",
    )
    assert paths == (tmp_path / "lib", tmp_path / "x-1.tar.gz", tmp_path)
    before = key(list(lines), paths=paths)
    (tmp_path / "lib" / "sub" / "more.py").write_text("")
    assert key(list(lines), paths=paths) != before


def test_no_other_files_are_taken_for_those_of_a_package(tmp_path: Path) -> None:
    """Who could write such, could have others use an environment that is not theirs."""
    keys = set()
    for name, files in (("one", {"a": "x", "b": "y"}), ("two", {"a": "x\nb\ny"})):
        package = tmp_path / name / "package"
        package.mkdir(parents=True)
        for file, content in files.items():
            (package / file).write_text(content)
        keys.add(Recipe("python", "3.11", "", (), (package,)).key(Indexes({}, {})))
    assert len(keys) == 2


def test_a_package_that_is_larger_than_any_is_refused_before_it_is_in_memory(tmp_path: Path) -> None:
    package = tmp_path / "package.whl"
    package.touch()
    os.truncate(package, 2**40)
    with pytest.raises(RequirementError, match=r"'package.whl' of the workspace is larger than"):
        Recipe("python", "3.11", "", (), (package,)).key(Indexes({}, {}))


@pytest.mark.parametrize(
    "line", ["lib/missing", "etc/apt", "x.whl", "link", "./link", "link/sub", "../other", "/etc", "./" + "a" * 300]
)
def test_no_other_file_is_a_requirement(tmp_path: Path, line: str) -> None:
    (tmp_path / "other" / "sub").mkdir(parents=True)
    (tmp_path / "workspace").mkdir()
    (tmp_path / "workspace" / "link").symlink_to(tmp_path / "other")
    if line == "link":  # a bare name is a package's
        assert located([line], tmp_path / "workspace") == (("link",), ())
        return
    with pytest.raises(RequirementError, match="of the workspace"):
        located([line], tmp_path / "workspace")


def test_where_the_workspace_is_does_not_count(tmp_path: Path) -> None:
    keys = set()
    for attempt in ("one", "two"):
        (tmp_path / attempt / "dist").mkdir(parents=True)
        (tmp_path / attempt / "dist" / "studioml-1.tar.gz").write_text("1")
        lines, paths = located([f"{tmp_path}/{attempt}/dist/studioml-1.tar.gz", "a"], tmp_path / attempt)
        keys.add(key(list(lines), paths=paths))
    assert len(keys) == 1


def test_an_interpreter_that_was_replaced_is_another_one(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("1")
    before = identity(str(python))
    python.write_text("12")
    assert identity(str(python)) != before
    assert identity(str(tmp_path / "gone")) == ""


def test_pips_files_and_variables_are_read_as_pip_does(tmp_path: Path) -> None:
    for place, text in (
        ("etc", "[global]\nextra-index-url = u\n  v\ntimeout=1\n"),
        ("home/.config", "[install]\nno_index = yes\n"),
    ):
        (tmp_path / place / "pip").mkdir(parents=True)
        (tmp_path / place / "pip" / "pip.conf").write_text(text)
    environ = {"HOME": f"{tmp_path}/home", "XDG_CONFIG_DIRS": f"{tmp_path}/etc", "PIP_TIMEOUT": "7", "PIP_EMPTY": ""}
    read = Indexes.read(environ).settings
    assert (read["extra-index-url"].split(), read["no-index"], read["timeout"]) == (["u", "v"], "yes", "7")
    assert "empty" not in read
    assert "no-index" not in Indexes.read({**environ, "PIP_CONFIG_FILE": os.devnull}).settings


def test_uv_is_told_what_pip_is_and_its_own_variables_win() -> None:
    pips = {
        "PIP_INDEX_URL": "https://me:s3cret@h/simple",
        "PIP_EXTRA_INDEX_URL": "https://i/simple https://j/simple",
        "PIP_FIND_LINKS": "/wheels /more",
        "PIP_TRUSTED_HOST": "h:1 i",
        "PIP_CERT": "/ca.pem",
        "PIP_CONSTRAINT": "/c.txt",
        "PIP_PRE": "true",
        "PIP_NO_INDEX": "0",
        "PIP_DEFAULT_TIMEOUT": "180",
        "PIP_PROGRESS_BAR": "off",
        "PIP_NO_BUILD_ISOLATION": "1",
    }
    indexes = Indexes.read({"PIP_CONFIG_FILE": os.devnull, **pips, "UV_HTTP_TIMEOUT": "5"})
    told = indexes.variables_for_uv()
    assert told["UV_DEFAULT_INDEX"] == pips["PIP_INDEX_URL"]
    assert told["UV_EXTRA_INDEX_URL"] == pips["PIP_EXTRA_INDEX_URL"]
    assert (told["UV_FIND_LINKS"], told["SSL_CERT_FILE"]) == ("/wheels,/more", "/ca.pem")
    assert (told["UV_HTTP_TIMEOUT"], told["UV_PYTHON_DOWNLOADS"]) == ("5", "never")
    words = " ".join(indexes.options_for_uv())
    assert words == "--allow-insecure-host h:1 --allow-insecure-host i --constraints /c.txt --prerelease allow"
    assert indexes.only_pips() == []
    assert "UV_DEFAULT_INDEX" not in Indexes.read({"PIP_INDEX_URL": "u", "UV_INDEX_URL": "v"}).variables_for_uv()


def test_uv_keeps_nothing_for_users_without_a_home(tmp_path: Path) -> None:
    homes = {"HOME": str(tmp_path)}, {"HOME": "/nonexistent"}, {"HOME": "/nonexistent", "UV_CACHE_DIR": str(tmp_path)}
    assert ["UV_NO_CACHE" in Indexes.read(each).variables_for_uv() for each in homes] == [False, True, False]


@pytest.mark.parametrize(
    ("value", "words"), [("0", ["--no-build-isolation"]), ("false", ["--no-build-isolation"]), ("1", [])]
)
def test_builds_are_isolated_by_uv_where_they_are_by_pip(value: str, words: list[str]) -> None:
    """pip takes the opposite of what its setting says: https://github.com/pypa/pip/issues/5735."""
    environ = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_BUILD_ISOLATION": value}
    assert Indexes.read(environ).options_for_uv() == words


def test_a_file_of_settings_that_is_no_text_is_left_to_pip(tmp_path: Path) -> None:
    (tmp_path / "pip.conf").write_bytes("[global]\n# f\u00fcr alle\ntimeout = 3\n".encode("latin-1"))
    read = Indexes.read({"PIP_CONFIG_FILE": str(tmp_path / "pip.conf"), "PIP_RETRIES": "1"}).settings
    assert read["retries"] == "1"
    assert "timeout" not in read


def test_settings_that_uv_does_not_have_are_named() -> None:
    given = {"PIP_CONFIG_FILE": os.devnull, "PIP_PREFER_BINARY": "1", "PIP_KEYRING_PROVIDER": "subprocess"}
    assert Indexes.read(given).only_pips() == ["keyring-provider", "prefer-binary"]
