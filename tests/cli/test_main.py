"""What all commands have in common: help, messages, encodings, warnings."""

import io
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from rich.console import Console

from dualcaps import cli
from dualcaps.cli.display import make_printable, table

from .messages import assert_one_line

COMMANDS = [
    *((), ("train",), ("evaluate",), ("predict",), ("models",), ("bench",), ("reproduce",), ("report",), ("data",)),
    *(("data", action) for action in ("list", "check", "get", "show")),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_there(run_cli: Callable, command: tuple[str, ...]):
    said = run_cli(*command, "--help")
    assert said.code == 0
    assert "usage: dualcaps" in said.out
    assert "default: None" not in said.out
    assert "default: False" not in said.out
    if command not in ((), ("data",)):
        assert "--plugin FILE" in said.out
    if command in (("train",), ("evaluate",), ("predict",), ("bench",), ("reproduce",)):
        assert "--device" in said.out


def test_help_imports_neither_torch_nor_numpy():
    program = """
import sys
from dualcaps.cli import main
for command in [], ["train"], ["evaluate"], ["reproduce"], ["data", "check"]:
    try:
        main([*command, "--help"])
    except SystemExit as stop:
        assert stop.code == 0
slow = {"torch", "numpy", "scipy", "matplotlib", "sklearn", "PIL"} & set(sys.modules)
assert not slow, slow
"""
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


def test_the_help_of_training_shows_defaults_and_derived_options(run_cli: Callable):
    said = " ".join(run_cli("train", "--help").out.split())
    for text in (
        "(default: digits)",
        "(default: by the data)",
        "(default: the recipe's)",
        "(default: the network's own)",
    ):
        assert text in said
    for option in (
        *("--no-decoder", "--conv-attention", "--extra-conv", "--trunk", "--routing", "--optimizer", "--schedule"),
        *("--patience", "--init-from", "--class-weight", "--skip-damaged", "--value-range", "--image-size H W"),
    ):
        assert option in said


def test_the_version_is_printed(run_cli: Callable):
    assert run_cli("--version").out == f"dualcaps {metadata.version('dualcaps')}\n"


def test_the_module_runs_too():
    said = subprocess.run([sys.executable, "-m", "dualcaps", "--help"], capture_output=True, text=True, check=True)
    assert "usage: dualcaps" in said.stdout


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (("train", "digits", "--epochs", "many"), "--epochs takes a whole number, got many"),
        (("train", "digits", "--epochs"), "--epochs needs a value"),
        (("train", "digits", "--lr", "high"), "--lr takes a number, got high"),
        (("train", "digits", "--precision", "float8"), "--precision takes one of auto, bfloat16, float32"),
        (("train", "digits", "--image-size", "28"), "--image-size takes H W, got 28"),
        (("train", "digits", "--class-weight", "fair"), "--class-weight takes balanced|W…, got fair"),
        (("train", "digits", "--speed", "high"), "--speed"),
        (("train", "digits", "--epoch", "3"), "unknown option --epoch: did you mean --epochs?"),
        (("train", "digits", "--skip-damage"), "did you mean --skip-damaged?"),
        (("evaluate", "run", "--epochs", "3"), "unknown option --epochs: it is an option of reproduce and train"),
        (("train", "digits", "twice"), "unexpected argument twice"),
        (("evaluate",), "RUN is missing"),
        (("evalate", "run"), "unknown command evalate: did you mean evaluate?"),
        (("data", "chekc", "digits"), "unknown command data chekc: did you mean data check?"),
        (("fly",), "unknown command fly: choose from train, evaluate"),
        (("data",), "name a command: list, check, get, show"),
        ((), "name a command: train"),
    ],
)
def test_arguments_that_cannot_be_parsed_are_one_line(run_cli: Callable, arguments: tuple[str, ...], wanted: str):
    assert_one_line(run_cli(*arguments), wanted)


@pytest.mark.parametrize("encoding", ["ascii", "cp437", "cp932", "cp1252", "utf-8"])
def test_any_name_is_printed_in_any_encoding(encoding: str):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, errors="strict", write_through=True)
    make_printable(stream)
    columns = table("图像", "·")
    columns.add_row("caf\udce9 猫🐦", "–…")
    Console(file=stream, width=80).print(columns)
    print("→ caf\udce9", file=stream)
    text = raw.getvalue().decode(encoding)
    assert "caf\\xe9" in text
    if encoding == "ascii":
        assert "\\u56fe\\u50cf" in text
        assert "\\u732b\\U0001f426  -..." in text
        assert "->" in text
    if encoding == "utf-8":
        assert "猫🐦" in text
        assert "·" in text


def test_messages_survive_an_encoding_that_lacks_their_characters():
    said = subprocess.run(
        [sys.executable, "-m", "dualcaps", "models", "--plugin", "猫.py"],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert said.returncode == 2
    assert said.stderr.decode("ascii").splitlines() == [r"dualcaps: --plugin \u732b.py: no such Python file"]


@pytest.mark.skipif(sys.platform == "win32", reason="pipes break in other ways there")
def test_a_reader_that_stops_reading_is_no_error():
    with subprocess.Popen(
        [sys.executable, "-m", "dualcaps", "train", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_warnings_for_users_are_notes_and_filters_are_restored(
    run_cli: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def warn(*arguments: object) -> None:
        warnings.warn_explicit("weights of epoch 3", UserWarning, str(Path(cli.__file__)), 1, "dualcaps.inference")

    monkeypatch.setattr("dualcaps.data.load.get_data", warn)
    monkeypatch.setattr("dualcaps.cli.data.DataGet.run", warn)
    filters = list(warnings.filters)
    assert run_cli("data", "get", "digits").err == "note: weights of epoch 3\n"
    assert warnings.filters == filters


def test_trainings_keep_memory_and_other_commands_ask_for_large_pages(
    run_cli: Callable, monkeypatch: pytest.MonkeyPatch
):
    kept = []

    def keep_memory() -> bool:
        kept.append(True)
        return True

    monkeypatch.setattr("dualcaps.cli.keep_memory", keep_memory)
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "")
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE")
    for command in ("train", "reproduce", "bench"):
        run_cli(command, "--help")
    assert kept == [True] * 3
    assert "THP_MEM_ALLOC_ENABLE" not in os.environ
    run_cli("predict", "--help")
    assert kept == [True] * 3
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "1"


def test_trainings_that_cannot_keep_memory_ask_for_large_pages(run_cli: Callable, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dualcaps.cli.keep_memory", lambda: False)
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "")
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE")
    run_cli("train", "--help")
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "1"


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_time_ends_the_program_in_one_line(number: signal.Signals, shapes_folder: Path):
    command = [sys.executable, "-m", "dualcaps", "train", str(shapes_folder), "--epochs", "9999", "--out", "run"]
    metrics, ended = Path("run", "metrics.jsonl"), []

    def epochs_done() -> int:
        return metrics.read_text().count("\n") if metrics.exists() else 0

    for seconds in (0.2, 0.8, 2.0, None):  # at last after an epoch
        before = epochs_done()
        process = subprocess.Popen([*command, "--resume"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if seconds is None:
            while epochs_done() == before:
                assert process.poll() is None
                time.sleep(0.1)
        else:
            time.sleep(seconds)
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
        assert "Traceback" not in said, said
        assert process.returncode in (128 + number, -number), said  # which a shell reports alike
        ended.append(said.splitlines()[-1] if said else "")
    word = "interrupted" if number == signal.SIGINT else "terminated"
    assert ended[-1].startswith(f"dualcaps: {word}; to continue: dualcaps train ")
