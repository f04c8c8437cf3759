"""Models as Python packages: found by entry point; what is wrong with one is said in a sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import stillmotion_emoji

from stillmotion.checkpoints.hub import bundled_loras, locate
from stillmotion.errors import UnknownFile, WeightsError
from stillmotion.request.installed_models import bundled_folder, installed_models, installed_names
from stillmotion.request.model_card import ModelCard

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a package on sys.path as pip would: a module, and metadata with its entry points."""
    monkeypatch.syspath_prepend(tmp_path)

    def put(package: str, name: str, value: str, code: str) -> None:
        (tmp_path / f"{package}.py").write_text(code)
        metadata = tmp_path / f"{package}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[stillmotion.models]\n{name} = {value}\n")

    return put


def test_the_model_of_stillmotion_emoji_is_found() -> None:
    assert "emoji" in installed_names()
    assert bundled_folder() == locate("emoji") == stillmotion_emoji.FOLDER == stillmotion_emoji.folder()
    assert ModelCard.read(bundled_folder()).name == "emoji"
    assert bundled_loras()["zoom-in"].parent == stillmotion_emoji.FOLDER / "loras"


def test_a_model_of_others_goes_by_its_name(install: Install, tmp_path: Path) -> None:
    (tmp_path / "m" / "loras").mkdir(parents=True)
    (tmp_path / "m" / "loras" / "theirs.safetensors").touch()
    install("theirs_1", "tiny-one", "theirs_1:folder", f"def folder(): return {str(tmp_path / 'm')!r}")
    assert locate("tiny-one") == installed_models()["tiny-one"] == tmp_path / "m"
    assert locate("theirs") == tmp_path / "m" / "loras" / "theirs.safetensors"
    assert locate("emoji") == stillmotion_emoji.FOLDER


@pytest.mark.parametrize(
    ("package", "value", "code"),
    [
        ("broken_1", "broken_1:folder", "import no_such_module"),
        ("broken_2", "broken_2:nothing", ""),
        ("broken_3", "broken_3:folder", "folder = 'not a function'"),
        ("broken_4", "broken_4:folder", "def folder(): return 5"),
        ("broken_5", "broken_5:folder", "def folder(): return '/no/such/place'"),
        ("broken_6", "broken_6:folder", "def folder(): raise FileNotFoundError('gone')"),
    ],
)
def test_a_damaged_package_is_named_and_the_others_work(install, package, value, code) -> None:
    install(package, "hurt", value, code)
    with pytest.raises(UnknownFile, match=f"'hurt' of the package {package}.*reinstall the package"):
        locate("hurt")
    assert locate("emoji") == stillmotion_emoji.FOLDER


def test_two_packages_with_one_name_are_not_guessed_between(install: Install) -> None:
    install("first_m", "same", "first_m:folder", "def folder(): return '.'")
    install("second_m", "same", "second_m:folder", "def folder(): return '.'")
    with pytest.raises(UnknownFile, match="first_m and second_m both bring a model named 'same'"):
        locate("same")


def test_without_any_model_a_wrong_name_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsError, match="no file or folder zoom-on") as installed:
        locate("zoom-on")
    assert "pip install" not in str(installed.value)
    monkeypatch.setattr("stillmotion.request.installed_models.entry_points", lambda **_: _nothing())
    with pytest.raises(WeightsError, match=r"no file or folder zoom-in.*pip install 'stillmotion\[emoji\]'"):
        locate("zoom-in")


def _nothing():
    from importlib.metadata import EntryPoints

    return EntryPoints()
