"""Every rule of .ci/proto-breaking fires on a change that breaks, and on no other."""

import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest
from google.protobuf import text_format
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorSet

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / ".ci"

BEFORE = """
file {
  name: "a/v1/a.proto" package: "a.v1" syntax: "proto3"
  message_type {
    name: "Thing"
    field { name: "id" number: 1 label: LABEL_OPTIONAL type: TYPE_UINT32 json_name: "id" }
    field { name: "words" number: 2 label: LABEL_REPEATED type: TYPE_STRING json_name: "words" }
    field { name: "text" number: 3 label: LABEL_OPTIONAL type: TYPE_STRING oneof_index: 0 json_name: "text" }
    field { name: "data" number: 4 label: LABEL_OPTIONAL type: TYPE_BYTES oneof_index: 0 json_name: "data" }
    field { name: "near" number: 5 label: LABEL_OPTIONAL type: TYPE_DOUBLE json_name: "near" proto3_optional: true
            oneof_index: 1 }
    field { name: "inner" number: 6 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: ".a.v1.Thing.Inner"
            json_name: "inner" }
    nested_type { name: "Inner" field { name: "n" number: 1 label: LABEL_OPTIONAL type: TYPE_INT64 json_name: "n" } }
    enum_type { name: "Mode" value { name: "OFF" number: 0 } value { name: "ON" number: 1 } }
    oneof_decl { name: "form" }
    oneof_decl { name: "_near" }
    reserved_range { start: 10 end: 12 }
    reserved_name: "gone"
  }
  enum_type { name: "Kind" value { name: "KIND_NONE" number: 0 } value { name: "KIND_ONE" number: 1 } }
  service {
    name: "Things"
    method { name: "Get" input_type: ".a.v1.Thing" output_type: ".a.v1.Thing" }
    method { name: "Watch" input_type: ".a.v1.Thing" output_type: ".a.v1.Thing" server_streaming: true }
  }
}
file { name: "a/v1/b.proto" package: "a.v1" syntax: "proto3" message_type { name: "Other" } }
"""


@pytest.fixture(scope="module")
def tool():
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    try:
        loader = SourceFileLoader("proto_breaking", str(FOLDER / "proto-breaking"))
        module = importlib.util.module_from_spec(importlib.util.spec_from_loader("proto_breaking", loader))
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


def old():
    return text_format.Parse(BEFORE, FileDescriptorSet())


def thing(files):
    return files.file[0].message_type[0]


def removed(place, **reserved):
    def change(files):
        del thing(files).field[place]
        if "number" in reserved:
            thing(files).reserved_range.add(start=reserved["number"], end=reserved["number"] + 1)
        thing(files).reserved_name.extend(reserved.get("names", ()))

    return change


def assigned(reach, **values):
    def change(files):
        for name, value in values.items():
            setattr(reach(files), name, value)

    return change


def deleted(reach, place):
    def change(files):
        del reach(files)[place]

    return change


def field(place):
    return lambda files: thing(files).field[place]


def method(place):
    return lambda files: files.file[0].service[0].method[place]


def moved_into_the_oneof(files):
    thing(files).field[0].oneof_index = 0


@pytest.mark.parametrize(("change", "words"), [
    (removed(0), ["number is not reserved", "name is not reserved"]),
    (removed(0, number=1), ["name is not reserved"]),
    (removed(0, names=["id"]), ["number is not reserved"]),
    (assigned(field(0), number=7), ["number is not reserved", "name is not reserved"]),
    (assigned(field(0), name="key"), ["its name became 'key'"]),
    (assigned(field(0), json_name="ID"), ["its JSON name 'id' became 'ID'"]),
    (assigned(field(0), type=FieldDescriptorProto.TYPE_UINT64), ["its type uint32 became uint64"]),
    (assigned(field(5), type_name=".a.v1.Other"), ["its type a.v1.Thing.Inner became a.v1.Other"]),
    (assigned(field(0), label=FieldDescriptorProto.LABEL_REPEATED), ["its label optional became repeated"]),
    (assigned(field(1), label=FieldDescriptorProto.LABEL_OPTIONAL), ["its label repeated became optional"]),
    (assigned(field(0), proto3_optional=True), ["'optional' changed"]),
    (moved_into_the_oneof, ["its oneof '' became 'form'"]),
    (lambda files: thing(files).field[2].ClearField("oneof_index"), ["its oneof 'form' became ''"]),
    (deleted(lambda files: thing(files).nested_type, 0), ["message a.v1.Thing.Inner was removed"]),
    (assigned(lambda files: thing(files).nested_type[0].field[0], name="m"), ["a.v1.Thing.Inner.n = 1: its name"]),
    (deleted(lambda files: files.file[1].message_type, 0), ["message a.v1.Other was removed"]),
    (deleted(lambda files: files.file, 1), ["message a.v1.Other was removed"]),
    (deleted(lambda files: thing(files).enum_type, 0), ["enum a.v1.Thing.Mode was removed"]),
    (deleted(lambda files: files.file[0].enum_type, 0), ["enum a.v1.Kind was removed"]),
    (deleted(lambda files: files.file[0].enum_type[0].value, 1), ["a.v1.Kind.KIND_ONE = 1 was removed"]),
    (assigned(lambda files: files.file[0].enum_type[0].value[1], number=2), ["its number became 2"]),
    (assigned(lambda files: files.file[0].enum_type[0].value[1], name="KIND_UNO"), ["its name became KIND_UNO"]),
    (deleted(lambda files: files.file[0].service, 0), ["service a.v1.Things was removed"]),
    (deleted(lambda files: files.file[0].service[0].method, 0), ["rpc a.v1.Things/Get was removed"]),
    (assigned(method(0), input_type=".a.v1.Other"), ["input type .a.v1.Thing became .a.v1.Other"]),
    (assigned(method(0), output_type=".a.v1.Other"), ["output type .a.v1.Thing became .a.v1.Other"]),
    (assigned(method(0), client_streaming=True), ["client streaming False became True"]),
    (assigned(method(1), server_streaming=False), ["server streaming True became False"]),
    (assigned(lambda files: files.file[1], package="b.v1"), ["package a.v1 became b.v1", "a.v1.Other was removed"]),
    (assigned(lambda files: files.file[1], syntax="editions"), ["syntax proto3 became editions"]),
    (deleted(lambda files: thing(files).reserved_name, 0), ["'gone' is no longer reserved"]),
    (deleted(lambda files: thing(files).reserved_range, 0), ["10 to 11 are no longer reserved"]),
    (assigned(lambda files: thing(files).reserved_range[0], end=11), ["10 to 11 are no longer reserved"]),
])
def test_each_rule_fires_and_alone(tool, change, words):
    new = old()
    change(new)
    found = tool.breaking(old(), new)
    assert len(found) == len(words), found
    for word in words:
        assert any(word in line for line in found), (word, found)


def added_field(files):
    thing(files).field.add(name="more", number=8, type=FieldDescriptorProto.TYPE_BOOL)


@pytest.mark.parametrize("change", [
    lambda files: None, removed(0, number=1, names=["id"]), added_field,
    lambda files: files.file[1].message_type.add(name="New"),
    lambda files: files.file.add(name="a/v1/c.proto", package="a.v1", syntax="proto3"),
    lambda files: files.file[0].enum_type[0].value.add(name="KIND_TWO", number=2),
    lambda files: files.file[0].service[0].method.add(name="Put", input_type=".a.v1.Thing"),
    lambda files: files.file[1].service.add(name="Others"),
    lambda files: thing(files).reserved_range.add(start=20, end=30),
    assigned(lambda files: thing(files).reserved_range[0], end=40),
    lambda files: files.file[0].message_type.add().MergeFrom(files.file[1].message_type.pop(0)),  # to another file
    lambda files: files.file[0].options.SetInParent(),
])
def test_what_breaks_nobody_is_fine(tool, change):
    new = old()
    change(new)
    assert tool.breaking(old(), new) == []


def test_an_alias_keeps_a_renamed_value(tool):
    new = old()
    new.file[0].enum_type[0].value.add(name="KIND_UNO", number=1)
    assert tool.breaking(old(), new) == []


def test_real_files_are_compiled_and_compared(tool, tmp_path):
    (tmp_path / "t").mkdir()
    text = 'syntax = "proto3";\npackage t;\nmessage M {{\n  {0}\n  {1}\n}}\n'
    proto = tmp_path / "t" / "m.proto"
    proto.write_text(text.format("uint32 a = 1;", "optional string b = 2;"))
    before = tool.compiled(tmp_path)
    proto.write_text(text.format("reserved 1; reserved 'a';", "string b = 2;"))
    assert tool.breaking(before, tool.compiled(tmp_path)) == [
        "t.M.b = 2: whether it is 'optional' changed, and with it what unset means"]


def test_the_protos_break_nothing_that_was_released(tool):
    baseline = FileDescriptorSet.FromString(tool.BASELINE.read_bytes())
    assert {file.package for file in baseline.file} == {"vecdb.v1", "vecdb.internal.v1"}
    assert tool.breaking(baseline, tool.compiled(tool.PROTO)) == []
    assert len(tool.services(baseline)) >= 5


def test_accepting_writes_the_baseline_and_says_what_broke(tool, tmp_path, monkeypatch, capsys):
    (tmp_path / "m.proto").write_text('syntax = "proto3";\npackage t;\nmessage M { uint32 a = 1; }\n')
    monkeypatch.setattr(tool, "PROTO", tmp_path)
    monkeypatch.setattr(tool, "BASELINE", tmp_path / "baseline.binpb")
    assert tool.main([]) == 1
    assert "there is no" in capsys.readouterr().err
    assert tool.main(["--accept"]) == 0
    assert tool.main([]) == 0
    (tmp_path / "m.proto").write_text('syntax = "proto3";\npackage t;\nmessage M { }\n')
    capsys.readouterr()
    assert tool.main([]) == 1
    assert "t.M.a = 1 was removed" in capsys.readouterr().err
    assert tool.main(["--accept"]) == 0
    assert "with 2 breaking changes" in capsys.readouterr().out
    assert tool.main([]) == 0
