"""Reports are what protobuf's own library makes of the message that StudioML's clients know."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf import (
    any_pb2,
    descriptor_pb2,
    descriptor_pool,
    json_format,
    message_factory,
    timestamp_pb2,
    wrappers_pb2,
)

from runner.reporting.report import LONGEST, Reporter, Severity, State

PACKAGE = "dev.studio_go_runner.reports"
FIELD = descriptor_pb2.FieldDescriptorProto
TIME, STRING, ANY = ".google.protobuf.Timestamp", ".google.protobuf.StringValue", ".google.protobuf.Any"
SEVERITIES = {"Default": 0, "Trace": 100, "Debug": 200, "Info": 300, "Warning": 400, "Error": 500, "Fatal": 600}
STATES = {"Prestart": 0, "Started": 1, "Stopping": 2, "Failed": 20, "Success": 21}


def field(name: str, number: int, kind: str, **more: Any) -> FIELD:
    """A field whose kind is ``string``, ``int32``, the name of a message or, in lower case, of an enumeration."""
    scalars = {"string": FIELD.TYPE_STRING, "int32": FIELD.TYPE_INT32}
    if kind in scalars:
        return FIELD(name=name, number=number, type=scalars[kind], label=FIELD.LABEL_OPTIONAL, **more)
    type_ = FIELD.TYPE_ENUM if kind in ("LogSeverity", "TaskState") else FIELD.TYPE_MESSAGE
    full = kind if kind.startswith(".") else f".{PACKAGE}.{kind}"
    return FIELD(name=name, number=number, type=type_, type_name=full, **{"label": FIELD.LABEL_OPTIONAL, **more})


def enumeration(name: str, values: dict[str, int]) -> descriptor_pb2.EnumDescriptorProto:
    listed = [descriptor_pb2.EnumValueDescriptorProto(name=each, number=number) for each, number in values.items()]
    return descriptor_pb2.EnumDescriptorProto(name=name, value=listed)


def message(
    name: str, *fields: FIELD, nested: tuple[descriptor_pb2.DescriptorProto, ...] = (), **more: Any
) -> descriptor_pb2.DescriptorProto:
    return descriptor_pb2.DescriptorProto(name=name, field=fields, nested_type=nested, **more)


def report_class() -> type:
    """Build the classes of the proto file, without protoc."""
    entry = message(
        "FieldsEntry",
        field("key", 1, "string"),
        field("value", 2, "string"),
        options=descriptor_pb2.MessageOptions(map_entry=True),
    )
    log_entry = message(
        "LogEntry",
        field("time", 1, TIME),
        field("severity", 2, "LogSeverity"),
        field("message", 3, STRING),
        field("fields", 4, "LogEntry.FieldsEntry", label=FIELD.LABEL_REPEATED),
        nested=(entry,),
    )
    progress = message(
        "Progress",
        field("time", 1, TIME),
        field("json", 2, STRING),
        field("state", 3, "TaskState"),
        field("error", 4, "Progress.Error"),
        nested=(message("Error", field("msg", 20, STRING), field("code", 21, "int32")),),
    )
    report = message(
        "Report",
        field("time", 1, TIME),
        field("experiment_id", 2, STRING),
        field("unique_id", 3, STRING),
        field("executor_id", 4, STRING),
        field("proto_any", 10, ANY, oneof_index=0),
        field("text", 11, STRING, oneof_index=0),
        field("logging", 12, "LogEntry", oneof_index=0),
        field("progress", 13, "Progress", oneof_index=0),
        oneof_decl=[descriptor_pb2.OneofDescriptorProto(name="payload")],
    )
    pool = descriptor_pool.DescriptorPool()
    imports = (timestamp_pb2, wrappers_pb2, any_pb2)
    for module in imports:
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    file = descriptor_pb2.FileDescriptorProto(
        name="reports.proto",
        package=PACKAGE,
        syntax="proto3",
        dependency=[module.DESCRIPTOR.name for module in imports],
        enum_type=[enumeration("LogSeverity", SEVERITIES), enumeration("TaskState", STATES)],
        message_type=[report, log_entry, progress],
    )
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.Report"))


REPORT = report_class()
OURS = Reporter("mine", "host-0Abc", "host")
AT = 1795444912.908191


def read(report: bytes) -> dict[str, Any]:
    """Read a report as protobuf does, and insist that protobuf would write it so."""
    parsed = json_format.Parse(report.decode(), REPORT())
    written = json.loads(json_format.MessageToJson(parsed))
    assert written == json.loads(report)
    return written  # type: ignore[no-any-return]


STAMP = "2026-11-23T14:41:52.908191Z"
WHO = {"time": STAMP, "experimentId": "mine", "uniqueId": "host-0Abc", "executorId": "host"}


@pytest.mark.parametrize(
    ("report", "payload"),
    [
        (OURS.text("hello", at=AT), {"text": "hello"}),
        (OURS.text("", at=AT), {"text": ""}),
        (
            OURS.logging("start", Severity.INFO, {"success": "True"}, at=AT),
            {"logging": {"time": STAMP, "severity": "Info", "message": "start", "fields": {"success": "True"}}},
        ),
        (OURS.logging("", Severity.DEFAULT, at=AT), {"logging": {"time": STAMP, "message": ""}}),
        (
            OURS.logging('a "line"\t\x00\x1b[1m é \u2028 😀', Severity.ERROR, {}, at=AT),
            {"logging": {"time": STAMP, "severity": "Error", "message": 'a "line"\t\x00\x1b[1m é \u2028 😀'}},
        ),
        (
            OURS.json('{"loss": 1}', at=AT),
            {"progress": {"time": STAMP, "json": '{"loss": 1}', "state": "Started"}},
        ),
        (OURS.progress(State.PRESTART, at=AT), {"progress": {"time": STAMP}}),
        (OURS.progress(State.SUCCESS, at=AT), {"progress": {"time": STAMP, "state": "Success"}}),
        (
            OURS.progress(State.FAILED, "it was killed", code=137, at=AT),
            {"progress": {"time": STAMP, "state": "Failed", "error": {"msg": "it was killed", "code": 137}}},
        ),
        (
            OURS.progress(State.FAILED, "pip failed", at=AT),
            {"progress": {"time": STAMP, "state": "Failed", "error": {"msg": "pip failed"}}},
        ),
        (
            OURS.progress(State.FAILED, code=-9, at=AT),
            {"progress": {"time": STAMP, "state": "Failed", "error": {"code": -9}}},
        ),
    ],
)
def test_protobuf_reads_every_kind_of_report_and_writes_the_same(report: bytes, payload: dict[str, Any]) -> None:
    assert read(report) == {**WHO, **payload}


@pytest.mark.parametrize("severity", Severity)
def test_every_severity_is_known(severity: Severity) -> None:
    parsed = json_format.Parse(OURS.logging("x", severity).decode(), REPORT())
    assert parsed.logging.severity == SEVERITIES[severity.value]


@pytest.mark.parametrize("state", State)
def test_every_state_is_known(state: State) -> None:
    parsed = json_format.Parse(OURS.progress(state).decode(), REPORT())
    assert parsed.progress.state == STATES[state.value]


def test_there_are_no_severities_and_states_but_those() -> None:
    assert {severity.value for severity in Severity} == set(SEVERITIES)
    assert {state.value for state in State} == set(STATES)


@pytest.mark.parametrize(
    ("at", "written"),
    [
        (1795444912, "2026-11-23T14:41:52Z"),
        (1795444912.5, "2026-11-23T14:41:52.500Z"),
        (1795444912.000001, "2026-11-23T14:41:52.000001Z"),
        (1795444912.9999999, "2026-11-23T14:41:53Z"),
        (0, "1970-01-01T00:00:00Z"),
    ],
)
def test_a_time_has_as_many_digits_as_it_needs(at: float, written: str) -> None:
    assert read(OURS.logging("x", Severity.INFO, at=at))["time"] == written


def test_a_report_without_a_time_is_of_now() -> None:
    assert json_format.Parse(OURS.text("x").decode(), REPORT()).time.seconds > AT - 86400 * 365 * 10
    assert set(read(OURS.text("x"))) == {*WHO, "text"}


def test_what_is_not_known_is_left_out() -> None:
    assert read(Reporter("", "", "host").text("x", at=AT)) == {"time": STAMP, "executorId": "host", "text": "x"}
    assert read(OURS.named("other").text("x", at=AT))["uniqueId"] == "other"


def test_a_long_text_is_cut_and_says_so() -> None:
    for long in ("x" * LONGEST * 2, "é" * LONGEST, "😀" * LONGEST):
        for report in (OURS.text(long, at=AT), OURS.logging(long, Severity.INFO, at=AT)):
            told = read(report)
            text = told.get("text") or told["logging"]["message"]
            assert text.endswith("longer than 64 KiB)")
            assert LONGEST - 4 < len(text.encode()) <= LONGEST
            assert text.startswith(long[:1000])
    exact = "x" * LONGEST
    assert read(OURS.text(exact, at=AT))["text"] == exact


def test_json_that_is_too_long_is_no_json_any_more() -> None:
    told = read(OURS.json(json.dumps({"a": "x" * LONGEST}), at=AT))
    assert "progress" not in told
    assert told["logging"]["message"].startswith('{"a": "xxx')


def test_half_a_character_is_replaced() -> None:
    assert read(OURS.text("a\ud800b", at=AT))["text"] == "a?b"
    assert read(OURS.json('{"a": "\udfff"}', at=AT))["progress"]["json"] == '{"a": "?"}'
