"""The public interface: names at the root, and docs that use no other way in."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import stillmotion as sm

ROOT = Path(__file__).parents[1]
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_PYTHON = {"json", "configs", "models", "metadata"}
"""What else is spelled stillmotion.NAME: a file, keys of headers, a group of entry points."""

OVERRIDES = {"ControlAttachment.on_attach", "ControlAttachment.detach"}
"""What the base class explains."""


def names_used(text: str) -> set[str]:
    """Names and paths behind `stillmotion.` or `sm.`, and modules of `from stillmotion.x import`."""
    found = set(re.findall(r"(?<![\w/-])(?:stillmotion|sm)\.(\w+(?:\.[a-z]\w*)*)", text))
    return {name for name in found if name.split(".")[0] not in NOT_PYTHON}


@pytest.mark.parametrize("file", DOCS, ids=lambda file: file.name)
def test_docs_show_root_names_only(file: Path) -> None:
    for name in names_used(file.read_text(encoding="utf-8")):
        first, *rest = name.split(".")
        assert first in dir(sm), f"{file.name} shows stillmotion.{name}"
        assert not inspect.ismodule(getattr(sm, first)), f"{file.name} shows the module stillmotion.{name}"
        assert all(hasattr(getattr(sm, first), part) for part in rest[:1]), f"there is no stillmotion.{name}"


def test_the_search_finds_deep_paths() -> None:
    text = "`stillmotion.checkpoints.load_base(x)` from stillmotion.video import y"
    text += " sm.Clip.load('stillmotion.json')"
    assert names_used(text) == {"checkpoints.load_base", "video", "Clip.load"}


def test_every_public_name_is_in_the_reference() -> None:
    reference = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    missing = [name for name in sm.__all__ if not re.search(rf"\b{name}\b", reference)]
    assert not missing


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(sm.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.asname: node.module for node in block.body for alias in node.names if alias.name != "*"}
    assert seen == {name: f"stillmotion.{home}" for name, home in sm._HOMES.items()}


@pytest.mark.parametrize("name", sm.__all__)
def test_public_names_have_a_docstring_and_typed_arguments(name: str) -> None:
    found = getattr(sm, name)
    assert name in dir(sm)
    if not callable(found):
        return
    assert found.__doc__ and not found.__doc__.startswith(f"{name}("), f"{name} has no docstring of its own"
    if inspect.isfunction(found):
        assert all(p.annotation is not p.empty for p in inspect.signature(found).parameters.values())


def functions(name: str) -> list[tuple[str, Callable[..., object]]]:
    """The function, or the public methods of the class, with their names."""
    found = getattr(sm, name)
    if inspect.isfunction(found):
        return [(name, found)]
    own = vars(found).items() if inspect.isclass(found) and found.__module__.startswith("stillmotion") else ()
    plain = [(key, getattr(value, "__func__", value)) for key, value in own if not key.startswith("_")]
    return [(f"{name}.{key}", value) for key, value in plain if inspect.isfunction(value)]


@pytest.mark.parametrize("name", sm.__all__)
def test_more_than_two_arguments_are_explained_one_by_one(name: str) -> None:
    for called, function in functions(name):
        given = [each for each in inspect.signature(function).parameters if each not in ("self", "cls")]
        assert function.__doc__ or called in OVERRIDES, f"{called} has no docstring"
        if len(given) > 2:
            assert "Args:" in (function.__doc__ or ""), f"{called} has no Args"
            for each in given:
                assert f" {each}: " in (function.__doc__ or ""), f"Args of {called} lacks {each}"


def test_conditions_are_root_names() -> None:
    from stillmotion.sampling.conditions import CONDITIONS

    for place in CONDITIONS.values():
        module, _, name = place.partition(":")
        assert name in sm.__all__ and getattr(sm, name) is getattr(importlib.import_module(module), name)
    with pytest.raises(AttributeError, match="nothing"):
        _ = sm.nothing


def test_both_packages_have_the_same_version() -> None:
    import stillmotion_emoji

    for pyproject in (ROOT / "pyproject.toml", ROOT / "packages" / "stillmotion-emoji" / "pyproject.toml"):
        assert f'version = "{sm.__version__}"' in pyproject.read_text(encoding="utf-8")
    assert stillmotion_emoji.__version__ == sm.__version__
    assert importlib.metadata.version("stillmotion-emoji") == sm.__version__


def test_looking_at_the_names_imports_nothing_heavy() -> None:
    code = "import sys, stillmotion; dir(stillmotion)"
    code += "; assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("file", [ROOT / "CONTRIBUTING.md", *DOCS], ids=lambda file: file.name)
def test_files_that_the_docs_name_are_there(file: Path) -> None:
    """`motion/families.py` is in the package, `tests/...` and `docs/...` in the repository."""
    named = re.findall(r"`((?:\w+/)+(?:\w+\.(?:py|md|yaml))?)`", file.read_text(encoding="utf-8"))
    rooms = {path.name for path in Path(sm.__file__).parent.iterdir()} | {"tests", "docs", "configs"}
    for name in named:
        if name.split("/")[0] in rooms:
            homes = (Path(sm.__file__).parent, Path(sm.__file__).parent / "training", ROOT)
            assert any((home / name).exists() for home in homes), f"{file.name} names {name}"


LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(#[^)\s]*)?\)")


def test_links_between_documents_lead_somewhere() -> None:
    for file in [ROOT / "CONTRIBUTING.md", ROOT / "packages" / "stillmotion-emoji" / "README.md", *DOCS]:
        for link, anchor in LINK.findall(file.read_text(encoding="utf-8")):
            target = (file.parent / link) if link else file
            assert target.exists(), f"{file.name} links to {link}"
            if anchor and target.suffix == ".md":
                assert anchor[1:] in anchors(target), f"{file.name} links to {link}{anchor}"


def anchors(file: Path) -> set[str]:
    """Anchors of headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
