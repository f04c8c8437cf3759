"""Captions and lists as taggers, editors and operating systems write them."""

from __future__ import annotations

import json
import os
import unicodedata

import pytest

from stillmotion.datasets.report import Report
from stillmotion.datasets.sources import find_items
from stillmotion.errors import DataError


def clip(folder, name="a.gif"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def captions(source, **options):
    return {item.path.name: item.captions for item in find_items(source, Report(), **options)}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("a cat".encode("utf-8-sig"), ("a cat",)),
        ("猫が歩く\r\nzwei".encode("utf-16"), ("猫が歩く", "zwei")),
        ("a café".encode("utf-16-le"), ("a café",)),
        ("a café".encode("utf-16-be"), ("a café",)),
        (b"\xfe\xff" + "a café".encode("utf-16-be"), ("a café",)),
        ("a cat".encode("utf-32"), ("a cat",)),
        (b"one\rtwo\r\n\r\n three \n", ("one", "two", "three")),
        ("a\u2028cat\x85on\x0ba\u2029mat".encode(), ("a cat on a mat",)),
        (unicodedata.normalize("NFD", "café").encode(), ("café",)),
        ("猫が歩く".encode(), ("猫が歩く",)),
    ],
)
def test_captions_in_any_encoding_and_with_any_line_ends(tmp_path, data, expected):
    clip(tmp_path).with_suffix(".txt").write_bytes(data)
    assert captions(tmp_path) == {"a.gif": expected}


@pytest.mark.parametrize(
    "data",
    [
        "a man’s hat".encode("cp1252"),
        "café".encode("latin-1"),
        "猫が".encode("shift-jis"),
        "カメラ".encode("shift-jis"),
        "红色的汽车".encode("gbk"),
        "красная лиса".encode("cp1251"),
        "é and a cut one: é".encode()[:-1],
        b"\x89PNG\r\n\x1a\n" + bytes(3) + b"\x01\x02\x03",
        b"x" * (2**20 + 1),
        b"a fox with one zero byte\0 in its caption",
    ],
)
def test_a_caption_that_cannot_be_read_is_named(tmp_path, data):
    clip(tmp_path).with_suffix(".txt").write_bytes(data)
    clip(tmp_path, "b.gif").with_suffix(".txt").write_text("a dog")
    with pytest.raises(DataError, match=r"a\.txt (is neither UTF-8|is no text|has 1,048,577 bytes)"):
        find_items(tmp_path, Report())


def test_how_many_captions_cannot_be_read_is_said(tmp_path):
    for name in "abc":
        clip(tmp_path, f"{name}.gif").with_suffix(".txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"a\.txt is neither .*2 more captions"):
        find_items(tmp_path, Report())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "red fox"),
        ("a.caption", "red fox"),
        ("a.TXT", "red fox"),
        ("a.gif.txt", "red fox"),
        ("a.json", '{"tags": "red fox", "score": 1}'),
        ("metadata.jsonl", '{"file_name": "a.gif", "text": "red fox"}'),
        ("metadata.csv", "file_name,text\na.gif,red fox\n"),
    ],
)
def test_captions_lie_where_other_trainers_put_them(tmp_path, name, text):
    clip(tmp_path), clip(tmp_path, "b_b.gif")
    (tmp_path / name).write_text(text)
    assert captions(tmp_path) == {"a.gif": ("red fox",), "b_b.gif": ("b b",)}


def test_the_file_beside_a_clip_goes_before_the_table_of_the_folder(tmp_path):
    clip(tmp_path / "sub").with_suffix(".txt").write_text("beside")
    rows = [{"file_name": "a.gif", "text": "table"}, {"file_name": "gone.gif", "text": "x"}]
    (tmp_path / "sub" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    report = Report()
    assert [item.captions for item in find_items(tmp_path, report)] == [("beside",)]
    assert list(report.skipped) == [str(tmp_path / "sub" / "gone.gif")]


@pytest.mark.parametrize(("stored", "listed"), [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_names_match_in_either_form_of_their_letters(tmp_path, stored, listed):
    there, said = (unicodedata.normalize(form, "café") for form in (stored, listed))
    clip(tmp_path, f"{there}/{there}.gif")
    (tmp_path / there / f"{said}.txt").write_text("a cup")
    (tmp_path / "t.jsonl").write_text(json.dumps({"file": f"{said}/{said}.gif", "caption": "a list"}))
    assert [*captions(tmp_path).values()] == [("a cup",)]
    assert [*captions(tmp_path / "t.jsonl").values()] == [("a list",)]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"file": "a.gif", "caption": 5}, "neither a text nor a list"),
        ({"file_name": "a.gif", "text": ["x", None, "2"]}, ("x", "2")),
        ({"image_path": "a.gif", "caption": "\ud83d end"}, ("? end",)),
        ({"file": "a.gif", "caption": ""}, ("",)),
        ({"file": "a.gif", "caption": None}, "its caption is null"),
        ({"file": "a.gif", "caption": float("nan")}, "its caption is null"),
        ({"file": "a.gif", "caption": []}, "its list of captions is empty"),
        ({"file": "a.gif", "caption": True}, "neither a text nor a list"),
        ({"file": "a.gif", "caption": {"en": "x"}}, "neither a text nor a list"),
        ({"file": "a.gif", "caption": [["x"]]}, "neither a text nor a list"),
        ({"file": "x" * 300, "caption": "x"}, "no such file"),
        ({"file": "\0", "caption": "x"}, "no such file"),
        ({"file": 5, "caption": "x"}, "line 1: expected an object"),
        ({"file": None, "caption": "x"}, "line 1: expected an object"),
        ([], "line 1: expected an object"),
    ],
)
def test_rows_as_tools_write_them(tmp_path, row, expected):
    clip(tmp_path)
    (tmp_path / "t.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    if isinstance(expected, tuple):
        assert captions(tmp_path / "t.jsonl") == {"a.gif": expected}
    else:
        with pytest.raises(DataError, match=expected):
            captions(tmp_path / "t.jsonl")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_lists_in_other_encodings_with_separators_inside_the_text(tmp_path, encoding):
    clip(tmp_path), clip(tmp_path, "b.gif")
    rows = [{"file": "a.gif", "caption": "a \u2028\x85café"}, {"file": "b.gif", "caption": "b"}]
    text = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "t.jsonl").write_bytes(text.encode(encoding))
    assert captions(tmp_path / "t.jsonl") == {"a.gif": ("a  café",), "b.gif": ("b",)}


@pytest.mark.parametrize("name", ["t.jsonl", "t.csv"])
def test_a_list_that_cannot_be_read_is_named(tmp_path, name):
    clip(tmp_path)
    (tmp_path / name).write_bytes(b'{"file": "a.gif", "caption": "caf\xe9"}\n')
    with pytest.raises(DataError, match=rf"{name} is neither UTF-8 nor UTF-16"):
        find_items(tmp_path / name, Report())


@pytest.mark.parametrize(
    "text",
    [
        'file_name,text\na.gif,"a dog, ""Rex"""\n',
        'file_name;text\r\na.gif;"a dog, ""Rex"""\r\n',
        'sep=;\r\nfile_name;text\r\na.gif;"a dog, ""Rex"""\r\n',
        'file_name\ttext\na.gif\t"a dog, ""Rex"""\n',
        '\ufefftext, image\n"a dog, ""Rex""", a.gif\n',
        'videoid,name,page_dir\na,"a dog, ""Rex"""\n',
        'videoid;name;page_dir;more\na;"a dog, ""Rex""";;1;2\n',
    ],
)
def test_tables_of_spreadsheets(tmp_path, text):
    clip(tmp_path)
    (tmp_path / "t.csv").write_bytes(text.encode())
    assert captions(tmp_path / "t.csv") == {"a.gif": ('a dog, "Rex"',)}


@pytest.mark.parametrize("name", ["../x/a.gif", "/{root}/x/a.gif", "..\\x\\a.gif", "sub/../../x/a.gif"])
def test_a_list_opens_only_what_lies_below_it(tmp_path, name):
    clip(tmp_path / "x"), clip(tmp_path / "data" / "sub", "b.gif")
    name = name.replace("/{root}", str(tmp_path))
    report, source = Report(), tmp_path / "data" / "t.jsonl"
    inside = str(tmp_path / "data" / "sub" / "b.gif")
    rows = [
        {"file": name, "caption": "x"},
        {"file": "sub\\b.gif", "caption": "b"},
        {"file": inside, "caption": "c"},
    ]
    source.write_text("\n".join(map(json.dumps, rows)))
    table = tmp_path / "data" / "t.csv"
    table.write_text(f"videoid,name,page_dir\n{name},x,\nsub/b,b,\n")
    assert [item.captions for item in find_items(source, report)] == [("b",), ("c",)]
    assert [item.captions for item in find_items(table, report)] == [("b",)]
    assert all("outside" in why or "\\" in file for file, why in report.skipped.items())
    assert len(report.skipped) in (1, 2)
    if name.startswith("/"):  # unless its folder was given
        assert len(find_items(source, Report(), tmp_path)) == 2


def test_what_is_left_out_of_a_folder_is_reported_once(tmp_path):
    for name in ("a.gif", "B.MP4", "c.mts", ".d.gif", "._a.gif", "e.psd", "f.jxl", "notes.md", "Thumbs.db"):
        clip(tmp_path, name)
    clip(tmp_path / "@eaDir" / "a.gif", "SYNOPHOTO_THUMB_M.gif"), clip(tmp_path / ".thumbs", "x.gif")
    clip(tmp_path / "ünder")
    (tmp_path / "lost.gif").symlink_to(tmp_path / "nothing.gif")
    (tmp_path / "again").symlink_to(tmp_path / "ünder")
    (tmp_path / "loop").symlink_to(tmp_path)
    report = Report()
    found = [item.path.relative_to(tmp_path).as_posix() for item in find_items(tmp_path, report)]
    assert found == ["B.MP4", "a.gif", "c.mts", "ünder/a.gif"]
    skipped = {str(tmp_path / name) for name in (".d.gif", "._a.gif", "e.psd", "f.jxl", "@eaDir", "lost.gif")}
    assert set(report.skipped) == skipped | {str(tmp_path / "again"), str(tmp_path / "loop")}


def test_linked_folders_are_read(tmp_path):
    clip(tmp_path / "elsewhere")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    assert [item.path for item in find_items(tmp_path / "data", Report())] == [tmp_path / "data/linked/a.gif"]


def test_names_with_line_breaks_and_broken_letters_are_spoken(tmp_path):
    clip(tmp_path, "a\nred\x1b[31m_fox.gif"), clip(tmp_path, "b\udce9.gif")
    assert sorted(captions(tmp_path).values()) == [("a red [31m fox",), ("b?",)]


@pytest.mark.parametrize("name", ["a.gif.caption", "a.Txt", "a.Caption"])
def test_captions_by_rarer_names(name, tmp_path):
    clip(tmp_path)
    (tmp_path / name).write_text("a fox")
    assert find_items(tmp_path, Report())[0].captions == ("a fox",)


def test_a_pipe_is_no_list(tmp_path):
    os.mkfifo(tmp_path / "list.csv")
    with pytest.raises(DataError, match=r"list\.csv is no regular file"):
        find_items(tmp_path / "list.csv", Report())
