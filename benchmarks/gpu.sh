#!/usr/bin/env bash
# Everything that is worth knowing on a borrowed NVIDIA GPU, in one command and under eight minutes:
#
#     benchmarks/gpu.sh [WHEELS] [RESULTS]
#
# WHEELS is a folder of wheels for what the Python there lacks; nothing is fetched. It runs the tests
# that are marked `gpu`, then the table beside PyTorch (eager and compiled) on the same device, and
# writes RESULTS/gpu-<the device's name>.json (benchmarks/results). It stops at the first part that
# is broken, with a line that begins with "gpu.sh:". PYTHON chooses another interpreter.
set -u
cd "$(dirname "$0")/.." || exit 1
wheels=${1:-}
results=${2:-benchmarks/results}
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

stop() {
    printf 'gpu.sh: %s\n' "$*"
    exit 1
}

command -v "$python" >/dev/null || stop "no Python: $python"
[ -z "$wheels" ] || [ -d "$wheels" ] || stop "no folder of wheels: $wheels"
"$python" -c 'import ctypes; assert ctypes.CDLL("libcuda.so.1").cuInit(0) == 0' 2>/dev/null ||
    stop "no CUDA driver, or it does not start: libcuda.so.1 is not here or cuInit fails"

# What the Python there has is used, though it may be in an environment itself; what it lacks comes
# from the folder.
"$python" -m venv "$work/venv" || stop "no virtual environment can be made"
venv=$work/venv/bin/python
"$python" -c 'import sys; print("\n".join(p for p in sys.path if p.endswith("-packages")))' \
    >"$("$venv" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/theirs.pth"
lacks() {
    ! "$venv" -c "import $1" 2>/dev/null
}
wanted=()
for pair in numpy:numpy networkx:networkx safetensors:safetensors pytest:pytest \
    hypothesis:hypothesis; do
    lacks "${pair%:*}" && wanted+=("${pair#*:}")
done
lacks pycuda && lacks cuda.bindings && wanted+=(cuda-bindings)
"$venv" -c 'from importlib.metadata import version as v; v("nvidia-cuda-nvrtc")' 2>/dev/null ||
    command -v nvcc >/dev/null || wanted+=(nvidia-cuda-nvrtc)
if [ ${#wanted[@]} -gt 0 ]; then
    [ -n "$wheels" ] || stop "this Python lacks ${wanted[*]}: give a folder with their wheels"
    "$venv" -m pip install --quiet --disable-pip-version-check --no-index --find-links "$wheels" \
        "${wanted[@]}" || stop "the folder $wheels lacks a wheel (above) of: ${wanted[*]}"
fi

export PYTHONPATH=$PWD:$PWD/tests/support TINYC_CACHE_DIR=$work/cache PYTHONUNBUFFERED=1
part() {
    local name=$1 seconds=$2
    shift 2
    printf '== %s\n' "$name"
    local started=$SECONDS
    timeout "$seconds" "$@"
    local code=$?
    [ $code -ne 124 ] || stop "$name: took more than $seconds seconds"
    [ $code -eq 0 ] || stop "$name: FAILED"
    printf '== %s: passed in %ds\n' "$name" $((SECONDS - started))
}

part "device" 45 "$venv" -c \
    "import tinyc; print((tinyc.ones(1000, device='cuda') * 2).sum().item())"
part "tests" 185 "$venv" -m pytest -p no:cacheprovider -q -x -m gpu tests/cuda tests/acceptance
part "table" 240 "$venv" benchmarks/gpu.py --results "$results"
