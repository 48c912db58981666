"""tinyc: a deep-learning mini compiler. Lazy tensors, autograd on the IR, fusion, generated C.

Names are loaded when they are first used, so that `import tinyc` costs little more than numpy.
"""

from __future__ import annotations

import importlib
import os as _os
from typing import TYPE_CHECKING, Any

import numpy as _numpy  # noqa: F401  (what an import of tinyc is expected to pay for)

from tinyc.version import __version__

if TYPE_CHECKING:
    from tinyc import config, data, diagnostics, functional, models, nn, optim, random
    from tinyc.capture import fuse, jit
    from tinyc.codegen.watch import on_store
    from tinyc.config import configure, debug
    from tinyc.diagnostics import FusionError, TinycError
    from tinyc.ir.dtype import (
        DType,
        bf16,
        bool_,
        f16,
        f32,
        f64,
        finfo,
        i8,
        i16,
        i32,
        i64,
        u8,
        u16,
        u32,
        u64,
    )
    from tinyc.nn.serialization import load, save
    from tinyc.random import Generator, get_rng_state, manual_seed, set_rng_state
    from tinyc.reporting import compare, explain, profile
    from tinyc.reporting.watching import report
    from tinyc.runtime.device import device, synchronize
    from tinyc.tensor import (
        Size,
        Tensor,
        autocast,
        enable_grad,
        from_dlpack,
        from_numpy,
        grad,
        is_autocast_enabled,
        is_grad_enabled,
        maximum,
        minimum,
        no_grad,
        set_grad_enabled,
        value_and_grad,
        vjp,
        where,
    )

__all__ = [
    "DType",
    "FusionError",
    "Generator",
    "Size",
    "Tensor",
    "TinycError",
    "__version__",
    "abs",
    "allclose",
    "amax",
    "amin",
    "arange",
    "argmax",
    "argmin",
    "autocast",
    "bernoulli",
    "bf16",
    "bfloat16",
    "bool_",
    "boundary",
    "cat",
    "clamp",
    "clip",
    "compare",
    "config",
    "configure",
    "cos",
    "data",
    "debug",
    "device",
    "diagnostics",
    "einsum",
    "empty",
    "empty_like",
    "enable_grad",
    "equal",
    "erf",
    "exp",
    "explain",
    "eye",
    "f16",
    "f32",
    "f64",
    "finfo",
    "flatten",
    "flip",
    "float16",
    "float32",
    "float64",
    "floor",
    "from_dlpack",
    "from_numpy",
    "full",
    "full_like",
    "functional",
    "fuse",
    "gather",
    "get_rng_state",
    "grad",
    "half",
    "i8",
    "i16",
    "i32",
    "i64",
    "int8",
    "int16",
    "int32",
    "int64",
    "is_autocast_enabled",
    "is_grad_enabled",
    "isfinite",
    "isinf",
    "isnan",
    "jit",
    "linspace",
    "load",
    "log",
    "log1p",
    "log_softmax",
    "logsumexp",
    "manual_seed",
    "matmul",
    "max",
    "maximum",
    "mean",
    "min",
    "minimum",
    "models",
    "nn",
    "no_grad",
    "on_store",
    "ones",
    "ones_like",
    "optim",
    "outer",
    "permute",
    "pow",
    "profile",
    "rand",
    "rand_like",
    "randint",
    "randn",
    "randn_like",
    "random",
    "randperm",
    "relu",
    "report",
    "reshape",
    "roll",
    "rsqrt",
    "save",
    "set_grad_enabled",
    "set_rng_state",
    "sigmoid",
    "sign",
    "sin",
    "softmax",
    "split",
    "sqrt",
    "square",
    "squeeze",
    "stack",
    "std",
    "sum",
    "synchronize",
    "tanh",
    "transpose",
    "tril",
    "triu",
    "u8",
    "u16",
    "u32",
    "u64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "unsqueeze",
    "value_and_grad",
    "var",
    "vjp",
    "where",
    "zeros",
    "zeros_like",
]

_MODULES = ("config", "data", "diagnostics", "functional", "models", "nn", "optim", "random")

# Where the public names are defined.
_HOMES = {
    "capture": ("fuse", "jit"),
    "codegen.watch": ("on_store",),
    "config": ("configure", "debug"),
    "diagnostics": ("FusionError", "TinycError"),
    "nn.serialization": ("load", "save"),
    "ir.dtype": (
        *("DType", "bf16", "bool_", "f16", "f32", "f64", "finfo", "i8", "i16", "i32", "i64"),
        *("u8", "u16", "u32", "u64"),
    ),
    "random": ("Generator", "get_rng_state", "manual_seed", "set_rng_state"),
    "reporting": ("compare", "explain", "profile"),
    "reporting.watching": ("report",),
    "runtime.device": ("device", "synchronize"),
    "tensor": (
        *("Size", "Tensor", "autocast", "enable_grad", "from_dlpack", "from_numpy", "grad"),
        *("is_autocast_enabled", "is_grad_enabled", "maximum", "minimum", "no_grad"),
        *("set_grad_enabled", "value_and_grad", "vjp", "where"),
    ),
}

# PyTorch's names of the dtypes.
_DTYPES = {
    "bfloat16": "bf16",
    "float16": "f16",
    "half": "f16",
    "float32": "f32",
    "float64": "f64",
    "int8": "i8",
    "int16": "i16",
    "int32": "i32",
    "int64": "i64",
    "uint8": "u8",
    "uint16": "u16",
    "uint32": "u32",
    "uint64": "u64",
}

# Static methods of Tensor that make tensors, and methods that PyTorch has as functions too.
_OF_TENSOR = (
    *("arange", "bernoulli", "cat", "einsum", "empty", "empty_like", "eye", "full", "full_like"),
    *("linspace", "ones", "ones_like", "rand", "rand_like", "randint", "randn", "randn_like"),
    *("randperm", "stack", "zeros", "zeros_like"),
    *("abs", "allclose", "amax", "amin", "argmax", "argmin", "boundary", "clamp", "clip"),
    *("cos", "equal", "erf", "exp", "flatten", "flip", "floor", "gather"),
    *("isfinite", "isinf", "isnan", "log"),
    *("log1p", "log_softmax", "logsumexp", "matmul", "mean", "outer", "permute", "pow"),
    *("relu", "reshape", "roll", "rsqrt", "sigmoid", "sign", "sin", "softmax", "split", "sqrt"),
    *("square", "squeeze", "std", "tanh", "transpose", "tril", "triu", "unsqueeze", "var"),
)

_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"tinyc.{name}")
    if name in _HOME_OF:
        found = getattr(importlib.import_module(f"tinyc.{_HOME_OF[name]}"), name)
    elif name in _DTYPES:
        found = getattr(importlib.import_module("tinyc.ir.dtype"), _DTYPES[name])
    elif name in __all__:
        found = getattr(importlib.import_module("tinyc.tensor").Tensor, name)
    else:
        raise AttributeError(f"module 'tinyc' has no attribute {name!r}")
    globals()[name] = found
    return found


if _os.environ.get("TINYC_REPORT"):
    from tinyc.reporting.watching import watch_process as _watch_process

    _watch_process(_os.environ["TINYC_REPORT"])


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
