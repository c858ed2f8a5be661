from __future__ import annotations

import pytest

from runner.message.strict_json import MAX_DEPTH, NotJson, loads, nests_deeper


def test_json_is_read() -> None:
    assert loads(' {"a": [1, 2.5, "x", null, true], "b": {}} ') == {"a": [1, 2.5, "x", None, True], "b": {}}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "line 1, column 1"),
        ('{\n"a" 1}', "line 2, column 5"),
        ("[1] 2", "extra data"),
        ("NaN", "NaN"),
        ('{"a": -Infinity}', "-Infinity"),
        ("1e999", "too large"),
        ("1" * 1001, "1001 digits"),
        ('{"a": {"b": 1, "c": 2, "b": 3}}', "'b' twice"),
        ("[" * 100_000, "levels"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "levels"),
        ('{"a":' * (MAX_DEPTH + 1) + "1" + "}" * (MAX_DEPTH + 1), "levels"),
    ],
)
def test_what_is_refused_is_told(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        loads(text)
    assert type(caught.value) in (ValueError, NotJson)


def test_the_deepest_json_is_read() -> None:
    text = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert not nests_deeper(loads(text), MAX_DEPTH)
    assert nests_deeper(loads(text), MAX_DEPTH - 1)
    assert not nests_deeper("text", 0)
    assert nests_deeper([], 0)


def test_an_error_holds_nothing_of_the_text() -> None:
    with pytest.raises(ValueError, match="JSON") as caught:
        loads('{"password": hunter2}')
    assert "hunter2" not in str(caught.value)
