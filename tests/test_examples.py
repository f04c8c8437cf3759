"""The examples as they stand, with a tiny model in the place of the bundled one."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from loras import motion_parts
from safetensors.torch import save_file
from tiny import tiny_lora, tiny_motion

import stillmotion as sm

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


@pytest.fixture
def model(emoji_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny model, with a style and a camera move, installed as "emoji"; the folder is empty."""
    folder = shutil.copytree(emoji_folder, tmp_path / "model")
    (folder / "loras").mkdir()
    save_file(tiny_lora(), folder / "loras" / "high-contrast.safetensors")
    sm.Lora(motion_parts(tiny_motion())).save(folder / "loras" / "zoom-in.safetensors")
    monkeypatch.setattr("stillmotion.request.installed_models._folder", lambda _: folder)
    monkeypatch.chdir(tmp_path)
    return folder


def test_there_are_five_scripts_and_a_notebook() -> None:
    assert (len(SCRIPTS), len(NOTEBOOKS)) == (5, 1)


@pytest.mark.filterwarnings("ignore::stillmotion.StillmotionWarning")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_runs_and_leaves_its_files(script: Path, model: Path) -> None:
    text = script.read_text(encoding="utf-8").replace("max_train_steps=20", "max_train_steps=2")
    exec(compile(text, str(script), "exec"), {"__name__": "__main__"})
    promised = re.findall(r'save\("(\w+\.(?:gif|webp))"', text)
    assert promised and all(sm.Clip.load(name).frames.std() > 0 for name in promised)


@pytest.mark.filterwarnings("ignore::stillmotion.StillmotionWarning")
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_the_cells_of_a_notebook_run_in_order(notebook: Path, model: Path) -> None:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    here: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            exec("".join(cell["source"]), here)
    assert Path("butterfly.mp4").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_a_notebook_runs_in_jupyter(notebook: Path, tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    opened = nbformat.read(notebook, as_version=4)
    os.environ.setdefault("JUPYTER_PLATFORM_DIRS", "1")
    nbclient.NotebookClient(opened, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert (tmp_path / "butterfly.mp4").is_file()
