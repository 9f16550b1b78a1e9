"""Files that others wrote, damaged, renamed or mixed up: one sentence each, which never says to delete anything."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from shared import refused

from nb_lib.__main__ import main
from nb_lib.lab.recorded import command, recorded
from nb_lib.lab.runs import Record, Run
from nb_lib.lab.store import RunStore, curves, frame, load_records, merge, read_lines, write_lines
from nb_lib.lab.sweeps import sweep
from nb_lib.papers import grid
from nb_lib.profiles import load_profiles, save_profiles, table

BOOK = Path(__file__).parents[1] / "book/data"
RUN = Run(train_size=100, batch_size=50, epochs=2)
ORIGIN = {"dataset_variant": "digits", "device": "a CPU", "commit": "c", "side_by_side": 1, "nb_lib": "0.1"}


def record(run=RUN, **changes):
    numbers = dict.fromkeys(("test_accuracy", "best_test_accuracy", "train_accuracy", "train_loss", "test_loss"), 0.5)
    counts = {"epochs": 2, "updates": 4, "samples": 200, "wall_time": 1.5}
    fields = {"run": run, "status": "finished", "valid_accuracy": None, **numbers, **counts}
    fields |= {"curve": [{"epoch": 1, "loss": 0.1}], "provenance": ORIGIN}
    return Record(**{**fields, **changes})


def changed(**changes):
    """The JSON of a record with other entries; those of `run` are added to it, None takes nothing out."""
    fields = json.loads(record().to_json())
    fields["run"] |= changes.pop("run", {})
    return json.dumps({**fields, **changes})


NEWER = {
    "a field of a record": changed(energy=3.5),
    "a field of a run": changed(run={"temperature": 1.0}),
    "both": changed(run={"temperature": 1.0}, energy=3.5),
    "without one": json.dumps({name: value for name, value in json.loads(changed()).items() if name != "wall_time"}),
}
REFUSED = {  # by the checks of a run
    "a network": changed(run={"network": "vision-transformer"}),
    "a number": changed(run={"alpha": 0.5}),
}
FOREIGN = {
    "a list": "[]",
    "an object": "{}",
    "a number": "3",
    "null": "null",
    "text": '"text"',
    "another program's": '{"run": "2026-01-01", "loss": 0.1}',
    "a run alone": json.dumps(RUN.to_dict()),
    "a profile": json.dumps({"run": RUN.to_dict(), "curves": {}, "provenance": ORIGIN}),
    "a run that is a list": changed(run={}).replace('"run": {', '"run": [], "x": {'),
    "nested too deep": "[" * 100_000,
    "a number too long": "9" * 10_000,
}
DAMAGED = {
    "empty": "",
    "blank": " \n",
    "truncated": changed()[:-20],
    "two in one": changed() + changed(),
    "no JSON": "key: value",
    "zeros": "\0" * 4096,
}
WRONG = {
    "provenance": [None, [], "text", {"device": None}, {"commit": 3}, {"side_by_side": 0}, {"dataset_variant": ["a"]}],
    "epochs": [None, "three", 2.5, True, 0, -1, [2], math.nan],
    "updates": ["4", math.inf],
    "test_accuracy": ["high", [0.5], {}, True],
    "valid_accuracy": ["none", []],
    "status": [None, 1, ["finished"]],
    "curve": [None, {}, "text", [1], [{"loss": "low"}], [None]],
    "measures": [[1], "text", {"slope": "steep"}, {"slope": [1]}],
}
WRONG_TEXTS = {f"{name} {value}": changed(**{name: value}) for name, values in WRONG.items() for value in values}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        *((text, "was written by another version, .*: update nb_lib") for text in NEWER.values()),
        *(
            (text, "this version does not accept .*: read it with the version that wrote it")
            for text in REFUSED.values()
        ),
        *((text, "is not a record of a run") for text in (FOREIGN | DAMAGED | WRONG_TEXTS).values()),
    ],
    ids=[*NEWER, *REFUSED, *FOREIGN, *DAMAGED, *WRONG_TEXTS],
)
def test_what_is_no_record_of_this_version_is_said_and_left_where_it_is(text, said, tmp_path):
    store = RunStore(tmp_path)
    path = store.path(RUN)
    path.write_text(text)
    for read in (lambda: store.load(RUN), lambda: list(store), lambda: sweep([RUN], store, progress=False)):
        sentence = refused(read)
        assert sentence.startswith(f"{path} ")
        assert re.search(said, sentence)
        assert "delete" not in sentence
    assert path.read_text() == text


def test_a_directory_in_the_place_of_a_record_is_said(tmp_path):
    store = RunStore(tmp_path)
    store.path(RUN).mkdir()
    for read in (lambda: store.load(RUN), lambda: list(store)):
        assert refused(read) == f"cannot read {store.path(RUN)}: Is a directory."
    assert refused(lambda: store.save(record())).startswith(f"cannot write {store.path(RUN)}: Is a directory")
    assert store.path(RUN).is_dir()


def test_a_record_under_the_name_of_another_run_is_not_taken_for_its(tmp_path):
    store, other = RunStore(tmp_path), replace(RUN, seed=1)
    store.save(record(other))
    store.path(other).rename(store.path(RUN))
    for read in (lambda: store.load(RUN), lambda: list(store), lambda: sweep([RUN], store, progress=False)):
        assert refused(read) == f"{store.path(RUN)} holds the record of another run, {other.key}: move it elsewhere."


ACCEPTED = {
    "blank lines": lambda text: f"\n{text}\n  \n{text}\n\n".encode(),
    "no last end of line": lambda text: text.encode(),
    "lines as Windows ends them": lambda text: f"{text}\r\n{text}\r\n".encode(),
    "a byte order mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "separators of Unicode within a text": lambda text: text.replace("a CPU", "a\u2028CPU\x85").encode(),
}


@pytest.mark.parametrize("make", ACCEPTED.values(), ids=ACCEPTED)
def test_what_editors_and_other_programs_leave_of_json_lines_is_read(make, tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_bytes(make(changed()))
    found = read_lines(path)
    assert {one.run for one in found} == {RUN}
    assert len(found) == path.read_bytes().count(b'"status"')


@pytest.mark.parametrize(
    "text", [*NEWER.values(), *FOREIGN.values(), DAMAGED["truncated"], *list(WRONG_TEXTS.values())[:9]]
)
def test_a_line_that_is_no_record_is_named_with_its_file_and_number(text, tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text(f"{changed()}\n\n{text}\n{changed()}\n")
    before = path.read_bytes()
    reads = (lambda: read_lines(path), lambda: load_records(tmp_path), lambda: merge([path], tmp_path / "new.jsonl"))
    for read in (*reads, lambda: merge([BOOK / "ne_c1.jsonl"], path)):
        sentence = refused(read)
        assert sentence.startswith(f"{path}, line 3, ")
        assert "delete" not in sentence
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["records.jsonl"]


@pytest.mark.parametrize(
    "read", [read_lines, load_records, load_profiles, lambda path: merge([path], path.parent / "x")]
)
@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_file_that_is_not_utf_8_is_said(read, encoding, tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_bytes(changed(status="überstanden").replace("\\u00fc", "ü").encode(encoding))
    assert refused(lambda: read(path)) == f"{path} is not a text in UTF-8: name another file, or convert it."


def test_the_shell_gives_one_sentence_for_a_file_that_is_not_utf_8(tmp_path, capsys):
    path = tmp_path / "latin.jsonl"
    path.write_bytes("ü".encode("latin-1"))
    for arguments in (["merge", path, "--into", tmp_path / "new"], ["compare", "smoothout-table1", "--store", path]):
        assert main([str(argument) for argument in arguments]) == 2
        assert capsys.readouterr().err == f"nb_lib: {path} is not a text in UTF-8: name another file, or convert it.\n"


def test_hidden_files_that_systems_leave_beside_records_are_none(tmp_path):
    write_lines([record()], tmp_path / "mine.jsonl")
    (tmp_path / "._mine.jsonl").write_bytes(b"\0\5\x16\7\xff")  # as macOS does on file systems of others
    assert load_records(tmp_path) == [record()]


@pytest.mark.parametrize("sources", [["empty"], ["blank.jsonl"], ["empty", "blank.jsonl"], []])
@pytest.mark.parametrize("into", ["new.jsonl", "old.jsonl", "folder"])
def test_merging_nothing_is_refused_and_writes_nothing(sources, into, tmp_path):
    for folder in ("empty", "folder"):
        (tmp_path / folder).mkdir()
    (tmp_path / "blank.jsonl").write_text("\n")
    write_lines([record()], tmp_path / "old.jsonl")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    said = refused(lambda: merge([tmp_path / source for source in sources], tmp_path / into))
    assert said.startswith("there are no records")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("show", [frame, curves, table])
def test_a_table_of_nothing_is_one_sentence(show):
    assert refused(lambda: show(iter([]))).startswith("there are no ")


@pytest.mark.parametrize("path", ["", " ", "\t"])
def test_an_empty_path_is_not_the_current_folder(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    calls = [
        lambda: RunStore(path),
        lambda: sweep([RUN], path, progress=False),
        lambda: load_records(path),
        lambda: load_records([path]),
        lambda: read_lines(path),
        lambda: write_lines([record()], path),
        lambda: merge([BOOK], path),
        lambda: merge([path], "new.jsonl"),
        lambda: load_profiles(path),
        lambda: save_profiles([], path),
    ]
    for call in calls:
        assert refused(call).startswith("the path of a file or folder is empty: name one, or '.'")
    for arguments in (["train", "--store", path], ["sweep", "smoothout-table1-f1", "--scale", "tiny", "--store", path]):
        assert main([*arguments, "--device", "cpu"]) == 2
        assert "is empty: name one" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert RunStore(".").folder == Path(".")


def test_a_home_is_meant_by_its_sign(tmp_path, monkeypatch):
    """Which a shell leaves alone in ``--store=~/results``, and YAML everywhere."""
    monkeypatch.setenv("HOME", str(tmp_path))
    RunStore("~/results").save(record())
    assert load_records("~/results") == [record()]
    merge(["~/results"], "~/all.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.jsonl", "results"]


def test_records_of_the_book_load_as_they_always_did():
    """But for the fields of a run that are younger than the record."""
    lines = [line for file in sorted(BOOK.glob("*.jsonl")) for line in file.read_text().splitlines()]
    for one, line in zip(load_records(BOOK), lines, strict=True):
        stored, now = json.loads(line), json.loads(one.to_json())
        assert {**now, "run": {name: now["run"][name] for name in stored["run"]}} == stored
    assert len(load_profiles(BOOK / "resnet_profiles.json")) == 9


def test_an_origin_that_says_little_is_shown_as_unknown():
    name = "smoothout-table1-f1"
    [run, *_] = grid(name, "tiny")
    [label] = recorded([record(run, provenance={})], name, "tiny")
    assert label == "unknown, float32, 1 run of 2 s, unknown, commit unknown"
    assert command(name, "tiny").startswith("python -m nb_lib sweep")


PROFILES = json.loads((BOOK / "resnet_profiles.json").read_text())[:1]


def profiles(**changes):
    return json.dumps([{**PROFILES[0], **changes}])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (profiles(run={"temperature": 1.0}), "was written by another version"),
        (profiles(run={**PROFILES[0]["run"], "network": "vision-transformer"}), "was written by another version"),
        *((text, "is not a file of profiles") for text in [*FOREIGN.values(), *DAMAGED.values()][1:]),
        *((profiles(provenance=value), "is not a file of profiles") for value in (None, "text", 3)),
        *((profiles(curves=value), "is not a file of profiles") for value in (None, [], {"line": {}}, {"line": [1]})),
        (profiles(curves={"line": {"test": {"x": ["low"]}}, "noise": {}}), "is not a file of profiles"),
    ],
)
def test_a_file_that_is_none_of_profiles_is_said_and_stays(text, said, tmp_path):
    path = tmp_path / "profiles.json"
    path.write_text(text)
    for call in (lambda: load_profiles(path), lambda: save_profiles([], path)):
        sentence = refused(call)
        assert sentence.startswith(f"{path} {said}")
        assert "delete" not in sentence
    assert path.read_text() == text
