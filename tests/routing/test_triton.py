"""The kernels compile for a GPU, which needs none; that they run there, a machine with one must show."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dualcaps.routing.dynamic import triton as kernels

shared = dict(ITERATIONS=3, ACCUMULATE=True, BLOCK_J=16, BLOCK_N=8, BLOCK_D=16)
for kernel, extra in (
    (kernels._forward_kernel, {"KEEP_COUPLINGS": True}),
    (kernels._backward_kernel, {"COUPLINGS_GRADIENT": True}),
):
    for whole in (True, False):
        constants = shared | extra | {"WHOLE": whole}
        names = kernel.arg_names
        numbers = {name for name in names if name in "JND" or "stride" in name}
        signature = {
            name: "constexpr" if name in constants
            else "i32" if name in numbers
            else "fp32" if name == "constant"
            else "*bf16" if name in ("votes", "votes_gradient") else "*fp32"
            for name in names
        }
        source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in constants.items()})
        compiled = triton.compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32), options={"num_warps": 8})
        print(len(compiled.asm["cubin"]) > 0)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")
@pytest.mark.parametrize("capability", ["80", "90"])
def test_the_kernels_compile_for_gpus(capability: str):
    pytest.importorskip("triton", minversion="3.4", reason="older versions describe a kernel differently")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM, capability], capture_output=True, text=True, env=environment, check=False
    )
    assert said.returncode == 0, said.stderr
    assert said.stdout.split() == ["True"] * 4
