"""The training step: the same training compiled or not, and compiled only where it pays."""

import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dualcaps import create_model
from dualcaps.models import Network
from dualcaps.training import step
from dualcaps.training.step import TrainingStep

BATCH = 8


@pytest.fixture(autouse=True)
def any_torch(monkeypatch: pytest.MonkeyPatch):
    """Whether this torch compiles correctly matters to none of these tests, which compile nothing in this process."""
    monkeypatch.setattr(step, "_COMPILES_ON_CPU", "2")
    monkeypatch.setattr(step.kernels, "load", lambda: None)


def make_step(
    said: list[str] | None = None, name: str = "capsnet", side: int = 12, routing: str = "dynamic", **options: Any
) -> tuple[Network, TrainingStep]:
    torch.manual_seed(0)
    model = create_model(name, (1, side, side), 3, routing=routing)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    settings = {"batch_size": BATCH, "steps": 100, "reconstruction_weight": 0.0005, "bfloat16": False}
    settings |= {"compile": "never", "log": (said if said is not None else []).append}
    return model, TrainingStep(model, optimizer, **(settings | options))


def batch(count: int = BATCH) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(count)
    return torch.rand(count, 1, 12, 12, generator=random), torch.randint(3, (count,), generator=random)


COMPILED = """
import torch
from dualcaps import create_model
from dualcaps.training.step import TrainingStep

results, messages = [], []
for compile in ("never", "always"):
    torch.manual_seed(0)
    model = create_model("da-capsnet", (1, 12, 12), 3)
    settings = {"batch_size": 8, "steps": 9, "reconstruction_weight": 0.0005, "bfloat16": False, "log": messages.append}
    step = TrainingStep(model, torch.optim.Adam(model.parameters()), compile=compile, **settings)
    outcomes = [step(torch.rand(n, 1, 12, 12), torch.randint(3, (n,))) for n in (8, 8, 5, 8)]
    assert step.compiled == (compile == "always"), messages
    results.append([*(outcome.loss for outcome in outcomes), *model.state_dict().values()])
for eager, compiled in zip(*results):
    torch.testing.assert_close(compiled, eager, atol=1e-5, rtol=1e-3)
print("alike")
"""


def test_a_torch_that_compiles_wrongly_on_the_cpu_is_not_used_for_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(step, "_COMPILES_ON_CPU", "99")
    said: list[str] = []
    _, train = make_step(said, compile="always")
    assert not train.compiled
    train(*batch())
    assert said == [f"not compiled: torch {torch.__version__} compiles routing on the CPU wrongly: update torch"]
    make_step(said, compile="never")
    assert len(said) == 1


@pytest.mark.slow
@pytest.mark.skipif(torch.__version__ < step._COMPILES_ON_CPU, reason="this torch compiles wrongly on the CPU")
def test_compiled_and_eager_steps_train_alike():
    # In a process without the tests' run-time type checks, which cannot be compiled.
    said = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False)
    assert said.stdout == "alike\n", said.stderr


def test_returned_losses_do_not_change_later():
    _, train = make_step()
    first = train(*batch())
    kept = first.loss.item()
    train(*batch(5))
    assert first.loss.item() == kept
    assert not first.loss.requires_grad


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Steps take one second each; compiled ones, which compile nothing here, take `compiled_pace`."""
    fake = SimpleNamespace(now=0.0, pace=1.0, eager_pace=1.0, compiled_pace=0.5, compilations=0, ran=False)

    def perf_counter() -> float:
        fake.now += fake.pace
        fake.pace = fake.eager_pace
        return fake.now

    def pretend(function: Callable, **options: Any) -> Callable:
        def run(*arguments: torch.Tensor) -> Any:
            fake.pace = fake.compiled_pace if fake.ran else 20.0
            fake.ran = True
            return function(*arguments)

        fake.compilations += 1
        fake.ran = False
        return run

    monkeypatch.setattr(step, "time", SimpleNamespace(perf_counter=perf_counter))
    monkeypatch.setattr(step.torch, "compile", pretend)
    return fake


def test_a_long_run_is_compiled_once_and_says_so(clock: SimpleNamespace):
    said: list[str] = []
    _, train = make_step(said, compile="auto", steps=1000)
    for _ in range(40):
        train(*batch())
    assert train.compiled
    assert clock.compilations == 1
    assert "987 steps of 1000.0 ms remain" in said[0]
    assert "1000.0 -> 500.0 ms a step" in said[1]
    assert len(said) == 2


def test_a_short_run_is_not_compiled(clock: SimpleNamespace):
    said: list[str] = []
    _, train = make_step(said, compile="auto", steps=100)
    for _ in range(40):
        train(*batch())
    assert not train.compiled
    assert clock.compilations == 0
    assert said == []


def test_earlier_measurements_decide_about_compiling(clock: SimpleNamespace):
    clock.compiled_pace = 0.1  # better than the guess, by which 87 steps would not pay
    _, train = make_step(compile="auto", steps=1000)
    for _ in range(40):
        train(*batch())
    assert train.compiled
    _, train = make_step(compile="auto", steps=100)
    for _ in range(20):
        train(*batch())
    assert clock.compilations == 2


def test_a_slower_compiled_step_is_abandoned(clock: SimpleNamespace):
    said: list[str] = []
    clock.compiled_pace = 2.0
    _, train = make_step(said, compile="auto", steps=1000)
    for _ in range(40):
        train(*batch())
    assert not train.compiled
    assert said[-1].startswith("no longer compiled: 1000.0 -> 2000.0 ms a step")


def test_other_work_that_begins_after_compiling_does_not_make_the_compiled_step_look_slow(clock: SimpleNamespace):
    said: list[str] = []
    _, train = make_step(said, compile="auto", steps=1000)
    for _ in range(14):  # the last one compiles
        train(*batch())
    assert clock.compilations == 1
    clock.eager_pace, clock.compiled_pace = 4.0, 2.0
    for _ in range(30):
        train(*batch())
    assert train.compiled
    assert said[-1].startswith("4000.0 -> 2000.0 ms a step")


def test_a_step_that_is_always_compiled_takes_no_turns(clock: SimpleNamespace):
    said: list[str] = []
    _, train = make_step(said, compile="always", steps=1000)
    for _ in range(11):
        train(*batch())
    assert said == ["training step compiled in 20 s: 500.0 ms"]
    for _ in range(3):
        train(*batch())
    assert len(said) == 1


def test_training_continues_without_a_compiler_and_says_why(monkeypatch: pytest.MonkeyPatch):
    def no_compiler(*_: Any) -> None:
        raise RuntimeError("Failed to find a C++ compiler\nand much more")

    monkeypatch.setattr(step.torch, "compile", lambda function, **_: no_compiler)
    said: list[str] = []
    model, train = make_step(said, compile="always")
    before = model.state_dict()["votes.transform.weight"].clone()
    assert train(*batch()).loss > 0
    assert said == ["not compiled: Failed to find a C++ compiler"]
    assert not torch.equal(before, model.state_dict()["votes.transform.weight"])


@pytest.mark.parametrize(
    ("name", "routing", "float32", "bfloat16"),
    [
        ("capsnet", "em", True, False),  # small convolutions alone
        ("capsnet-r", "em", True, True),
        ("sabour-capsnet", "dynamic", True, True),
        ("sabour-capsnet", "em", False, False),
    ],
)
def test_kernels_are_loaded_for_networks_that_use_them(
    monkeypatch: pytest.MonkeyPatch, name: str, routing: str, *, float32: bool, bfloat16: bool
):
    loads: list[bool] = []
    monkeypatch.setattr(step.kernels, "load", lambda: loads.append(rounded))
    for rounded in (False, True):
        for compile in ("never", "always"):
            make_step(name=name, side=20, compile=compile, bfloat16=rounded, routing=routing)
    assert loads == [False] * float32 + [True] * bfloat16


@pytest.mark.parametrize(("batch_size", "loaded"), [(16, True), (15, False)])
def test_kernels_for_eager_steps_are_loaded_for_batches_that_gain(
    monkeypatch: pytest.MonkeyPatch, batch_size: int, *, loaded: bool
):
    loads: list[bool] = []
    monkeypatch.setattr(step.kernels, "load", lambda: loads.append(True))
    for number, bfloat16 in enumerate((True, False), 1):
        make_step(eager_kernels=True, batch_size=batch_size, bfloat16=bfloat16)
        assert len(loads) == number * loaded


@pytest.mark.parametrize(("seconds", "messages"), [(15.0, 1), (0.1, 0)])
def test_it_says_that_kernels_were_compiled(monkeypatch: pytest.MonkeyPatch, seconds: float, messages: int):
    times = iter([0.0, seconds])
    monkeypatch.setattr(step.time, "perf_counter", lambda: next(times))
    said: list[str] = []
    make_step(said, eager_kernels=True, batch_size=16)
    assert said == ["the kernels of dualcaps compiled in 15 s, once on this machine"][:messages]


def test_training_goes_on_without_kernels_and_says_why(monkeypatch: pytest.MonkeyPatch):
    def no_compiler() -> None:
        raise OSError("no compiler c++: install one, or set CXX")

    monkeypatch.setattr(step.kernels, "load", no_compiler)
    said: list[str] = []
    _, train = make_step(said, eager_kernels=True, batch_size=16)
    assert train(*batch(16)).loss > 0
    assert said == ["the kernels of dualcaps are not used: no compiler c++: install one, or set CXX"]


def test_running_out_of_memory_is_not_hidden(monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(step.torch, "compile", lambda function, **_: full)
    _, train = make_step(compile="always")
    with pytest.raises(torch.OutOfMemoryError):
        train(*batch())


def test_a_damaged_record_is_skipped(clock: SimpleNamespace):
    _, train = make_step(compile="auto", steps=1000)
    train._record.parent.mkdir(parents=True)
    for content in ("", "{", "[]", '{"compiling": 0, "eager": 0, "compiled": 0}', '{"compiling": "x"}'):
        train._record.write_text(content)
        _, train = make_step(compile="auto", steps=1000)
        for _ in range(14):
            train(*batch())
        assert train.compiled
