"""What a user reads when nothing works: one sentence and an exit code, a traceback only with --debug."""

from __future__ import annotations

import subprocess
import sys
import warnings

import click
import pytest

from stillmotion import __version__, cli
from stillmotion.errors import RequestError, StillmotionWarning


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch):
    """Puts a command in that raises what it is told to."""

    def install(error: BaseException) -> None:
        @click.command()
        def concepts() -> None:
            raise error

        monkeypatch.setattr("stillmotion.cli.concepts.concepts", concepts)

    return install


def test_help_lists_every_command_and_all_of_them_exist(say) -> None:
    said = say("--help")
    assert said.code == 0
    for name in cli.COMMANDS:
        assert f"\n  {name} " in said.out
        assert say(name, "--help").code == 0, name


def test_version(say) -> None:
    assert say("--version").out == f"stillmotion {__version__}\n"


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (RequestError("frames is 0."), 2, "Error: frames is 0.\n"),
        (RuntimeError("no\n such thing"), 1, "Unexpected RuntimeError: no such thing (the same with --debug"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1, "not enough memory"),
        (MemoryError(), 1, "not enough memory"),
        (KeyboardInterrupt(), 130, "Stopped."),
    ],
)
def test_errors_are_sentences(error, code, words, say, failing) -> None:
    failing(error)
    said = say("concepts")
    assert said.code == code
    assert words in said.err
    assert "Traceback" not in said.err + said.out


@pytest.mark.parametrize("place", [0, 1])
def test_debug_shows_where(place, say, failing) -> None:
    failing(RequestError("frames is 0."))
    args = ["concepts"]
    args.insert(place, "--debug")
    with pytest.raises(RequestError):
        say(*args)
    assert say("concepts").code == 2


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["anmate", "x"], "did you mean: stillmotion animate"),
        (["a rocket"], 'did you mean: stillmotion animate "a rocket"'),
        (["animate"], "Missing argument 'PROMPT'"),
        (["animate", "x", "--framez", "3"], "--frame"),
        (["animate", "x", "--scale", "0"], "--scale"),
    ],
)
def test_wrong_usage_exits_with_2(args, words, say) -> None:
    said = say(*args)
    assert said.code == 2
    assert words in said.err


def test_a_reader_that_goes_away_is_no_error() -> None:
    code = "from stillmotion.cli import main; main(['animate', '--help'])"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.wait(60)


HOSTILE = "\x1b]0;owned\x07 \u202egpj.exe \x9b2J"
SHOWN = "\\x1b]0;owned\\x07 \\u202egpj.exe \\x9b2J"


@pytest.mark.parametrize(
    "error", [RequestError(HOSTILE), RuntimeError(HOSTILE), click.UsageError(HOSTILE), OSError(HOSTILE)]
)
def test_errors_never_steer_the_terminal(error, say, failing) -> None:
    failing(error)
    said = say("concepts")
    assert SHOWN in said.err and said.err.isascii() and "\x1b" not in said.err


def test_a_traceback_does_not_either(capsys, failing) -> None:
    failing(RequestError(HOSTILE))
    with pytest.raises(SystemExit) as ended:
        cli.main(["concepts", "--debug"])
    err = capsys.readouterr().err
    assert ended.value.code and "Traceback" in err and SHOWN in err and "\x1b" not in err


def test_our_notes_are_shown_and_those_of_libraries_are_not(say, monkeypatch) -> None:
    def noted(*_: object, **__: object) -> None:
        warnings.warn(f"left out: {HOSTILE}", StillmotionWarning, stacklevel=1)
        warnings.warn("deprecated", FutureWarning, stacklevel=1)

    monkeypatch.setattr("stillmotion.cli.concepts.ModelCard.read", noted)
    said = say("concepts", "--base", ".")
    assert f"Note: left out: {SHOWN}\n" in said.err and "deprecated" not in said.err
