"""Hostile and odd files of weights: what other trainers leave in honest ones is skipped, the rest refused."""

from __future__ import annotations

import argparse
import collections
import datetime
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from stillmotion.checkpoints import pickles
from stillmotion.checkpoints.base_model import load_base
from stillmotion.checkpoints.embeddings import read_embedding
from stillmotion.checkpoints.files import read_header, read_state
from stillmotion.checkpoints.identify import identify
from stillmotion.checkpoints.lora_model import Lora
from stillmotion.checkpoints.motion_detect import METADATA_KEY, family_from_json, family_to_json
from stillmotion.checkpoints.motion_model import MotionModel
from stillmotion.errors import Damaged, Unsafe, WeightsError
from stillmotion.motion.families import FAMILIES

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3)}
LEFTOVERS = {
    "numpy number": np.float32(0.5),
    "numpy array": np.arange(3),
    "defaultdict": collections.defaultdict(list, {"lr": [1, 2]}),
    "namespace": argparse.Namespace(lr=1e-4, out=Path("x")),
    "path": Path("runs/1"),
    "date": datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone.utc),
    "Counter": collections.Counter("aab"),
    "set": {1, 2},
    "version": torch.torch_version.TorchVersion("2.1.0"),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", LEFTOVERS)
def test_what_trainers_leave_beside_the_weights_is_skipped(name: str, zipped: bool, tmp_path: Path) -> None:
    file = tmp_path / "x.ckpt"
    content = {"state_dict": STATE, "hyper_parameters": {"deep": LEFTOVERS[name]}, "args": LEFTOVERS[name]}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    assert read_header(file) == {"a.weight": (2, 3)}
    assert torch.equal(read_state(file)["a.weight"], STATE["a.weight"])


def test_classes_of_packages_that_are_not_installed_are_skipped(tmp_path: Path) -> None:
    """OmegaConf's DictConfig as Lightning's hyper-parameters: its module need not exist to be skipped."""
    program = pickle.dumps(STATE | {"x": argparse.Namespace(a=1)}, 2)  # the shape of a class with a state
    assert b"cargparse\nNamespace" in program
    torch.save({"state_dict": STATE, "cfg": argparse.Namespace(a=1)}, tmp_path / "x.ckpt")
    with zipfile.ZipFile(tmp_path / "x.ckpt") as archive, zipfile.ZipFile(tmp_path / "y.ckpt", "w") as out:
        for entry in archive.infolist():
            data = archive.read(entry)
            out.writestr(
                entry.filename, data.replace(b"argparse\nNamespace", b"omegaconf.dictconfig\nDictConfig")
            )
    assert read_header(tmp_path / "y.ckpt") == {"a.weight": (2, 3)}


def test_functions_that_do_harm_are_refused_wherever_they_stand(tmp_path: Path) -> None:
    for function in (os.system, eval, Path.touch, getattr, __import__):
        content = {"state_dict": STATE, "hyper_parameters": [{"x": function}]}
        torch.save(content, tmp_path / "x.ckpt")
        with pytest.raises(Unsafe, match="wants to run code"):
            read_header(tmp_path / "x.ckpt")


def test_a_small_file_cannot_announce_large_tensors(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "x.pt")
    for read in (read_header, read_state):
        with pytest.raises(Damaged, match="announces tensors of"):
            read(tmp_path / "x.pt")
    torch.save({"a": torch.zeros(1, 64).expand(8, 64)}, tmp_path / "view.pt")  # an honest view
    assert read_header(tmp_path / "view.pt") == {"a": (8, 64)}


def test_sparse_tensors_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.eye(3).to_sparse()}, tmp_path / "x.pt")
    with pytest.raises(Damaged, match="sparse"):
        read_state(tmp_path / "x.pt")


def test_archives_that_were_packed_again_are_read_and_bombs_refused(tmp_path: Path) -> None:
    state = {"a": torch.randn(64, 64)}
    torch.save(state, tmp_path / "x.pt")
    for name, extra in (("packed.pt", 0), ("bomb.pt", 2**24)):
        with (
            zipfile.ZipFile(tmp_path / "x.pt") as archive,
            zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as out,
        ):
            for entry in archive.infolist():
                out.writestr(entry.filename, archive.read(entry))
            out.writestr("x/padding", bytes(extra))
    assert torch.equal(read_state(tmp_path / "packed.pt")["a"], state["a"])
    with pytest.raises(Damaged, match="unpacked it is more than"):
        read_header(tmp_path / "bomb.pt")


def test_other_archives_and_protocols_are_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.pt", "w") as out:
        out.writestr("a.txt", "x")
    with pytest.raises(WeightsError, match="a zip archive without a torch checkpoint"):
        read_header(tmp_path / "photos.pt")
    torch.save(STATE, tmp_path / "new.pt", pickle_protocol=4)
    with pytest.raises(WeightsError, match="protocol 4"):
        read_header(tmp_path / "new.pt")
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(WeightsError, match="no regular file"):
        read_header(tmp_path / "pipe.safetensors")
    (tmp_path / "x.gguf").write_bytes(b"GGUF\3\0\0\0")
    (tmp_path / "x.onnx").write_bytes(b"\x08\x07\x12\x07pytorch")
    for name in ("GGUF", "ONNX"):
        with pytest.raises(WeightsError, match=name):
            read_header(tmp_path / f"x.{name.lower()}")


@pytest.mark.parametrize(
    "index",
    [
        {},
        {"weight_map": []},
        {"weight_map": {}},
        {"weight_map": {"a": 5}},
        {"weight_map": {"a": "../secret.safetensors"}},
        {"weight_map": {"a": "/etc/passwd"}},
        {"weight_map": {"a": "..\\x.safetensors"}},
        {"weight_map": {"a": "missing.safetensors"}},
        {"weight_map": {"a": ""}},
        {"weight_map": {"a": "."}},
    ],
)
def test_indexes_of_shards_name_files_beside_them_only(index: dict, tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "secret.safetensors")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(Damaged):
        read_state(tmp_path / "m")


READERS = (identify, Lora.load, MotionModel.load, read_embedding, load_base, Path.read_bytes)


def damaged_archives(good: bytes) -> dict[str, bytes]:
    """A torch file with one thing in its archive wrong each."""
    entry = good.find(b"PK\x01\x02")
    pickled = good.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_vX", 1)
    assert entry > 0 and pickled != good

    def at(content: bytes, place: int, value: int) -> bytes:
        return content[:place] + bytes([value]) + content[place + 1 :]

    return {
        "checksum": pickled,
        "version 12.8": at(pickled, entry + 6, 0x80),
        "unknown compression": at(good, entry + 10, 99),
        "lzma": at(good, entry + 10, 14),
        "encrypted": at(good, entry + 8, good[entry + 8] | 1),
        "a name elsewhere": at(good, entry + 42, 200),
        "no list of files": good[:entry],
    }


@pytest.mark.parametrize(
    "damage", damaged_archives(b"PK\x01\x02".rjust(99) + b"_rebuild_tensor_v2".ljust(99))
)
def test_damage_of_an_archive_is_a_sentence_of_every_reader(damage: str, tmp_path: Path) -> None:
    file = tmp_path / "x.pt"
    torch.save(STATE, file)
    file.write_bytes(damaged_archives(file.read_bytes())[damage])
    for read in READERS[:-1]:
        with pytest.raises(WeightsError, match=r"x\.pt") as caught:
            read(file)
        assert "\n" not in str(caught.value)
    assert READERS[-1](file)


def test_steps_of_all_pickles_of_a_file_count_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pickles, "MOST_OPCODES", 100)
    one = b"\x80\x02" + b"N0" * 20 + b"N."
    (tmp_path / "x.pt").write_bytes(one * 5)
    with pytest.raises(Damaged, match="longer than any of weights"):
        identify(tmp_path / "x.pt")
    (tmp_path / "y.pt").write_bytes(one * 2)
    with pytest.raises(Damaged, match="not a torch checkpoint"):
        identify(tmp_path / "y.pt")


@pytest.mark.parametrize("name", ["x" * 2000, "a\x1b[2Jb.weight", "a\0b"])
def test_names_that_are_no_names_are_refused(name: str, tmp_path: Path) -> None:
    save_file({name: torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(Damaged, match="is no name of a tensor") as caught:
        read_header(tmp_path / "x.safetensors")
    assert len(str(caught.value)) < 300 and str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("layers", [10**6] * 4),
        ("channels", [10**9] * 4),
        ("heads", "8"),
        ("norm_groups", 0),
        ("positions", 10**9),
        ("beta_end", "x"),
        ("guidance_scale", -1),
        ("frames", True),
        ("up", [[1, "a"]]),
        ("motion_norm", "batch"),
        ("name", None),
        ("scheduler", "x" * 1000),
    ],
)
def test_metadata_of_ours_is_checked_column_by_column(column: str, value: object) -> None:
    columns = json.loads(family_to_json(FAMILIES["sd15-v2"]))
    assert family_from_json(json.dumps(columns)) == FAMILIES["sd15-v2"]
    with pytest.raises(Damaged):
        family_from_json(json.dumps({**columns, column: value}))


def test_a_spec_that_is_not_that_of_the_tensors_is_refused(tmp_path: Path) -> None:
    name = "down_blocks.0.motion_modules.0.temporal_transformer.norm.weight"
    metadata = {METADATA_KEY: family_to_json(FAMILIES["sd15-v2"])}
    save_file({name: torch.zeros(320)}, tmp_path / "x.safetensors", metadata=metadata)
    with pytest.raises(Damaged, match="of another shape"):
        identify(tmp_path / "x.safetensors")
