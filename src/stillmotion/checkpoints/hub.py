"""Where a model is: a path, an installed model's name, or a name on the hub."""

from __future__ import annotations

import re
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path, PurePosixPath

from stillmotion.checkpoints.files import SUFFIXES
from stillmotion.errors import WeightsError
from stillmotion.foreign import printable
from stillmotion.request.installed_models import (
    DEFAULT_MODEL,
    INSTALL,
    bundled_folder,
    installed_models,
    installed_names,
)

INSIDE = ("motion", "motion_adapter")
"""Where a pipeline folder keeps its motion: ours, and the one of diffusers' AnimateDiffPipeline."""

PRODUCTS = (
    "lora.safetensors",
    "motion-lora.safetensors",
    "adapter.safetensors",
    "embedding.safetensors",
    "model",
    "model.safetensors",
    "motion",
)
"""What runs of `stillmotion train` end in, one of them in each run's folder."""

_HUB = re.compile(r"(?!.*\.\.)(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:/(?P<file>\w[\w./-]*))?")


def locate(source: str | Path) -> Path:
    """The file or folder that `source` means: a path, an installed model, or on the hub "owner/model[/file]".

    The folder of a run of `stillmotion train` means what the run made.
    Installed are models ("emoji") and their LoRAs ("high-contrast", "zoom-in"). Raises `WeightsError` in one
    sentence if there is none, or if the hub cannot be reached.
    """
    name = str(source)
    if "\0" in name:
        raise WeightsError(f"{printable(name)[:200]!r} is no name of a file: it has a NUL character in it.")
    try:
        path = Path(source).expanduser()
        there = path.exists()
    except (OSError, RuntimeError) as error:  # a name that is too long, a loop of links, an unknown home
        raise WeightsError(f"{printable(name)[:200]} cannot be looked up ({_reason(error)}).") from error
    if there:
        return _product_of(path)
    if name == DEFAULT_MODEL or name in bundled_names():
        return bundled_folder(name)
    if "/" not in name and (lora := bundled_loras().get(name)):
        return lora
    found = _HUB.fullmatch(name) if isinstance(source, str) else None
    if not found or (Path(name).suffix in SUFFIXES and not found["file"]):
        without = "" if installed_names() else f" No model is installed either: {INSTALL}."
        raise WeightsError(f"There is no file or folder {source}.{_similar(path)}{without}")
    return _fetch(name, found["repo"], found["file"])


def _product_of(path: Path) -> Path:
    """What a run of `stillmotion train` made, if the path is such a run's folder, else the path."""
    if not (path / "loss.csv").is_file():
        return path
    made = next((path / name for name in PRODUCTS if (path / name).exists()), None)
    if made is None:
        raise WeightsError(
            f"{path} is a run of stillmotion train that has written no weights yet (looked for "
            f"{', '.join(PRODUCTS)}): let it reach its first checkpoint."
        )
    return made


def bundled_names() -> list[str]:
    """Names of the models that are installed."""
    return installed_names()


def bundled_loras() -> dict[str, Path]:
    """LoRAs that come with the installed models, by name ("high-contrast", "zoom-in")."""
    folders = installed_models().values()
    return {file.stem: file for folder in folders for file in sorted(folder.glob("loras/*.safetensors"))}


def _fetch(name: str, repo: str, file: str | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        if file and Path(file).name.startswith("adapter_model."):  # its scale is in the file beside it
            hf_hub_download(repo, str(PurePosixPath(file).with_name("adapter_config.json")))
        return Path(hf_hub_download(repo, file)) if file else _fetch_folder(repo)
    except (LocalEntryNotFoundError, ConnectionError) as error:
        raise WeightsError(
            f"{name} is no file or folder here, nor in the hub's local cache, and the hub cannot be reached. "
            "Check the name and the connection, or download it and give its path."
        ) from error
    except (OSError, HFValidationError) as error:
        raise WeightsError(
            f"{name} is no file or folder here, and the hub does not give it out ({type(error).__name__}). "
            "Check the name, or log in with `hf auth login` if it is a gated model."
        ) from error


def _fetch_folder(repo: str) -> Path:
    """The model in a hub repository, without its other forms beside it (pickles, halves, single files)."""
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(repo, allow_patterns=["*.json"]))
    if (folder / "model_index.json").is_file():
        from diffusers import DiffusionPipeline

        return Path(DiffusionPipeline.download(repo))
    if (folder / "config.json").is_file():
        return Path(
            snapshot_download(repo, allow_patterns=["*.json", "*.safetensors"], ignore_patterns=["*.fp16.*"])
        )
    raise WeightsError(
        f"{repo} on the hub is no model folder (no model_index.json or config.json). "
        f"Name the file you want in it, as in {repo}/model.safetensors."
    )


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _similar(path: Path) -> str:
    """A hint at files of nearly the same name in the same folder, and at installed models and LoRAs."""
    folder = path.parent
    names: dict[str, str] = {}
    with suppress(OSError):  # a folder that may not be read: there is no hint from it then
        entries = folder.iterdir() if folder.is_dir() else ()
        names = {entry.name: str(folder / entry.name) for entry in entries}
    if path.name == str(path):
        names |= {name: name for name in (*bundled_names(), *bundled_loras())}
    close = get_close_matches(path.name, names, n=2, cutoff=0.7)
    return f" Did you mean {' or '.join(names[name] for name in close)}?" if close else ""
