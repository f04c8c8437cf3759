"""Completion in bash, zsh and fish: `stillmotion --install-completion`, and the values of flags."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import click
from click.shell_completion import CompletionItem, get_completion_class

from stillmotion.cli.output import echo
from stillmotion.request.fields import Flag
from stillmotion.request.model_files import MODELS

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_STILLMOTION_COMPLETE"
"""Where click looks whether it is asked to complete, for a program of our name."""


def install(ctx: click.Context, shell: str) -> None:
    """Writes the script of a shell ("" for the user's own) to where that shell looks for it, and ends."""
    shell = shell or Path(os.environ.get("SHELL", "")).name
    if shell not in SHELLS:
        raise click.UsageError(f"Completion is for {', '.join(SHELLS)}: give --install-completion bash.", ctx)
    made = get_completion_class(shell)
    if made is None:
        raise click.UsageError(f"This version of click has no completion for {shell}: update click.", ctx)
    from stillmotion.atomic import write_text

    path, advice = _place(shell)
    write_text(path, made(ctx.command, {}, "stillmotion", VARIABLE).source())
    echo(f"{path}: completion for {shell}. {advice}")
    ctx.exit()


def _place(shell: str) -> tuple[Path, str]:
    """Where a shell looks for completions of a user, and what is left to do."""
    home = Path.home()
    if shell == "fish":
        config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
        return config / "fish" / "completions" / "stillmotion.fish", "It works at once."
    if shell == "zsh":
        line = "fpath+=~/.zfunc; autoload -Uz compinit; compinit"
        return home / ".zfunc" / "_stillmotion", f"Have this line in ~/.zshrc, and open a new shell: {line}"
    data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    path = data / "bash-completion" / "completions" / "stillmotion"
    return path, f"Open a new shell; without the package bash-completion add to ~/.bashrc: source '{path}'"


def of_flag(flag: Flag) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    """Completes the value of a field: its choices, what is installed, files."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from stillmotion.checkpoints.hub import bundled_loras, bundled_names

        names = {
            "loras": bundled_loras,
            "motion_loras": bundled_loras,
            "base": bundled_names,
            "motion": bundled_names,
        }
        known = flag.choices or (names[flag.field]() if flag.field in names else ())
        found = [CompletionItem(name) for name in known if name.startswith(incomplete)]
        opens = flag.field in MODELS
        return [*found, CompletionItem(incomplete, type="file")] if opens else found

    return complete
