"""The table on a GPU: tinyc beside PyTorch, eager and compiled, on the same device in one run.

    python benchmarks/gpu.py [--results benchmarks/results] [--rows softmax,mm]

Each row is first checked: what tinyc computes is what PyTorch computes. Then all are timed in
turns (median of rounds of at least 30 ms, waiting for the device at both ends). What moves memory
is given as a share of what a copy on the device reaches, products as a share of cuBLAS.
`--rehearse` goes through all of it at small sizes without a GPU: tinyc's device is emulated,
PyTorch's is the CPU.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import workloads
from adapters import tinyc_, torch_
from adapters.case import Case

ROUNDS, ROUND_SECONDS = 7, 0.03
MODES = ("tinyc", "eager", "compile")
# Relative to the largest number: sums are added up in other orders, and bf16 has 8 bits.
NEAR = {"f32": 1e-3, "bf16": 2e-2}


@dataclass
class Row:
    """A workload with its sizes here and in a rehearsal, and what we want of it.

    `unit` is bytes for what moves memory, flops for products, and step for training. `want` is the
    share of the ceiling for the first two, and how many times as fast as each mode for a step.
    """

    name: str
    workload: dict[str, Any]
    unit: str
    want: Any
    small: dict[str, Any] = field(default_factory=dict)
    dtype: str = "f32"

    def sized(self, rehearse: bool) -> dict[str, Any]:
        """Return the workload to run."""
        return {**self.workload, **(self.small if rehearse else {})}


def rows() -> list[Row]:
    """Return the rows of the table."""
    known = workloads.WORKLOADS
    square = {"name": "mm_4096", "kind": "mm", "b": 0, "M": 4096, "K": 4096, "N": 4096,
              "flops": 2 * 4096**3}
    little = {"M": 48, "K": 64, "N": 32, "flops": 2 * 48 * 64 * 32}
    narrow, wide = {"shape": (16, 64)}, {"shape": (8, 96)}
    gpt = {"name": "gpt_small"}
    return [
        Row("elementwise", known["ew_chain16m"], "bytes", 0.9, {"n": 4096}),
        Row("multiply-add", known["ew_fma64m"], "bytes", 0.9, {"n": 4096}),
        Row("softmax", known["softmax_4096"], "bytes", 0.9, narrow),
        Row("layer norm", known["layernorm_8192x1024"], "bytes", 0.9, wide),
        Row("product f32", square, "flops", 0.8, little),
        Row("product bf16", square, "flops", 0.6, little, "bf16"),
        Row("gpt 6x384 step", known["gpt_big"], "step", {"eager": 1.0, "compile": 1.0},
            {**known["gpt_small"], **gpt}),
        Row("lenet 512 step", known["lenet512"], "step", {"eager": 2.0}, known["lenet64"]),
    ]


# -- one row --------------------------------------------------------------------------------------


def product(w: dict[str, Any], mode: str, dtype: str) -> Case | None:
    """Return the case of a matrix product in a dtype; there is nothing to compile for PyTorch."""
    a, b = workloads.inputs(w)
    if mode == "compile":
        return None
    if mode == "tinyc":
        tinyc = tinyc_.tinyc
        wide = [tinyc_.tensor(x) for x in (a, b)]
        args = [x.to(tinyc.bf16).realize() for x in wide] if dtype == "bf16" else wide
        case = tinyc_.operation(lambda x, y: x @ y, args)
        return Case(case.run, lambda: [case.run(1).to(tinyc.f32).numpy()])
    torch = torch_.torch
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    case = torch_.operation(torch.matmul, [torch_.tensor(x).to(kind) for x in (a, b)])
    return Case(case.run, lambda: [case.run(1).float().cpu().numpy()])


def case_of(row: Row, w: dict[str, Any], mode: str) -> Case | None:
    """Return the case of a row in one of MODES."""
    if row.unit == "flops":
        return product(w, mode, row.dtype)
    return tinyc_.make(w, "jit") if mode == "tinyc" else torch_.make(w, mode)


def compared(row: Row, cases: dict[str, Case]) -> None:
    """Hold tinyc's results, or losses of five steps, against PyTorch's; SystemExit if they differ.
    """
    mine, theirs = cases["tinyc"], cases["eager"]
    if mine.step is not None and theirs.step is not None:
        pairs = [(np.array([mine.step(i)]), np.array([theirs.step(i)])) for i in range(5)]
    else:
        assert mine.check is not None and theirs.check is not None
        pairs = list(zip(mine.check(), theirs.check(), strict=True))
    for x, y in pairs:
        error = float(np.abs(x.astype(np.float64) - y).max() / max(np.abs(y).max(), 1e-9))
        if not error <= NEAR[row.dtype]:
            raise SystemExit(f"{row.name}: differs from PyTorch by {error:.1e} of the largest")


def timed(cases: dict[str, Case], rounds: int) -> dict[str, float]:
    """Return the median seconds of one run of each case, measured in turns."""
    counts = {mode: count_for(case) for mode, case in cases.items()}
    found: dict[str, list[float]] = {mode: [] for mode in cases}
    for _ in range(rounds):
        for mode, case in cases.items():
            start = time.perf_counter()
            case.run(counts[mode])
            found[mode].append((time.perf_counter() - start) / counts[mode])
    return {mode: statistics.median(seconds) for mode, seconds in found.items()}


def count_for(case: Case) -> int:
    """Return how many runs take long enough to be timed, after some to warm up."""
    case.run(3)
    n = 1
    while True:
        start = time.perf_counter()
        case.run(n)
        took = time.perf_counter() - start
        if took >= ROUND_SECONDS:
            return n
        n = max(n + 1, int(n * min(8, 1.2 * ROUND_SECONDS / max(took, 1e-9))))


def copy_bandwidth(rehearse: bool) -> float:
    """Return the bytes a second that a large copy on the device reads and writes."""
    torch = torch_.torch
    a = torch.ones((1 << 14) if rehearse else (1 << 28), device=torch_.device)
    b = torch.empty_like(a)
    case = torch_.operation(lambda x, y: y.copy_(x), [a, b])
    return 2 * a.nbytes / timed({"copy": case}, ROUNDS)["copy"]


def measured(row: Row, modes: list[str], rehearse: bool, copy: float) -> dict[str, Any]:
    """Return what is known of a row: milliseconds by mode, share or speed, whether it is met."""
    w = row.sized(rehearse)
    cases = {mode: case_of(row, w, mode) for mode in modes}
    ready = {mode: case for mode, case in cases.items() if case is not None}
    compared(row, ready)
    seconds = timed(ready, 1 if rehearse else ROUNDS)
    found: dict[str, Any] = {"row": row.name, "ms": {m: s * 1e3 for m, s in seconds.items()}}
    mine = seconds["tinyc"]
    if row.unit == "bytes":
        found["share"] = bytes_of(w) / mine / copy
        found["of"] = "a copy"
    elif row.unit == "flops":
        found["share"] = seconds["eager"] / mine
        found["of"] = "cuBLAS"
        found["tflops"] = w["flops"] / mine / 1e12
    else:
        found["times"] = {mode: seconds[mode] / mine for mode in row.want if mode in seconds}
    found["met"] = (found["share"] >= row.want if "share" in found
                    else all(times >= row.want[m] for m, times in found["times"].items()))
    return found


def bytes_of(w: dict[str, Any]) -> int:
    """Return the bytes that an elementwise or row operation must move."""
    if w["kind"] == "ew":
        return 16 * w["n"]
    return 8 * int(np.prod(w["shape"]))


# -- the table ------------------------------------------------------------------------------------


def line_of(found: dict[str, Any], row: Row) -> str:
    """Return a row as text."""
    if "problem" in found:
        return f"{row.name:16} {found['problem']}"
    times = " ".join(f"{found['ms'][m]:10.3f}" if m in found["ms"] else f"{'-':>10}" for m in MODES)
    if "share" in found:
        said, want = f"{found['share']:.0%} of {found['of']}", f"{row.want:.0%}"
    else:
        said = ", ".join(f"{n:.2f}x {mode}" for mode, n in found["times"].items())
        want = ", ".join(f"{n:.1f}x {mode}" for mode, n in row.want.items())
    return f"{row.name:16} {times}  {said}, wanted {want}: {'met' if found['met'] else 'MISSED'}"


def prepare(rehearse: bool) -> str:
    """Import both frameworks, each on its device, and return the device's name."""
    if rehearse:
        sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
        import emulated_cuda

        emulated_cuda.install()
    tinyc_.init("cuda:9" if rehearse else "cuda", 2)
    torch_.init("eager", 2, "cpu" if rehearse else "cuda")
    torch = torch_.torch
    if rehearse:
        return "rehearsal"
    if not torch.cuda.is_available():
        raise SystemExit("PyTorch here has no CUDA: the table needs one that has")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return torch.cuda.get_device_name()


def main(arguments: list[str] | None = None) -> int:
    """Print the table and write the results; 1 if a row can't be measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", default=str(Path(__file__).with_name("results")))
    parser.add_argument("--rows", default="", help="names, or parts of them, with commas between")
    parser.add_argument("--modes", default=",".join(MODES), help="tinyc, eager and others")
    parser.add_argument("--rehearse", action="store_true", help="small, without a GPU")
    options = parser.parse_args(arguments)
    name = prepare(options.rehearse)
    copy = copy_bandwidth(options.rehearse)
    print(f"{name}: a copy moves {copy / 1e9:.0f} GB/s\n{'ms':16} "
          + " ".join(f"{mode:>10}" for mode in MODES))
    chosen = [r for r in rows() if any(part in r.name for part in options.rows.split(","))]
    results = {"device": name, "torch": torch_.torch.__version__, "copy_gbs": copy / 1e9,
               "date": time.strftime("%Y-%m-%d"), "rows": []}
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    path = Path(options.results, f"gpu-{slug}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    for row in chosen:
        try:
            found = measured(row, options.modes.split(","), options.rehearse, copy)
        except (Exception, SystemExit) as error:
            found = {"row": row.name, "problem": f"{type(error).__name__}: {error}"}
        results["rows"].append(found)
        print(line_of(found, row), flush=True)
        path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"written to {path}")
    return int(any("problem" in found for found in results["rows"]))


if __name__ == "__main__":
    sys.exit(main())
