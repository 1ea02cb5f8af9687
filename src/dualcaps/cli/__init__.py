"""The command line: parse the options, run one command, print what it found.

`torch` and other slow modules are imported by a command's `run` only, so that `--help` answers at once.
"""

import contextlib
import difflib
import io
import os
import re
import shlex
import sys
import warnings
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, NoReturn, Protocol

import tyro

from dualcaps.cli.bench import Bench
from dualcaps.cli.data import Data
from dualcaps.cli.demo import Demo
from dualcaps.cli.display import is_first_process, make_printable, print_notes
from dualcaps.cli.evaluate import Evaluate
from dualcaps.cli.explain import Explain
from dualcaps.cli.export import Export
from dualcaps.cli.models import Models
from dualcaps.cli.predict import Predict
from dualcaps.cli.report import Report
from dualcaps.cli.reproduce import Reproduce
from dualcaps.cli.robustness import Robustness
from dualcaps.cli.serve import Serve
from dualcaps.cli.train import Train
from dualcaps.errors import DualcapsError, Terminated, describe_os_error
from dualcaps.memory import keep_memory
from dualcaps.registry import load_plugin
from dualcaps.signals import signals_as_exceptions
from dualcaps.threads import prepare_threads

_Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Robustness, tyro.conf.subcommand("robustness")]
    | Annotated[Predict, tyro.conf.subcommand("predict")]
    | Annotated[Explain, tyro.conf.subcommand("explain")]
    | Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Serve, tyro.conf.subcommand("serve")]
    | Annotated[Models, tyro.conf.subcommand("models")]
    | Annotated[Data, tyro.conf.subcommand("data")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
    | Annotated[Reproduce, tyro.conf.subcommand("reproduce")]
    | Annotated[Report, tyro.conf.subcommand("report")]
)
_COMMANDS = (
    *("train", "evaluate", "robustness", "predict", "explain", "demo", "export", "serve"),
    *("models", "data", "bench", "reproduce", "report"),
)
_COMPUTING = (["train"], ["reproduce"], ["bench"])
_DATA_ACTIONS = ("list", "check", "get", "show")


class Command(Protocol):
    """What a command's options are parsed into."""

    @property
    def plugin(self) -> tuple[Path, ...]:
        """Plug-in files to load first."""
        ...

    def run(self) -> None:
        """Do what the command is for."""
        ...


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        arguments: what follows the program's name; by default the process's own.

    Raises:
        SystemExit: with code 2 after one line on standard error for invalid input; 1 where a part of the work
            failed; 130 when interrupted, 143 when terminated.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] not in _COMPUTING or not keep_memory():
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch then asks for large pages, and waits for fewer
    make_printable(sys.stdout, sys.stderr)
    if not is_first_process():
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    fewer_threads = prepare_threads()
    if fewer_threads and given[:1] in _COMPUTING:
        print_notes([fewer_threads])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")  # what matters of a damaged image becomes an error
        warnings.filterwarnings("always", category=UserWarning, module="dualcaps")
        _print_warnings_as_notes()
        try:
            try:
                with signals_as_exceptions():
                    _run(given)
            finally:
                sys.stdout.flush()
        except DualcapsError as error:
            if getattr(error, "reported", False):  # by the first of several processes
                sys.exit(2)
            _fail(str(error))
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                sys.exit(1)
            _fail(describe_os_error(error))
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            _fail("out of memory: lower --batch-size or --image-size, or close other programs")
        except KeyboardInterrupt as stop:
            ended, code = ("terminated", 143) if isinstance(stop, Terminated) else ("interrupted", 130)
            print(f"dualcaps: {ended}{_how_to_continue(given)}", file=sys.stderr)
            sys.exit(code)


def _run(arguments: Sequence[str]) -> None:
    if arguments == ["--version"]:
        print(f"dualcaps {metadata.version('dualcaps')}")
        return
    command = _parse(arguments)
    for file in command.plugin:
        load_plugin(file)
    command.run()


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(
        words in str(error) for words in ("allocate memory", "out of memory", "not enough memory")
    )


def _how_to_continue(arguments: Sequence[str]) -> str:
    command = next((word for word in arguments if word in _COMMANDS), None)
    if command == "train":
        again = [*arguments, *(() if "--resume" in arguments else ("--resume",))]
        return f"; to continue: dualcaps {shlex.join(again)}"
    return "; the same command continues" if command == "reproduce" else ""


def _print_warnings_as_notes() -> None:
    """Show the package's warnings, which are for users, as notes; others as Python does."""
    shown_before = warnings.showwarning
    package = str(Path(__file__).parents[1])

    def show(message: Warning | str, category: type[Warning], filename: str, *details: object, **more: object) -> None:
        if category is UserWarning and filename.startswith(package):
            print_notes([str(message)])
        else:
            shown_before(message, category, filename, *details, **more)  # pyright: ignore[reportArgumentType]

    warnings.showwarning = show


def _parse(arguments: Sequence[str]) -> Command:
    leading = 0
    while arguments[leading : leading + 1] == ["--plugin"]:
        leading += 2
    ordered = [*arguments[leading:], *arguments[:leading]]  # options of a command follow it
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            return tyro.cli(
                _Command,  # pyright: ignore[reportArgumentType]
                prog="dualcaps",
                description="Dual-attention capsule networks: train on images, evaluate, predict.",
                args=ordered,
                config=(tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone),
            )
    except SystemExit as stop:
        if stop.code:
            _fail(parser_message(message.getvalue(), ordered))
        raise


def parser_message(box: str, arguments: Sequence[str]) -> str:
    """One line made of the parser's framed message.

    Args:
        box: what the parser printed.
        arguments: what it was given.
    """
    sections: list[list[str]] = [[]]
    for line in box.splitlines()[1:]:
        text = line.strip(" │|")
        if re.fullmatch("[─╰╯+-]{4,}", text):
            sections.append([])
        elif text:
            sections[-1].append(text)
    message, *details = [section for section in sections if section]
    usage = [line for section in details for line in section]
    text = _reworded(
        " ".join(message).partition(" Got errors:")[0].strip(), [line for line in usage if line.startswith("--")]
    )
    unknown = re.match(r"Unrecognized(?: or misplaced)? options: (.+?)(?:, | \(applied|$)", text)
    if unknown is None:
        return f"{text} (--help shows the options)"
    word = unknown[1].strip()
    path = ["data", *arguments[1:2]] if arguments[:1] == ["data"] else list(arguments[:1])
    if word.startswith("-"):
        return f"unknown option {word}: {_nearest_option(word, ' '.join(path), usage)}"
    if path[-1:] != [word]:
        return f"unexpected argument {word}: --help shows the arguments"
    known = _DATA_ACTIONS if len(path) > 1 else _COMMANDS
    near = difflib.get_close_matches(word, known, n=1)
    hint = f"did you mean {' '.join([*path[:-1], near[0]])}?" if near else f"choose from {', '.join(known)}"
    return f"unknown command {' '.join(path)}: {hint}"


def _nearest_option(word: str, command: str, similar: Sequence[str]) -> str:
    """What to do about an option that a command does not have.

    Args:
        word: the option.
        command: the command's words.
        similar: what the parser shows of similar options: each with its help and the commands that have it.
    """
    option, others = "", []
    for line in similar:
        if line.startswith("--"):
            option = line.split()[0]
        elif found := re.match(r"in dualcaps (.*) --help", line):
            if found[1] == command:
                return f"did you mean {option}?"
            if option == word:
                others.append(found[1])
    return f"it is an option of {' and '.join(sorted(set(others)))}" if others else "--help shows the options"


_TAKES = {"INT": "a whole number", "FLOAT": "a number"}


def _reworded(text: str, usage: Sequence[str]) -> str:
    """The parser's message in words of its user; `usage` is the option and its values, if they are shown."""
    if failed := re.match(r"Error parsing (\S+): no type matching .* could be instantiated from \[(.*)\]", text):
        takes = usage[0].partition(" ")[2] if usage else "another value"
        given = re.sub(r"'([^']*)',?", r"\1", failed[2])
        return f"{failed[1]} takes {_TAKES.get(takes, takes)}, got {given or 'nothing'}"
    if failed := re.match(r"Error parsing (\S+): invalid literal for int\(\) with base 10: (.*)", text):
        return f"{failed[1]} takes a whole number, got {failed[2]}"
    if failed := re.match(r"Error parsing (\S+): could not convert string to float: (.*)", text):
        return f"{failed[1]} takes a number, got {failed[2]}"
    if failed := re.match(r"invalid choice (.*) for argument '(\S+)'\. Expected one of \((.*)\)", text):
        choices = sorted(choice for choice in re.findall(r"'([^']*)'", failed[3]) if choice != "None")
        return f"{failed[2]} takes one of {', '.join(choices)}, got {failed[1]}"
    if failed := re.match(r"Missing value for argument '(\S+)'", text):
        return f"{failed[1]} needs a value"
    if failed := re.match(r"Missing from dualcaps [\w ]+: (\S+)", text):
        return f"{failed[1]} is missing"
    if failed := re.match(r"Expected one of \{(.*)\}", text):
        return f"name a command: {failed[1]}"
    return text


def _fail(message: str) -> NoReturn:
    print(f"dualcaps: {' '.join(message.splitlines())}", file=sys.stderr)
    sys.exit(2)
