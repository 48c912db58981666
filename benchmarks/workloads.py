"""The workloads: one table, and the inputs of those that need no weights. Needs only numpy.

A workload is a dictionary with at least ``name``, ``group`` and ``kind``. ``flops`` and ``bytes``
are what one call must do at least, for GFLOP/s and GB/s. All data is float32, images are NCHW,
convolution weights OIHW.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Workload = dict[str, Any]

MI = 1 << 20
WORKLOADS: dict[str, Workload] = {}

# What `run.py` measures when nothing is named: one or two of each kind, a few minutes in all.
CORE = (
    "ew_chain16m",
    "softmax_4096",
    "mm_512",
    "conv3x3_n64_16_32_28_fb",
    "mlp",
    "lenet64",
    "resnet20",
    "tiny_jitcall",
)


def _add(name: str, group: str, kind: str, **sizes: Any) -> None:
    WORKLOADS[name] = {"name": name, "group": group, "kind": kind, **sizes}


def _add_elementwise_and_reductions() -> None:
    _add("ew_chain16m", "ew", "ew", n=16 * MI, bytes=16 * 16 * MI)
    _add("ew_fma64m", "ew", "ew", n=64 * MI, bytes=16 * 64 * MI)
    square, wide = (4096, 4096), (8192, 1024)
    _add("softmax_4096", "red", "red", shape=square, bytes=8 * 4096 * 4096)
    _add("layernorm_8192x1024", "red", "red", shape=wide, bytes=8 * 8192 * 1024)
    _add("sum_64m", "red", "red", shape=(64 * MI,), bytes=4 * 64 * MI)
    _add("transpose_4096", "red", "red", shape=square, bytes=8 * 4096 * 4096)


def _add_matmuls() -> None:
    sizes = {f"mm_{n}": (0, n, n, n) for n in (256, 512, 1024, 2048)}
    sizes["mm_1000x777x333"] = (0, 1000, 777, 333)
    sizes["bmm_64x128x64x128"] = (64, 128, 64, 128)
    for name, (b, m, k, n) in sizes.items():
        common = {"b": b, "M": m, "K": k, "N": n, "flops": 2 * max(b, 1) * m * k * n}
        _add(name, "mm", "mm", threads=2, **common)
        _add(name + "_t1", "mm_t1", "mm", threads=1, **common)
    for m in (4, 16, 64):  # a few rows times a matrix that is said not to change
        flops = 2 * m * 1024 * 4096
        _add(f"kept_{m}x1024x4096", "kept", "mm", b=0, M=m, K=1024, N=4096, frozen=1, flops=flops)


def _add_convolutions() -> None:
    sizes = {
        "conv3x3_n64_16_32_28": (64, 16, 32, 3, 28, 1),
        "conv3x3_n16_64_64_56": (16, 64, 64, 3, 56, 1),
        "conv1x1_n32_64_128_28": (32, 64, 128, 1, 28, 1),
        "dwconv3x3_n32_64_28": (32, 64, 64, 3, 28, 64),
    }
    for name, (n, ci, co, k, h, g) in sizes.items():
        flops = 2 * n * co * (ci // g) * k * k * h * h
        common = {"N": n, "Ci": ci, "Co": co, "k": k, "H": h, "g": g}
        _add(name + "_fwd", "conv", "conv", bwd=False, flops=flops, **common)
        # the gradients of x and of w; they need no result of the forward pass
        _add(name + "_fb", "conv", "conv", bwd=True, flops=2 * flops, **common)


def _add_attention() -> None:
    for name, bwd in (("attn_fwd", False), ("attn_fb", True)):
        _add(name, "attn", "attn", B=8, H=8, T=256, D=64, bwd=bwd)


def _add_models() -> None:
    adam = {"name": "adam", "lr": 1e-3, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "wd": 0.0}
    adamw = {**adam, "name": "adamw", "b2": 0.99, "wd": 0.1}
    sgd = {"name": "sgd", "lr": 0.01, "momentum": 0.9}
    small = {"L": 4, "H": 4, "C": 128, "T": 64, "B": 12, "V": 65}
    big = {"L": 6, "H": 6, "C": 384, "T": 256, "B": 8, "V": 65}
    _add("mlp", "train", "train", opt=adam)
    for name in ("lenet64", "lenet512", "resnet20"):
        _add(name, "train", "train", opt=sgd)
    _add("gpt_small", "train", "train", opt=adamw, tokens=12 * 64, **small)
    _add("gpt_big", "train", "train", opt=adamw, tokens=8 * 256, **big)
    _add("gpt_decode", "decode", "decode", n_new=255, **big)


def _add_tiny() -> None:
    for name in ("tiny_eager", "tiny_jitcall", "tiny_unroll"):
        _add(name, "tiny", "tiny", n=1000)


_add_elementwise_and_reductions()
_add_matmuls()
_add_convolutions()
_add_attention()
_add_models()
_add_tiny()


def uniform(seed: int, *shape: int, lo: float = -1.0, hi: float = 1.0) -> np.ndarray:
    """Return seeded float32 numbers of that shape, uniform in [lo, hi)."""
    numbers = np.random.default_rng(seed).random(shape, dtype=np.float32)
    numbers *= np.float32(hi - lo)
    numbers += np.float32(lo)
    return numbers


def inputs(w: Workload) -> list[np.ndarray]:
    """Return the numpy inputs of a workload that is not a model."""
    kind = w["kind"]
    if kind == "ew":
        return [uniform(10 + i, w["n"], lo=-2, hi=2) for i in range(3)]
    if kind == "red":
        x = [uniform(20, *w["shape"], lo=-2, hi=2)]
        if w["name"].startswith("layernorm"):
            x += [uniform(21, w["shape"][1], lo=0.5, hi=1.5), uniform(22, w["shape"][1])]
        return x
    if kind == "mm":
        batch = (w["b"],) if w["b"] else ()
        return [uniform(30, *batch, w["M"], w["K"]), uniform(31, *batch, w["K"], w["N"])]
    if kind == "conv":
        x = uniform(40, w["N"], w["Ci"], w["H"], w["H"])
        weight = uniform(41, w["Co"], w["Ci"] // w["g"], w["k"], w["k"])
        dy = uniform(43, w["N"], w["Co"], w["H"], w["H"])
        return [x, weight, uniform(42, w["Co"]), dy]
    if kind == "attn":  # q, k, v and the gradient of the output
        return [uniform(50 + i, w["B"], w["H"], w["T"], w["D"]) for i in range(4)]
    if kind == "tiny":
        return [np.zeros(10, np.float32), uniform(60, 10)]
    raise KeyError(kind)


def select(names: list[str]) -> list[str]:
    """Return the workloads that names and groups (and ``all``, ``core``) stand for, in order."""
    chosen: list[str] = []
    for name in names:
        if name == "core":
            matches = list(CORE)
        else:
            matches = [k for k, w in WORKLOADS.items() if name in (k, w["group"], "all")]
        if not matches:
            groups = sorted({w["group"] for w in WORKLOADS.values()})
            raise SystemExit(
                f"no workload or group {name!r}; groups: core all {' '.join(groups)}; "
                f"workloads: {' '.join(WORKLOADS)}"
            )
        chosen += [match for match in matches if match not in chosen]
    return chosen
