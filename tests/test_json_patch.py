"""Merge patches and patches, held against the examples of their RFCs."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from runner.attempt.json_patch import PatchError, apply, equal, merge

# RFC 7386, appendix A, word for word: original, patch, result.
MERGES = [
    ('{"a":"b"}', '{"a":"c"}', '{"a":"c"}'),
    ('{"a":"b"}', '{"b":"c"}', '{"a":"b","b":"c"}'),
    ('{"a":"b"}', '{"a":null}', "{}"),
    ('{"a":"b","b":"c"}', '{"a":null}', '{"b":"c"}'),
    ('{"a":["b"]}', '{"a":"c"}', '{"a":"c"}'),
    ('{"a":"c"}', '{"a":["b"]}', '{"a":["b"]}'),
    ('{"a":{"b":"c"}}', '{"a":{"b":"d","c":null}}', '{"a":{"b":"d"}}'),
    ('{"a":[{"b":"c"}]}', '{"a":[1]}', '{"a":[1]}'),
    ('["a","b"]', '["c","d"]', '["c","d"]'),
    ('{"a":"b"}', '["c"]', '["c"]'),
    ('{"a":"foo"}', "null", "null"),
    ('{"a":"foo"}', '"bar"', '"bar"'),
    ('{"e":null}', '{"a":1}', '{"e":null,"a":1}'),
    ("[1,2]", '{"a":"b","c":null}', '{"a":"b"}'),
    ("{}", '{"a":{"bb":{"ccc":null}}}', '{"a":{"bb":{}}}'),
]

# RFC 6902, appendix A: section, document, patch, result; None where the RFC wants an error.
PATCHES = [
    ("A.1", '{"foo":"bar"}', '[{"op":"add","path":"/baz","value":"qux"}]', '{"baz":"qux","foo":"bar"}'),
    (
        "A.2",
        '{"foo":["bar","baz"]}',
        '[{"op":"add","path":"/foo/1","value":"qux"}]',
        '{"foo":["bar","qux","baz"]}',
    ),
    ("A.3", '{"baz":"qux","foo":"bar"}', '[{"op":"remove","path":"/baz"}]', '{"foo":"bar"}'),
    ("A.4", '{"foo":["bar","qux","baz"]}', '[{"op":"remove","path":"/foo/1"}]', '{"foo":["bar","baz"]}'),
    (
        "A.5",
        '{"baz":"qux","foo":"bar"}',
        '[{"op":"replace","path":"/baz","value":"boo"}]',
        '{"baz":"boo","foo":"bar"}',
    ),
    (
        "A.6",
        '{"foo":{"bar":"baz","waldo":"fred"},"qux":{"corge":"grault"}}',
        '[{"op":"move","from":"/foo/waldo","path":"/qux/thud"}]',
        '{"foo":{"bar":"baz"},"qux":{"corge":"grault","thud":"fred"}}',
    ),
    (
        "A.7",
        '{"foo":["all","grass","cows","eat"]}',
        '[{"op":"move","from":"/foo/1","path":"/foo/3"}]',
        '{"foo":["all","cows","eat","grass"]}',
    ),
    (
        "A.8",
        '{"baz":"qux","foo":["a",2,"c"]}',
        '[{"op":"test","path":"/baz","value":"qux"},{"op":"test","path":"/foo/1","value":2}]',
        '{"baz":"qux","foo":["a",2,"c"]}',
    ),
    ("A.9", '{"baz":"qux"}', '[{"op":"test","path":"/baz","value":"bar"}]', None),
    (
        "A.10",
        '{"foo":"bar"}',
        '[{"op":"add","path":"/child","value":{"grandchild":{}}}]',
        '{"foo":"bar","child":{"grandchild":{}}}',
    ),
    (
        "A.11",
        '{"foo":"bar"}',
        '[{"op":"add","path":"/baz","value":"qux","xyz":123}]',
        '{"foo":"bar","baz":"qux"}',
    ),
    ("A.12", '{"foo":"bar"}', '[{"op":"add","path":"/baz/bat","value":"qux"}]', None),
    ("A.14", '{"/":9,"~1":10}', '[{"op":"test","path":"/~01","value":10}]', '{"/":9,"~1":10}'),
    ("A.15", '{"/":9,"~1":10}', '[{"op":"test","path":"/~01","value":"10"}]', None),
    (
        "A.16",
        '{"foo":["bar"]}',
        '[{"op":"add","path":"/foo/-","value":["abc","def"]}]',
        '{"foo":["bar",["abc","def"]]}',
    ),
]


@pytest.mark.parametrize(("original", "patch", "result"), MERGES)
def test_the_merges_of_rfc_7386(original: str, patch: str, result: str) -> None:
    target = json.loads(original)
    assert merge(target, json.loads(patch)) == json.loads(result)
    assert target == json.loads(original)


@pytest.mark.parametrize(("original", "patch", "result"), [case[1:] for case in PATCHES], ids=[c[0] for c in PATCHES])
def test_the_patches_of_rfc_6902(original: str, patch: str, result: str | None) -> None:
    document = json.loads(original)
    if result is None:
        with pytest.raises(PatchError):
            apply(document, json.loads(patch))
    else:
        assert equal(apply(document, json.loads(patch)), json.loads(result))
    assert document == json.loads(original)


DOCUMENT = {"a": {"b": [1, {"c": 2}]}, "": 3, "m~n": 8, "d": [[]]}


@pytest.mark.parametrize(
    ("operation", "result"),
    [
        ({"op": "add", "path": "", "value": 5}, 5),
        ({"op": "replace", "path": "", "value": [1]}, [1]),
        ({"op": "move", "from": "/a", "path": "/a"}, DOCUMENT),
        ({"op": "move", "from": "/a/b/0", "path": "/a/b/0"}, DOCUMENT),
        ({"op": "move", "from": "", "path": ""}, DOCUMENT),
        ({"op": "replace", "path": "/a/b/1/c", "value": None}, {**DOCUMENT, "a": {"b": [1, {"c": None}]}}),
        ({"op": "add", "path": "/a/b/2", "value": 3}, {**DOCUMENT, "a": {"b": [1, {"c": 2}, 3]}}),
        ({"op": "remove", "path": "/"}, {name: DOCUMENT[name] for name in ("a", "m~n", "d")}),
        ({"op": "test", "path": "/m~0n", "value": 8.0}, DOCUMENT),
        ({"op": "copy", "from": "/a/b/0", "path": "/d/0/-"}, {**DOCUMENT, "d": [[1]]}),
        ({"op": "copy", "from": "/a", "path": "/a/b/0"}, {**DOCUMENT, "a": {"b": [DOCUMENT["a"], 1, {"c": 2}]}}),
    ],
)
def test_other_operations(operation: dict[str, Any], result: Any) -> None:
    before = copy.deepcopy(DOCUMENT)
    assert apply(DOCUMENT, [operation]) == result
    assert before == DOCUMENT


@pytest.mark.parametrize(
    "operation",
    [
        None,
        "add",
        {},
        {"op": "increase", "path": "/a"},
        {"op": ["add"], "path": "/a", "value": 1},
        {"op": "add", "path": "/x"},
        {"op": "add", "value": 1},
        {"op": "add", "path": 3, "value": 1},
        {"op": "add", "path": "a", "value": 1},
        {"op": "add", "path": "/m~n", "value": 1},
        {"op": "add", "path": "/m~2", "value": 1},
        {"op": "add", "path": "/a/b/3", "value": 1},
        {"op": "add", "path": "/a/b/-1", "value": 1},
        {"op": "add", "path": "/a/b/01", "value": 1},
        {"op": "add", "path": "/a/b/1e0", "value": 1},
        {"op": "add", "path": f"/a/b/{'9' * 5000}", "value": 1},
        {"op": "add", "path": "/a/b/0/x", "value": 1},
        {"op": "add", "path": "/nowhere" * 100_000, "value": 1},
        {"op": "replace", "path": "/x", "value": 1},
        {"op": "replace", "path": "/a/b/2", "value": 1},
        {"op": "replace", "path": "/a/b/-", "value": 1},
        {"op": "remove", "path": ""},
        {"op": "remove", "path": "/x"},
        {"op": "remove", "path": "/a/b/-"},
        {"op": "test", "path": "/x", "value": None},
        {"op": "test", "path": "/a/b/0", "value": True},
        {"op": "move", "path": "/x"},
        {"op": "move", "from": "/a", "path": "/a/b/0"},
        {"op": "move", "from": "/x", "path": "/y"},
        {"op": "copy", "from": "/a/b/2", "path": "/y"},
    ],
)
def test_what_does_not_apply_changes_nothing(operation: Any) -> None:
    before = copy.deepcopy(DOCUMENT)
    with pytest.raises(PatchError):
        apply(DOCUMENT, [{"op": "add", "path": "/first", "value": 1}, operation])
    assert before == DOCUMENT


def test_a_document_shares_what_did_not_change() -> None:
    changed = apply(DOCUMENT, [{"op": "add", "path": "/x", "value": 1}])
    assert changed["a"] is DOCUMENT["a"]
    assert merge(DOCUMENT, {"x": 1})["a"] is DOCUMENT["a"]


def test_a_copy_is_nobody_elses() -> None:
    document = apply({"a": [1]}, [{"op": "copy", "from": "/a", "path": "/b"}])
    document["b"].append(2)
    assert document == {"a": [1], "b": [1, 2]}


def test_no_document_gets_too_deep() -> None:
    deeper = [{"op": "copy", "from": "", "path": "/a"}]
    document: Any = {"a": 1}
    with pytest.raises(PatchError, match="levels"):
        for _ in range(100):
            document = apply(document, deeper)


def test_copies_cannot_grow_without_end() -> None:
    double = [{"op": "copy", "from": "/a", "path": "/a/-"}] * 50
    with pytest.raises(PatchError, match="too much"):
        apply({"a": [1]}, double, allowance=10_000)


def test_json_knows_numbers_from_truth() -> None:
    assert equal({"a": [1]}, {"a": [1.0]})
    assert not equal([1], [True])
    assert not equal({"a": 0}, {"a": False})
    assert not equal({}, [])
    assert not equal([1], [1, 2])
