"""The command line, `lvlm-interp`.

To add a command, write a function with annotated parameters and a Google-style docstring (both
become the options and their help) and add one line to `COMMANDS`: its name (two words for a nested
one), one line of help, and `"module:function"`. The module is imported only when the command is
chosen, so `lvlm-interp --help` stays instant. The function writes with `sys.stdout.write` or rich,
raises an `LvlmInterpError` for what the user can mend, and returns None or an exit code.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import json
import re
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import lvlm_interp
from lvlm_interp.errors import LvlmInterpError, UsageError

__all__ = ["COMMANDS", "main"]

# name -> (one line of help, "module:function")
COMMANDS: dict[str, tuple[str, str]] = {
    "align": (
        "how image and description are aligned inside a model, layer by layer",
        "lvlm_interp.plotting.align_command:align",
    ),
    "align stages": (
        "how alignment comes about over checkpoints, beside behaviour",
        "lvlm_interp.plotting.align_command:align_stages",
    ),
    "extract": (
        "store the activations of a data set",
        "lvlm_interp.activations.command:extract",
    ),
    "store verify": (
        "check that every byte of a store is as it was written",
        "lvlm_interp.activations.command:verify",
    ),
    "probe": (
        "fit probes over a store, with controls and intervals",
        "lvlm_interp.probing.command:main",
    ),
    "patch": (
        "exchange components between two runs and measure what restores the answer",
        "lvlm_interp.patching.command:main",
    ),
    "diagnose": (
        "which flaw a model has, where inside, and what acting there does",
        "lvlm_interp.diagnose.command:main",
    ),
    "circuits benchmark": (
        "score every localisation method on models whose guilty component is known",
        "lvlm_interp.circuits.command:benchmark",
    ),
    "evaluate": (
        "ask a model a benchmark's questions and score the answers",
        "lvlm_interp.evaluation.command:evaluate",
    ),
    "compare": (
        "compare runs of evaluate question by question",
        "lvlm_interp.evaluation.command:compare",
    ),
    "judge": (
        "have a judge behind an OpenAI-compatible endpoint read answers",
        "lvlm_interp.evaluation.command:judge",
    ),
    "build-bench": (
        "build a unified benchmark of objects, attributes and relations from annotations",
        "lvlm_interp.evaluation.command:build_bench",
    ),
    "attribute": (
        "share each answer out among the image, the prompt and the model's prior",
        "lvlm_interp.attribution.command:main",
    ),
    "score": (
        "score anyone's answers to a published benchmark, by a rule with a name",
        "lvlm_interp.evaluation.command:score",
    ),
    "models": (
        "every architecture, verified or refused and why; the proofs of any of them",
        "lvlm_interp.models.command:main",
    ),
    "lens": (
        "a page that shows what each image token says, layer by layer",
        "lvlm_interp.plotting.command:lens",
    ),
    "organisms build": (
        "build a model of real parts: DINOv2, SmolLM2 and what joins them",
        "lvlm_interp.organisms.command:build",
    ),
    "organisms evaluate": (
        "measure the shipped models and write their card",
        "lvlm_interp.organisms.command:evaluate",
    ),
    "organisms train": (
        "train the shipped models from nothing",
        "lvlm_interp.organisms.command:train",
    ),
}

_EXIT_USAGE = 2
_EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: What follows the program's name; None takes it from `sys.argv`.

    Returns:
        The exit code: 0, or 2 after one line on stderr for what the user can mend, or 130 when
            interrupted.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        name, rest = _choose(words)
        if name is None:
            sys.stdout.write(_help())
            return 0
        return _run(name, rest)
    except LvlmInterpError as error:
        sys.stderr.write(f"lvlm-interp: error: {_one_line(error)}\n")
        return _EXIT_USAGE
    except KeyboardInterrupt:
        sys.stderr.write("lvlm-interp: interrupted\n")
        return _EXIT_INTERRUPTED


def _choose(words: list[str]) -> tuple[str | None, list[str]]:
    """The command that the words name, and what is left for it; None asks for help."""
    if not words or words[0] in ("-h", "--help"):
        return None, []
    if words[0] == "--version":
        sys.stdout.write(f"lvlm-interp {lvlm_interp.__version__}\n")
        raise SystemExit(0)
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in COMMANDS:
            return name, words[length:]
    nested = [name for name in COMMANDS if name.startswith(f"{words[0]} ")]
    if nested and (len(words) == 1 or words[1] in ("-h", "--help")):
        sys.stdout.write(_help(nested))
        raise SystemExit(0)
    raise UsageError(_unknown(" ".join(words[:2]) if nested else words[0], nested))


def _unknown(name: str, nested: Sequence[str]) -> str:
    near = get_close_matches(name, nested or COMMANDS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "see lvlm-interp --help"
    return f"no command {name!r}; {hint}"


def _help(names: Sequence[str] | None = None) -> str:
    shown = sorted(COMMANDS) if names is None else names
    width = max((len(name) for name in shown), default=0)
    lines = [f"  {name:<{width}}  {COMMANDS[name][0]}" for name in shown]
    parser = argparse.ArgumentParser(
        prog="lvlm-interp",
        usage="lvlm-interp [--help] [--version] COMMAND ...",
        description=lvlm_interp.__doc__.splitlines()[0] if lvlm_interp.__doc__ else None,
        epilog="\n".join(["commands:", *lines, "", "lvlm-interp COMMAND --help tells more."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="show the version and stop")
    return parser.format_help()


def _run(name: str, arguments: list[str]) -> int:
    # Imported here: it costs as much as everything else that --help needs.
    from jsonargparse import ArgumentError, auto_cli

    function = _load(COMMANDS[name][1])
    try:
        outcome = auto_cli(
            function,
            args=_as_typed(function, arguments),
            prog=f"lvlm-interp {name}",
            exit_on_error=False,
        )
    except ArgumentError as error:
        why = _named_option(_one_line(error), function)
        raise UsageError(f"{name}: {why} (see lvlm-interp {name} --help)") from error
    except LvlmInterpError as error:
        raise type(error)(_with_option(str(error), arguments)) from error
    return outcome if isinstance(outcome, int) else 0


def _as_typed(function: Callable[..., Any], arguments: Sequence[str]) -> list[str]:
    """Options the way people type them: dashes for underscores, flags bare, lists with commas."""
    kinds = _kinds(function)
    parameters = inspect.signature(function).parameters
    flags = {name for name, each in parameters.items() if isinstance(each.default, bool)}
    # A flag that may also take a word.
    open_ = {name for name in flags if "str" in str(kinds.get(name))}
    lists = {name for name, kind in kinds.items() if "list" in str(kind)}
    typed: list[str] = []
    first = next(iter(parameters), None)
    if first in lists and parameters[first].default is inspect.Parameter.empty:
        arguments = _gathered(arguments)
    for index, word in enumerate(arguments):
        if not word.startswith("--"):
            is_list = bool(typed) and typed[-1].removeprefix("--") in lists
            typed.append(_as_list(word) if is_list else word)
            continue
        option, equals, value = word[2:].partition("=")
        option = option.replace("-", "_")
        value = _as_list(value) if equals and option in lists else value
        typed.append(f"--{option}{equals}{value}")
        following = "".join(arguments[index + 1 : index + 2])
        takes = option in open_ and following and not following.startswith("--")
        if option in flags and not (equals or takes or following in ("true", "false")):
            typed.append("true")
    return typed


def _gathered(arguments: Sequence[str]) -> list[str]:
    """The words before the first option as the one list that they are: `compare RUN RUN`."""
    n = next((at for at, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    words = [json.dumps(list(arguments[:n]))] if n else []
    return [*words, *arguments[n:]]


def _kinds(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function)
    except NameError:  # an annotation that only a type checker can see
        return {}


def _as_list(text: str) -> str:
    """`last,object` as the list that the parser reads; `[last, object]` is one already."""
    if text.lstrip().startswith("["):
        return text
    return json.dumps([each.strip() for each in text.split(",") if each.strip()])


def _named_option(message: str, function: Callable[..., Any]) -> str:
    """The parser's message by the option's name, and what it takes in words."""
    found = re.search(r'(?:Parser key|key) "([\w.]+)"', message)
    if found is None:
        return message
    name = found.group(1)
    given = re.search(r"Given value: (.*)$", message)
    value = f" {given.group(1)}" if given else ""
    wanted = _in_words(_kinds(function).get(name))
    return f"--{name.replace('_', '-')}{value}: {wanted or message}"


def _in_words(kind: Any) -> str | None:
    """What an option takes; None for kinds that only the parser can describe."""
    kinds = [each for each in get_args(kind) if each is not type(None)]
    if get_origin(kind) is Literal:
        return f"expected one of {', '.join(map(str, get_args(kind)))}"
    if get_origin(kind) in (Union, UnionType) and len(kinds) == 1:
        return _in_words(kinds[0])
    if get_origin(kind) is list:
        return "expected names with commas, such as last,object"
    words = {int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}
    return f"expected {words[kind]}" if kind in words else None


def _with_option(message: str, arguments: Sequence[str]) -> str:
    """The message with the option in front whose value it is about, where it names none itself."""
    if "--" in message:
        return message
    for option, value in itertools.pairwise([*arguments, ""]):
        name, equals, inline = option.partition("=")
        if not name.startswith("--"):
            continue
        given = inline if equals else value
        said = f"{name[2:].replace('-', '_')}={given}"
        if given and said in message:
            return f"{name} {given}: {message}"
        pieces = [each.strip() for each in given.split(",")]
        if any(each and repr(each) in message for each in pieces):
            return f"{name} {','.join(pieces)}: {message}"
    return message


def _load(address: str) -> Callable[..., Any]:
    module, _, function = address.partition(":")
    return getattr(import_module(module), function)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
