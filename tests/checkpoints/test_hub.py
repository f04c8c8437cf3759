"""What is fetched from the hub: one form of a model, never its pickles; the hub itself is a fake here."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
import pytest
from diffusers import DiffusionPipeline

from stillmotion.checkpoints.hub import locate
from stillmotion.errors import WeightsError

ADAPTER = (
    "config.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.bin",
    "README.md",
)


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A hub with one repository; gives the names of what was fetched from it."""

    def hub(*files: str) -> set[str]:
        taken: set[str] = set()

        def snapshot(repo, allow_patterns=None, ignore_patterns=()):
            for file in files:
                wanted = any(fnmatch(file, pattern) for pattern in allow_patterns)
                if wanted and not any(fnmatch(file, pattern) for pattern in ignore_patterns):
                    (tmp_path / file).parent.mkdir(exist_ok=True)
                    (tmp_path / file).write_text("{}")
                    taken.add(file)
            return str(tmp_path)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
        return taken

    return hub


def test_of_an_adapter_one_form_is_fetched(fetched, tmp_path: Path) -> None:
    taken = fetched(*ADAPTER)
    assert locate("guoyww/animatediff-motion-adapter-v1-5-3") == tmp_path
    assert taken == {"config.json", "diffusion_pytorch_model.safetensors"}


def test_of_a_pipeline_diffusers_fetches_the_parts(fetched, tmp_path: Path, monkeypatch) -> None:
    fetched("model_index.json", "unet/config.json", "v1-5-pruned.safetensors")
    asked = []
    monkeypatch.setattr(DiffusionPipeline, "download", lambda repo: asked.append(repo) or str(tmp_path))
    assert locate("owner/dreamshaper") == tmp_path and asked == ["owner/dreamshaper"]


def test_of_a_shelf_of_files_one_must_be_named(fetched, tmp_path: Path, monkeypatch) -> None:
    fetched("mm_sd_v15.ckpt", "v3_sd15_mm.ckpt", "README.md")
    with pytest.raises(WeightsError, match="Name the file you want in it, as in guoyww/animatediff/"):
        locate("guoyww/animatediff")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo, file: str(tmp_path / file))
    assert locate("guoyww/animatediff/v3_sd15_mm.ckpt") == tmp_path / "v3_sd15_mm.ckpt"


def test_a_name_that_the_hub_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import RepositoryNotFoundError

    def refuse(*args, **kwargs):
        raise RepositoryNotFoundError.__new__(
            RepositoryNotFoundError
        )  # its response has a library of its own

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(WeightsError, match=r"does not give it out \(RepositoryNotFoundError\)"):
        locate("owner/private")


@pytest.mark.parametrize("name", ["models/v3.ckpt", "v3.safetensors", "/no/such/folder", "a/b/../c"])
def test_what_looks_like_a_path_never_asks_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", None)
    with pytest.raises(WeightsError, match="There is no file or folder"):
        locate(name)


@pytest.mark.parametrize(
    "name",
    ["a\0b.safetensors", "x" * 5000, "x/" * 3000, "~nobody-of-this-name/x", "x" * 300 + ".safetensors"],
)
@pytest.mark.parametrize("kind", [str, Path])
def test_names_that_no_system_has_end_in_a_sentence(name: str, kind: type) -> None:
    with pytest.raises(WeightsError) as caught:
        locate(kind(name))
    assert len(str(caught.value)) < 700 and str(caught.value).isprintable()


def test_bundled_loras_have_short_names_and_files_of_yours_go_first(tmp_path, monkeypatch):
    kept = tmp_path / "emoji" / "loras" / "zoom-in.safetensors"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"")
    monkeypatch.setattr("stillmotion.request.installed_models._folder", lambda _: tmp_path / "emoji")
    assert locate("zoom-in") == kept
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zoom-in").mkdir()
    assert locate("zoom-in") == Path("zoom-in")
