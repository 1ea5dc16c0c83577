"""The command line: help is quick, errors are one line, exit codes are as documented."""

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from lvlm_interp import __version__, cli
from lvlm_interp.errors import DataError, UsageError


@dataclass(frozen=True)
class Settings:
    """Settings of a command.

    Attributes:
        rate: How fast.
    """

    rate: float = 0.5


def greet(
    name: str, *, times: int = 1, settings: Settings = Settings(), out: Path | None = None
) -> None:
    """Greet somebody.

    Args:
        name: Who.
        times: How often.
        settings: How.
        out: Where to.
    """
    sys.stdout.write(f"{name} {times} {settings.rate} {out}\n")


def fail() -> None:
    """Fail in a way the user can mend."""
    raise DataError("pairs.jsonl, line 3:\n  no field 'answer'")


def interrupt() -> None:
    """Be interrupted."""
    raise KeyboardInterrupt


def three() -> int:
    """Give an exit code."""
    return 3


@pytest.fixture(autouse=True)
def commands(monkeypatch):
    module = sys.modules[__name__]
    functions = {"greet": greet, "fail": fail, "interrupt": interrupt, "count three": three}
    functions["lists"] = lists
    listed = {
        name: (function.__doc__.splitlines()[0], name) for name, function in functions.items()
    }
    monkeypatch.setattr(cli, "COMMANDS", listed)
    monkeypatch.setattr(cli, "_load", lambda address: functions[address])
    return module


def test_help_lists_the_commands(capsys):
    assert cli.main(["--help"]) == cli.main([]) == 0
    shown = capsys.readouterr().out
    assert "greet" in shown and "Greet somebody." in shown and "count three" in shown


def test_options_come_from_the_signature(capsys, tmp_path):
    words = ["greet", "world", "--times", "2", "--settings.rate", "0.25", "--out", str(tmp_path)]
    assert cli.main(words) == 0
    assert capsys.readouterr().out == f"world 2 0.25 {tmp_path}\n"


def flagged(word: str = "x", dry_run: bool = False) -> None:
    """Take a flag.

    Args:
        word: Any.
        dry_run: Do nothing.
    """
    sys.stdout.write(f"{word} {dry_run}\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--dry-run"], "x True"),
        (["--dry-run", "--word", "y-z"], "y-z True"),
        (["--dry_run", "false"], "x False"),
        (["--dry-run=true"], "x True"),
        ([], "x False"),
    ],
)
def test_flags_take_dashes_and_need_no_value(monkeypatch, capsys, words, said):
    monkeypatch.setattr(cli, "COMMANDS", {"flagged": ("flag", "flagged")})
    monkeypatch.setattr(cli, "_load", lambda address: flagged)
    assert cli.main(["flagged", *words]) == 0
    assert capsys.readouterr().out == f"{said}\n"


def test_command_help_shows_the_docstring(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["greet", "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "Greet somebody" in shown and "How often" in shown and "How fast" in shown


def test_nested_commands_and_exit_codes(capsys):
    assert cli.main(["count", "three"]) == 3
    with pytest.raises(SystemExit) as stop:
        cli.main(["count"])
    assert stop.value.code == 0
    assert "count three" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["fail"], 2, "lvlm-interp: error: pairs.jsonl, line 3: no field 'answer'"),
        (["gret", "x"], 2, "lvlm-interp: error: no command 'gret'; did you mean 'greet'?"),
        (
            ["count", "thre"],
            2,
            "lvlm-interp: error: no command 'count thre'; did you mean 'count three'?",
        ),
        (["interrupt"], 130, "lvlm-interp: interrupted"),
    ],
)
def test_errors_are_one_line(capsys, words, code, sentence):
    assert cli.main(words) == code
    assert capsys.readouterr().err == f"{sentence}\n"


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["greet"], "name"),
        (["greet", "x", "--times", "often"], "times"),
        (["greet", "x", "--unknown", "1"], "unknown"),
    ],
)
def test_bad_options_name_the_option(capsys, words, part):
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith("lvlm-interp: error: greet: ") and said.count("\n") == 1
    assert part in said


def test_version_from_one_place():
    done = subprocess.run(
        [sys.executable, "-m", "lvlm_interp", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"lvlm-interp {__version__}\n"


def _seconds(arguments):
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def test_help_is_quick():
    # The quickest of several: the machine may be busy, the command may not be slow.
    bare = min(_seconds(["-c", "pass"]) for _ in range(5))
    shown = min(_seconds(["-m", "lvlm_interp", "--help"]) for _ in range(5))
    assert shown - bare < 0.5


def lists(names: list[str] | None = None, size: int | None = None, out: Path = Path()) -> None:
    """Take a list.

    Args:
        names: Some names.
        size: A size.
        out: A path.
    """
    if size == 0:
        raise UsageError("size=0: expected at least 1.")
    if names and "lst" in names:
        raise UsageError("There is no role 'lst'; did you mean 'last'?")
    sys.stdout.write(f"{names}\n")


@pytest.mark.parametrize(
    "words",
    [["--names", "last,object"], ["--names=last,object"], ["--names", "[last, object]"]],
)
def test_lists_are_given_one_way(capsys, words):
    assert cli.main(["lists", *words]) == 0
    assert capsys.readouterr().out == "['last', 'object']\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--size", "many"], "lists: --size many: expected a whole number"),
        (["--size", "0"], "--size 0: size=0: expected at least 1."),
        (["--names", "last,lst"], "--names last,lst: There is no role 'lst'"),
    ],
)
def test_errors_name_the_option(capsys, words, says):
    assert cli.main(["lists", *words]) == 2
    assert capsys.readouterr().err.startswith(f"lvlm-interp: error: {says}")
