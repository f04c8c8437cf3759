"""`stillmotion inspect`: read by people, exit codes read by scripts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from stillmotion.cli import run
from stillmotion.cli.inspect import inspect


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    save_file(
        {"lora_unet_mid_attn2_to_k.lora_down.weight": torch.zeros(8, 768)}, tmp_path / "style.safetensors"
    )
    return tmp_path / "style.safetensors"


def test_a_known_file_is_told_in_a_few_lines(lora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(lora.parent)
    result = CliRunner().invoke(inspect, ["style.safetensors"])
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        "style.safetensors: a LoRA for the image model (kohya layout)",
        "  fits       Stable Diffusion 1.x",
        "  changes    UNet",
        "  rank       8",
        '  use        stillmotion animate "PROMPT" --lora style.safetensors=0.8',
    ]


def test_an_unknown_file_exits_with_2(tmp_path: Path, lora: Path) -> None:
    save_file({"bert.weight": torch.zeros(3)}, tmp_path / "bert.safetensors")
    result = CliRunner().invoke(inspect, [str(lora), str(tmp_path / "bert.safetensors")])
    assert result.exit_code == 2
    assert "style.safetensors: a LoRA" in result.output and "looked for:" in result.output


def test_exit_codes_and_errors_of_the_command_line(tmp_path: Path, lora: Path, capsys) -> None:
    page = tmp_path / "mm.safetensors"
    page.write_text("<!DOCTYPE html><html></html>")
    assert run(["inspect", str(lora)]) == 0
    assert run(["inspect", str(page)]) == 2
    assert capsys.readouterr().err.startswith("Error: mm.safetensors is a web page")
    assert run(["inspect", str(tmp_path / "none.ckpt")]) == 2
    assert run(["inspect"]) == 2


def test_json_for_programs(lora: Path) -> None:
    result = CliRunner().invoke(inspect, ["--json", str(lora)])
    found = json.loads(result.output)
    assert (found["kind"], found["family"], found["layout"], found["base"]) == (
        "lora",
        "LoRA",
        "kohya",
        "sd15",
    )


def test_families_are_listed() -> None:
    lines = CliRunner().invoke(inspect, ["--families"]).output.splitlines()
    assert lines[0].split() == ["family", "fits", "frames", "size", "sampler", "steps", "guidance"]
    assert any(line.startswith("hotshot-xl  Stable Diffusion XL") for line in lines)


def test_a_safetensors_is_inspected_without_torch(lora: Path) -> None:
    code = (
        "import sys; from stillmotion.cli import run; "
        f"code = run(['inspect', {str(lora)!r}]); sys.exit(code or ('torch' in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_the_line_can_be_typed_as_it_stands(lora: Path) -> None:
    moved = lora.rename(lora.with_name("my style.safetensors"))
    result = CliRunner().invoke(inspect, [str(moved)])
    assert f"--lora '{moved}'=0.8" in result.output
    result = CliRunner().invoke(inspect, ["zoom-in"])
    assert 'stillmotion animate "PROMPT" --motion-lora zoom-in=0.8' in result.output


def test_what_trainers_tell_in_the_header_is_shown(tmp_path: Path) -> None:
    metadata = {
        "ss_tag_frequency": '{"1_cat": {"a cat": 2, "sks": 9}, "2_x": {"a cat": 3}}',
        "ss_steps": "1200",
        "ss_network_dim": "8",
        "ss_network_alpha": "4.0",
        "modelspec.title": "My \x1b[2J style",
        "modelspec.license": "MIT",
        "modelspec.resolution": "512x512",
    }
    file = tmp_path / "k.safetensors"
    save_file({"lora_unet_mid_attn2_to_k.lora_down.weight": torch.zeros(8, 768)}, file, metadata=metadata)
    details = json.loads(CliRunner().invoke(inspect, ["--json", str(file)]).output)["details"]
    assert (details["trigger"], details["steps"], details["alpha"]) == ("sks, a cat", "1200", "4.0")
    assert (details["licence"], details["resolution"]) == ("MIT", "512x512")
    assert details["title inside"] == "My \\x1b[2J style"
    save_file({"lora_unet_mid_attn2_to_k.lora_down.weight": torch.zeros(8, 768)}, file)
    assert "trigger" not in json.loads(CliRunner().invoke(inspect, ["--json", str(file)]).output)["details"]
