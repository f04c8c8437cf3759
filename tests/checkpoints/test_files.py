"""Reading files of weights: headers without tensors, wrappers taken off, broken files named in words."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from stillmotion.checkpoints.files import read_header, read_state, weight_files
from stillmotion.checkpoints.unwrap import strip_prefixes
from stillmotion.errors import Damaged, Unsafe, WeightsError

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b.bias": torch.zeros(4, dtype=torch.float16)}
SHAPES = {"a.weight": (2, 3), "b.bias": (4,)}


def equal(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.fixture
def safetensors(tmp_path: Path) -> Path:
    save_file(STATE, tmp_path / "x.safetensors", metadata={"who": "me"})
    return tmp_path / "x.safetensors"


def test_safetensors_header_and_state(safetensors: Path) -> None:
    header = read_header(safetensors)
    assert header == SHAPES
    assert (
        header.metadata == {"who": "me"}
        and header.parameters == 10
        and header.dtypes == {"float32", "float16"}
    )
    assert equal(read_state(safetensors), STATE)


def test_header_reads_no_tensor(tmp_path: Path) -> None:
    """A sparse file of 4 TB: whoever reads its tensor needs more memory than there is."""
    entry = {"w": {"dtype": "F32", "shape": [1000000, 1000000], "data_offsets": [0, 4 * 10**12]}}
    text = json.dumps(entry).encode()
    file = tmp_path / "huge.safetensors"
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + 4 * 10**12)
    assert read_header(file) == {"w": (1000000, 1000000)}


def test_header_of_a_torch_file_reads_no_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(STATE, tmp_path / "x.ckpt")
    loaded, load = [], torch.load

    def spy(*args, **kwargs):
        loaded.append(load(*args, **kwargs))
        return loaded[-1]

    monkeypatch.setattr(torch, "load", spy)
    assert read_header(tmp_path / "x.ckpt") == SHAPES
    assert all(tensor.is_meta for tensor in loaded[0].values())


def test_a_safetensors_by_another_name_is_known_by_its_bytes(safetensors: Path) -> None:
    renamed = safetensors.rename(safetensors.with_suffix(".ckpt"))
    assert equal(read_state(renamed), STATE)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3, "global_step": 7},
        lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}, "animatediff_config": "x"},
        lambda s: {"module": {f"_orig_mod.{k}": v for k, v in s.items()}},
        lambda s: {"controlnet": {f"module.unet.{k}": v for k, v in s.items()}},
        lambda s: {"state_dict": {"model_state_dict": s}},
        lambda s: {f"{k.split('.')[0]}._orig_mod.{k.split('.')[1]}": v for k, v in s.items()},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_wrappers_and_prefixes_come_off(wrap, zipped: bool, tmp_path: Path) -> None:
    file = tmp_path / "x.ckpt"
    torch.save(wrap(STATE), file, _use_new_zipfile_serialization=zipped)
    assert read_header(file) == SHAPES
    assert equal(read_state(file), STATE)


def test_what_stood_beside_the_weights_is_kept_in_the_header(tmp_path: Path) -> None:
    torch.save({"state_dict": STATE, "epoch": 3, "global_step": 7}, tmp_path / "x.ckpt")
    header = read_header(tmp_path / "x.ckpt")
    assert header.extras == {"epoch": 3, "global_step": 7} and header.unwrapped == ("state_dict",)


def test_unet_prefix_stays_on_loras() -> None:
    lora = {"unet.x.lora_A.weight": (4, 8), "unet.x.lora_B.weight": (8, 4)}
    assert strip_prefixes(lora) == (lora, [])
    assert strip_prefixes({"unet.x.weight": 1}) == ({"x.weight": 1}, ["unet."])


@given(st.sets(st.text("abc._01", min_size=1, max_size=8), min_size=1), st.permutations(["module.", "unet."]))
def test_prefixes_of_all_keys_come_off_and_nothing_is_lost(names: set[str], prefixes: list[str]) -> None:
    wrapped = {"".join(prefixes) + name: index for index, name in enumerate(sorted(names))}
    stripped, taken = strip_prefixes(wrapped)
    assert sorted(stripped.values()) == sorted(wrapped.values()) and set(prefixes) <= set(taken)


def test_two_names_that_become_one_are_refused() -> None:
    with pytest.raises(Damaged, match="mixes two models"):
        strip_prefixes({"a._orig_mod.b": 1, "a.b": 2})


class Touch:
    """A pickle that would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("how", ["zip", "legacy", "plain pickle"])
@pytest.mark.parametrize("read", [read_header, read_state])
def test_a_pickle_with_code_is_refused_and_not_run(how: str, read, tmp_path: Path) -> None:
    file, trace = tmp_path / "model.ckpt", tmp_path / "trace"
    content = {"a": torch.zeros(2), "b": Touch(trace)}
    if how == "plain pickle":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(Unsafe, match=r"model\.ckpt wants to run code .*pathlib.*not loaded"):
        read(file)
    assert not trace.exists()


def test_a_whole_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "m.pt")
    with pytest.raises(Unsafe, match=r"torch\.nn\.modules\.linear\.Linear"):
        read_state(tmp_path / "m.pt")


def test_leftovers_of_trainers_do_not_hinder(tmp_path: Path) -> None:
    """Old DreamBooth files carry a callback class of pytorch_lightning and losses as numpy numbers."""
    import sys
    import types

    import numpy as np

    name = "pytorch_lightning.callbacks.model_checkpoint"
    fake = types.ModuleType(name)
    fake.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": name})
    parents = {p: types.ModuleType(p) for p in ("pytorch_lightning", "pytorch_lightning.callbacks")}
    content = {"callbacks": {fake.ModelCheckpoint: {"best": 1}}, "loss": np.float64(3.0), "state_dict": STATE}
    with pytest.MonkeyPatch.context() as patch:
        for key, module in {**parents, name: fake}.items():
            patch.setitem(sys.modules, key, module)
        torch.save(content, tmp_path / "x.ckpt")
    assert name not in sys.modules
    assert read_header(tmp_path / "x.ckpt") == SHAPES
    assert equal(read_state(tmp_path / "x.ckpt"), STATE)


def _cut(path: Path, keep: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


@pytest.mark.parametrize("keep", [0.05, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
@pytest.mark.parametrize("read", [read_header, read_state])
def test_a_truncated_file_is_called_so(kind: str, keep: float, read, tmp_path: Path) -> None:
    file = tmp_path / "x.bin"
    if kind == "safetensors":
        save_file(STATE, file)
    else:
        torch.save(STATE, file, _use_new_zipfile_serialization=kind == "zip")
    _cut(file, keep)
    with pytest.raises(Damaged, match=r"x\.bin is (truncated|not a file of weights)"):
        read(file)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html>\n<html><head><title>Log in</title>", "web page"),
        (b'\n  <html lang="en">', "web page"),
        (b'{"error": "Access denied"}', "JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n", "git-lfs pointer"),
        (b"GGUF\x03\x00\x00\x00", "GGUF"),
        (b"hello, I am a text", "not a file of weights"),
    ],
)
def test_what_is_no_file_of_weights_is_called_by_its_name(content: bytes, words: str, tmp_path: Path) -> None:
    file = tmp_path / "mm.safetensors"
    file.write_bytes(content)
    for read in (read_header, read_state):
        with pytest.raises(WeightsError, match=words) as caught:
            read(file)
        assert "mm.safetensors" in str(caught.value) and "\n" not in str(caught.value)


def test_a_broken_header_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes((20).to_bytes(8, "little") + b'{"a": oh no' + b" " * 20)
    with pytest.raises(Damaged, match="header that cannot be read"):
        read_header(tmp_path / "x.safetensors")


def test_a_missing_file_and_a_list_of_tensors(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="There is no file"):
        read_header(tmp_path / "none.ckpt")
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    with pytest.raises(Damaged, match="holds a list"):
        read_state(tmp_path / "list.pt")


def test_folders(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no weights in it"):
        weight_files(tmp_path)
    save_file(STATE, tmp_path / "one.safetensors")
    assert weight_files(tmp_path) == [tmp_path / "one.safetensors"]
    save_file(STATE, tmp_path / "two.safetensors")
    with pytest.raises(WeightsError, match=r"2 files of weights \(one.safetensors, two.safetensors\)"):
        weight_files(tmp_path)
    save_file(STATE, tmp_path / "diffusion_pytorch_model.fp16.safetensors")
    (tmp_path / "config.json").write_text('{"x": 1}')
    assert read_header(tmp_path).config == {"x": 1}


def test_shards_are_read_together_and_a_missing_one_is_named(tmp_path: Path) -> None:
    names = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for name, key in zip(names, STATE, strict=True):
        save_file({key: STATE[key]}, tmp_path / name)
    index = {"weight_map": dict(zip(STATE, names, strict=True))}
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert read_header(tmp_path) == SHAPES
    assert equal(read_state(tmp_path), STATE)
    (tmp_path / names[1]).unlink()
    with pytest.raises(Damaged, match="00002-of-00002.safetensors is missing"):
        read_state(tmp_path)
