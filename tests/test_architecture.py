"""The house rules that a machine can hold: imports run one way, importing does nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import dualcaps

ROOT = Path(dualcaps.__file__).parent
# Each room and the rooms below it that it may use; docs/architecture.md says why.
ALLOWED = {
    "errors": set(),
    "routing": set(),
    "losses": set(),
    "plots": set(),
    "data": {"errors"},
    "runs": {"errors"},
    "nn": {"routing"},
    "models": {"nn", "routing", "errors"},
    "inference": {"models", "data", "runs", "errors"},
    "explain": {"models", "data", "plots"},
    "step": {"models", "losses"},
    "train": {"step", "models", "data", "runs", "inference", "explain", "plots", "errors"},
    "bench": {"step", "inference", "models", "losses", "data", "errors"},
    "experiments": {"train", "bench", "explain", "inference", "records", "models", "data", "runs", "errors"},
    "paper": set(),
    "records": {"models", "data", "runs", "errors"},
    "compare": {"records", "paper"},
    "report": {"compare", "records", "paper", "runs", "plots", "errors"},
    "cli": {
        *("bench", "experiments", "records", "report", "train", "inference", "explain"),
        *("models", "data", "runs", "plots", "errors"),
    },
    "__main__": {"cli"},
}


def rooms_used(file: Path) -> set[str]:
    used = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            used.update(alias.name.split(".")[1] for alias in node.names if alias.name.startswith("dualcaps."))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "dualcaps":
            assert node.level == 0, f"{file}: relative import"
            names = node.module.split(".")[1:2] or [alias.name for alias in node.names]
            used.update(names)
    return used


def test_imports_run_one_way():
    rooms = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in ROOT.rglob("*.py")} - {"__init__"}
    assert rooms == set(ALLOWED)
    for file in ROOT.rglob("*.py"):
        room = file.relative_to(ROOT).parts[0].removesuffix(".py")
        if room != "__init__":
            assert rooms_used(file) - {room} <= ALLOWED[room], file


def test_importing_writes_nothing_and_leaves_slow_libraries_alone():
    program = """
import sys
opened = []
def watch(event, arguments):
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        opened.append(arguments[0])
    elif event in ("os.mkdir", "os.rename", "os.remove", "socket.connect", "subprocess.Popen"):
        opened.append((event, arguments))
sys.dont_write_bytecode = True
import torch
sys.addaudithook(watch)
import dualcaps
slow = {"sklearn", "scipy", "matplotlib", "tyro", "pandas"} & set(sys.modules)
print(opened, slow)
"""
    answered = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answered.stdout.strip() == "[] set()"
