#!/usr/bin/env bash
# All that is to be measured on a machine with a CUDA GPU, in the order of worth; stages that are done are
# skipped, so that it can be stopped at any moment and started again.
#
#   benchmarks/gpu.sh [FOLDER]               results, by default results/benchmarks
#   BUDGET=8 JOBS=4 benchmarks/gpu.sh        then the paper's experiments too, for 8 minutes, 4 runs at once; the runs
#                                            stay in runs/reproduce, where the next call goes on, records in FOLDER/paper
#   RECORDS="cifar-10 mnist" SEEDS=3 benchmarks/gpu.sh    the recipe strong on these data sets, with its controls
#
# Nothing is installed: PYTHON (python3) must have torch with CUDA, Triton and the package's dependencies.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(mkdir -p "${1:-results/benchmarks}" && cd "${1:-results/benchmarks}" && pwd)
python=${PYTHON:-python3}
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

"$python" -c 'import torch; assert torch.cuda.is_available(); print(torch.cuda.get_device_name(), torch.__version__)' ||
    { echo "no CUDA GPU that torch sees" >&2; exit 2; }

failed=0
stage() {
    local name=$1
    shift
    if [ -e "$out/.done-$name" ]; then
        echo "== $name: done before"
        return
    fi
    echo "== $name"
    local started=$SECONDS
    if "$@" 2>&1 | tee "$out/$name.log"; then
        touch "$out/.done-$name"
        echo "== $name: $((SECONDS - started)) s"
    else
        failed=1
        echo "== $name: failed, the next ones go on"
    fi
}

# A speed of kernels that are wrong is worth nothing: without parity nothing else runs.
stage parity "$python" -m pytest -q -p no:cacheprovider tests/routing/test_route.py
[ -e "$out/.done-parity" ] || exit 1
stage routing "$python" benchmarks/routing.py --device cuda --out "$out"
stage tune "$python" benchmarks/tune.py --device cuda --out "$out"
stage training "$python" benchmarks/training.py --device cuda --out "$out"
stage residual "$python" benchmarks/residual.py --device cuda --out "$out"
stage grid "$python" benchmarks/grid.py --device cuda --out "$out"
stage inference "$python" benchmarks/inference.py --device cuda --out "$out"
stage scaling "$python" benchmarks/scaling.py --device cuda --out "$out"
stage accuracy "$python" benchmarks/accuracy.py --device cuda --out "$out"
for data in ${RECORDS:-}; do
    "$python" benchmarks/records.py "$data" --seeds "${SEEDS:-1}" --out "$out/records" || failed=1
done
if [ -n "${BUDGET:-}" ]; then
    "$python" -m dualcaps reproduce --budget "$BUDGET" --jobs "${JOBS:-4}" --out runs/reproduce || failed=1
    "$python" -m dualcaps report runs/reproduce --out "$out/paper" || failed=1
fi
exit $failed
