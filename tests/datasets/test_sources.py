from __future__ import annotations

import json

import pytest

from stillmotion.datasets.report import Report
from stillmotion.datasets.sources import Item, find_items, same_captions
from stillmotion.errors import DataError


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_folder_takes_sidecars_and_speaks_file_names(tmp_path):
    touch(
        tmp_path / "b" / "red_fox-running.mp4", tmp_path / "a.gif", tmp_path / "notes.md", tmp_path / ".x.gif"
    )
    (tmp_path / "a.txt").write_text("a cat\n\nthe cat again \n", "utf-8")
    items = find_items(tmp_path, Report())
    assert items == [
        Item(tmp_path / "a.gif", ("a cat", "the cat again")),
        Item(tmp_path / "b" / "red_fox-running.mp4", ("red fox running",)),
    ]


def test_webvid_csv_with_pages_and_flat(tmp_path):
    touch(tmp_path / "v" / "1.mp4", tmp_path / "v" / "page7" / "2.mp4")
    table = tmp_path / "t.csv"
    table.write_text(
        'videoid,name,page_dir\n1,"a dog, barking",page1\n2,a cat,page7\n3,lost,page7\n', "utf-8"
    )
    report = Report()
    items = find_items(table, report, tmp_path / "v")
    assert [(item.path.name, item.captions) for item in items] == [
        ("1.mp4", ("a dog, barking",)),
        ("2.mp4", ("a cat",)),
    ]
    assert list(report.skipped) == [str(tmp_path / "v" / "3")]


def test_csv_without_the_columns(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("id,caption\n1,a\n", "utf-8")
    with pytest.raises(DataError, match=r"id, caption.*name and videoid must be there"):
        find_items(table, Report())


def test_jsonl_with_alternatives(tmp_path):
    touch(tmp_path / "a.webp", tmp_path / "b.webp")
    lines = [
        {"file": "a.webp", "caption": "x"},
        {"file": "b.webp", "caption": ["y", "z"]},
        {"file": "c", "caption": "w"},
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)), "utf-8")
    report = Report()
    items = find_items(tmp_path / "t.jsonl", report)
    assert [item.captions for item in items] == [("x",), ("y", "z")]
    assert report.sentence() == "1 file skipped: 1 x there is no such file (listed in the JSONL)."


def test_jsonl_names_the_bad_line(tmp_path):
    touch(tmp_path / "a.webp")
    (tmp_path / "t.jsonl").write_text('{"file": "a.webp", "caption": "x"}\n{"path": 1}\n', "utf-8")
    with pytest.raises(DataError, match=r"line 2.*'\{\"path\": 1\}'"):
        find_items(tmp_path / "t.jsonl", Report())


@pytest.mark.parametrize("name", ["missing", "table.xlsx", "empty/"])
def test_unusable_sources_are_named(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "table.xlsx").write_bytes(b"")
    with pytest.raises(DataError, match=name.strip("/")):
        find_items(tmp_path / name, Report())


def test_same_captions():
    items = [Item("a", ("x",)), Item("b", ("x",))]
    assert same_captions(items) == "x"
    assert same_captions([*items, Item("c", ("y",))]) is None


def test_report_says_each_file_once(tmp_path):
    report = Report()
    assert report.skip("a", "too short") and not report.skip("a", "other") and report.skip("b", "too short")
    assert report.sentence() == "2 files skipped: 2 x too short."
    report.save(tmp_path / "r.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert rows == [{"file": "a", "reason": "too short"}, {"file": "b", "reason": "too short"}]
