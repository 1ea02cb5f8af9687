"""Rules of the architecture that can be checked: imports run one way, importing does nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import dualcaps

ROOT = Path(dualcaps.__file__).parent
# Each package or module, lowest first, may import those above it in this list; docs/architecture.md says why.
LAYERS = [
    "errors",
    "signals",
    "config",
    "registry",
    "runs",
    "kernels",
    "routing",
    "losses",
    "plots",
    "nn",
    "models",
    "data",
    "inference",
    "robustness",
    "calibration",
    "hub",
    "explain",
    "training",
    "export",
    "serve",
    "estimator",
    "memory",
    "threads",
    "bench",
    "study",
    "cli",
    "__main__",
]
ALSO_FORBIDDEN = {
    "runs": {"registry"},
    "kernels": {"registry"},
    "routing": {"losses", "runs"},
    "losses": {"routing", "registry", "config", "runs", "kernels"},
    "plots": {"routing", "losses", "registry", "config", "errors", "runs", "kernels"},
    "data": {"kernels", "routing", "nn", "models", "losses", "plots"},
    "models": {"plots"},
    "training": {"routing"},
}


def packages_used(file: Path) -> set[str]:
    used = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            used.update(alias.name.split(".")[1] for alias in node.names if alias.name.startswith("dualcaps."))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "dualcaps":
            assert node.level == 0, f"{file}: relative import"
            names = node.module.split(".")[1:2] or [alias.name for alias in node.names]
            used.update(names)
    return used


def test_imports_run_one_way():
    packages = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in ROOT.rglob("*.py")} - {"__init__"}
    assert packages == set(LAYERS)
    for file in ROOT.rglob("*.py"):
        package = file.relative_to(ROOT).parts[0].removesuffix(".py")
        if package != "__init__":
            allowed = {*LAYERS[: LAYERS.index(package) + 1]} - ALSO_FORBIDDEN.get(package, set())
            assert packages_used(file) <= allowed, file


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
from dualcaps import *
slow = {"sklearn", "scipy", "matplotlib", "tyro", "pandas"} & set(sys.modules)
print(opened, slow, "nn" in globals())
"""
    answered = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answered.stdout.strip() == "[] set() False"
