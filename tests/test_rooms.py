"""The house order, walked through the imports: floors import only what is below; files stay small.

To change the plan, change FLOORS here and docs/architecture.md in the same commit, and say why.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import stillmotion

HOME = Path(stillmotion.__file__).parent
FILES = sorted(HOME.rglob("*.py"))

FLOORS = (
    {"errors"},
    {"atomic", "foreign"},
    {"diffusion"},
    {"request", "lora", "runtime", "metrics"},
    {"motion", "video"},
    {"attachments", "datasets"},
    {"checkpoints"},
    {"sampling"},
    {"training"},
    {"cli"},
    {"__main__"},
)
"""From the ground up. `atomic` is how every room writes; `diffusion` is mathematics that needs only `errors`,
while model cards and motion families hold its `NoiseSchedule`; `video` stands above `request`, which every
clip carries; `training` draws its samples with `sampling`."""

TRAINING_FLOORS = ("config", "engine", "denoiser", "samples", "data", "targets", "trainer", "")
"""Inside training: settings (no torch), the loop (knows no diffusion), the base and its loss, sample sheets,
images and clips, what can be trained, and the package that names them all."""

FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
MOST_LINES = 400
MOST_FUNCTION_LINES = 60
MOST_ARGUMENTS = 12


def room_of(file: Path) -> str:
    """First folder or file name inside the package; "" for the package itself."""
    first = file.relative_to(HOME).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imported_rooms(file: Path) -> Iterator[tuple[str, int]]:
    """Rooms that a file imports from, with the line; also inside functions and for type checkers."""
    package = ["stillmotion", *file.relative_to(HOME).parts[:-1]]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            whole = module in ("stillmotion", "")
            names = [f"{module}.{alias.name}" for alias in node.names] if whole else [module]
        for name in names:
            parts = name.split(".")
            if parts[0] == "stillmotion" and len(parts) > 1:
                yield parts[1], node.lineno


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(HOME)))
def test_rooms_import_only_from_floors_below(file: Path) -> None:
    room = room_of(file)
    if not room:
        return  # the package names everybody for its lazy attributes
    assert room in FLOOR_OF, f"{room} has no floor yet: give it one in FLOORS"
    for other, line in imported_rooms(file):
        if other != room:
            assert FLOOR_OF[other] < FLOOR_OF[room], f"{file.name}:{line}: {room} may not import {other}"


def test_the_walk_sees_every_kind_of_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "HOME", tmp_path)
    file = tmp_path / "video" / "here.py"
    file.parent.mkdir()
    file.write_text(
        "import stillmotion.cli\n"
        "from stillmotion.sampling.animator import Animator\n"
        "from stillmotion import training\n"
        "from ..checkpoints import files\n"
        "from .. import datasets\n"
        "def f():\n    from ..cluster.ray import run\n"
        "import torch\n"
    )
    assert [room for room, _ in imported_rooms(file)] == [
        "cli",
        "sampling",
        "training",
        "checkpoints",
        "datasets",
        "cluster",
    ]


def imported_modules(file: Path) -> Iterator[tuple[str, int]]:
    """Modules of the package that a file imports from, absolutely, with the line."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("stillmotion."):
            yield node.module, node.lineno
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


def inner_room(module: str, outer: str) -> str | None:
    """The room of a module inside the package `outer`; "" for the package itself, None for others'."""
    if module == outer:
        return ""
    return module.removeprefix(f"{outer}.").partition(".")[0] if module.startswith(f"{outer}.") else None


@pytest.mark.parametrize("file", sorted((HOME / "training").rglob("*.py")), ids=lambda file: file.name)
def test_training_imports_one_way_too(file: Path) -> None:
    parts = [part.removesuffix(".py") for part in file.relative_to(HOME).parts]
    room = "" if parts[1] == "__init__" else parts[1]
    for module, line in imported_modules(file):
        other = inner_room(module, "stillmotion.training")
        if room and other in TRAINING_FLOORS and other != room:
            below = TRAINING_FLOORS.index(other) < TRAINING_FLOORS.index(room)
            assert below, f"{file.name}:{line}: training.{room} may not import {module}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(HOME)))
def test_files_and_functions_stay_small(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno < MOST_FUNCTION_LINES, f"{node.name} is too long"
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            assert len(arguments) <= MOST_ARGUMENTS, f"{node.name} has too many arguments"


HEAVY = "{'torch', 'diffusers', 'transformers', 'numpy', 'PIL', 'pydantic'}"


@pytest.mark.parametrize(
    "code",
    [
        "import stillmotion",
        "from stillmotion.cli import run; assert run(['--help']) == 0",
        "from stillmotion.cli import run; assert run(['--version']) == 0",
    ],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    check = f"import sys; heavy = {HEAVY} & set(sys.modules); assert not heavy, heavy"
    subprocess.run([sys.executable, "-c", f"{code}\n{check}"], check=True, capture_output=True, timeout=60)


def test_settings_of_trainings_need_no_torch() -> None:
    code = "import stillmotion.training, stillmotion.training.config, stillmotion.training.config.images"
    check = "import sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", f"{code}\n{check}"], check=True, capture_output=True, timeout=60)


def test_help_of_a_command_needs_no_torch() -> None:
    code = "from stillmotion.cli import run; assert run(['{}', '--help']) == 0"
    commands = "\n".join(
        code.format(name)
        for name in ("animate", "redo", "decode", "concepts", "train", "sheet", "convert", "merge")
    )
    check = "import sys; assert 'torch' not in sys.modules"
    subprocess.run(
        [sys.executable, "-c", f"{commands}\n{check}"], check=True, capture_output=True, timeout=60
    )


def test_public_names_resolve() -> None:
    for name in stillmotion.__all__:
        assert getattr(stillmotion, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = stillmotion.nonsense
