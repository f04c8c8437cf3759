"""The command line: which commands there are, and what the user reads when one fails.

Nothing heavy is imported before a command needs it: a command is a row with its help, its module comes
when it is called. Errors meant for the user are one sentence and exit with 2, bad flags too; anything
unexpected exits with 1, Ctrl-C with 130.
"""

from __future__ import annotations

import gc
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from time import monotonic

import click

import stillmotion
from stillmotion.cli.output import echo, in_flags
from stillmotion.errors import StillmotionError, StillmotionWarning
from stillmotion.foreign import printable

COMMANDS = {
    "animate": ("animate", "Make an animated clip of a prompt."),
    "redo": ("redo", "Make a clip again, or with other settings: clips carry their request."),
    "info": ("info", "Show how a clip was made: the request in its file."),
    "decode": ("decode", "Finish a clip whose sampling was done when something stopped it."),
    "concepts": ("concepts", "List or search what a small model knows."),
    "sheet": ("sheet", "All frames of a clip on one image."),
    "inspect": ("inspect", "What a file of weights is, what it fits and how to use it."),
    "convert": ("convert", "Write a file of weights in another layout."),
    "merge": ("merge", "Bake LoRAs into a model, or mix models."),
    "train": ("train", "Train motion on clips, or a LoRA on images, of your own."),
}
"""Name -> module in this package (which has a command of that name), and one line of help."""


@dataclass
class Settings:
    """What every command can ask for with `click.pass_obj`."""

    debug: bool = False
    quiet: bool = False
    verbose: bool = False
    start: float = field(default_factory=monotonic)


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports them when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command = getattr(import_module(f"stillmotion.cli.{COMMANDS[name][0]}"), name)
        _add_everywhere(command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            near = get_close_matches(args[0], COMMANDS, 1)
            meant = near[0] if near else f'animate "{" ".join(args)}"'
            raise click.UsageError(f"There is no command {args[0]!r}; did you mean: stillmotion {meant}", ctx)
        return super().resolve_command(ctx, args)


EVERYWHERE = {
    "--debug": "Show the traceback of errors.",
    "--quiet": "Show no progress and no notes: only the result, and what goes wrong.",
    "--verbose": "Show what the libraries say, too.",
}
"""Flags that may stand anywhere in the line, and their help; each is a field of `Settings`."""


def _set(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    settings = ctx.find_object(Settings)
    if value and settings is not None and param.name is not None:
        setattr(settings, param.name, True)
    if value and param.name == "verbose":
        _let_libraries_speak()


def _everywhere() -> list[click.Parameter]:
    return [
        click.Option([name], is_flag=True, is_eager=True, expose_value=False, callback=_set, help=text)
        for name, text in EVERYWHERE.items()
    ]


def _add_everywhere(command: click.Command) -> None:
    """The flags that each command has: `stillmotion animate ... --debug` as well as `stillmotion --debug`."""
    if not any(param.name == "debug" for param in command.params):
        command.params.extend(_everywhere())
    for inner in getattr(command, "commands", {}).values():
        _add_everywhere(inner)


def _install_completion(ctx: click.Context, param: click.Parameter, shell: str | None) -> None:
    if shell is not None and not ctx.resilient_parsing:
        from stillmotion.cli.completion import install  # only when it is needed

        install(ctx, shell)


@click.group(
    cls=LazyGroup,
    epilog='Try: stillmotion animate "a rocket, 3d render style" -o rocket.gif',
    params=_everywhere(),
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--install-completion",
    metavar="[SHELL]",
    is_flag=False,
    flag_value="",
    is_eager=True,
    expose_value=False,
    callback=_install_completion,
    help="Install completion for bash, zsh or fish, and end.",
)
@click.version_option(stillmotion.__version__, "-V", "--version", message="stillmotion %(version)s")
def app() -> None:
    """Turns still-image diffusion models into animators."""


def main(args: Sequence[str] | None = None) -> None:
    """The `stillmotion` command."""
    gc.set_threshold(20_000, 20, 20)  # starts a quarter faster (runtime/startup.py)
    try:
        code = run(args)
    except Exception:  # with --debug
        echo(traceback.format_exc(), err=True)
        code = 1
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:  # the reader has gone, or the disk is full: Python would complain once more at its end
        sys.stdout = None
    sys.exit(code)


def run(args: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code; what went wrong goes to stderr."""
    settings = Settings()
    try:
        with warnings.catch_warnings():
            _hush_libraries(settings)
            code = app.main(args, prog_name="stillmotion", standalone_mode=False, obj=settings)
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        if isinstance(error, click.NoSuchOption) and (meant := _meant(error)):
            error = click.UsageError(meant, error.ctx)
        error.message = printable(error.message)  # type: ignore[misc]  # click calls it final
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        echo("Stopped.", err=True)
        return 130
    except Exception as error:
        if settings.debug:
            raise
        echo(_sentence(error), err=True)
        return 2 if isinstance(error, StillmotionError) or _of_system(error) else 1


def _hush_libraries(settings: Settings) -> None:
    """Notes of the libraries to their developers are not for our users, ours are; for this process only."""
    warnings.simplefilter("ignore")
    warnings.simplefilter("always", StillmotionWarning)

    def note(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        if settings.verbose or not settings.quiet:
            echo(f"Note: {in_flags(str(message))}", err=True)

    warnings.showwarning = note
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")


def _let_libraries_speak() -> None:
    warnings.simplefilter("default")
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ[name] = "info"


def _meant(error: click.NoSuchOption) -> str | None:
    from stillmotion.cli.hints import explain  # only when it is needed

    return explain(error)


def _of_system(error: Exception) -> bool:
    """Whether the system refused a file (no space, no permission, no such folder, ...), and says why."""
    return isinstance(error, OSError) and error.errno is not None and error.strerror is not None


def _sentence(error: Exception) -> str:
    if isinstance(error, StillmotionError):
        return f"Error: {in_flags(str(error))}"
    if isinstance(error, OSError) and _of_system(error):
        return f"Error: {error.filename or 'A file'} cannot be used: {error.strerror}."
    text = " ".join(str(error).split()) or type(error).__name__
    if "can't allocate memory" in text or type(error).__name__ in ("OutOfMemoryError", "MemoryError"):
        return "Error: There is not enough memory: try fewer frames or a smaller width and height."
    return f"Unexpected {type(error).__name__}: {text} (the same with --debug shows where)"
