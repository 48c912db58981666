"""tinyc: a deep-learning mini compiler. Lazy tensors, autograd on the IR, fusion, generated C.

Names are loaded when they are first used, so that `import tinyc` costs little more than numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as _numpy  # noqa: F401  (what an import of tinyc is expected to pay for)

from tinyc.version import __version__

if TYPE_CHECKING:
    from tinyc import config, data, diagnostics, functional, models, nn, optim, random
    from tinyc.capture import jit
    from tinyc.config import configure, debug
    from tinyc.diagnostics import TinycError
    from tinyc.ir.dtype import DType, bool_, f32, f64, i8, i16, i32, i64, u8, u16, u32, u64
    from tinyc.random import Generator, manual_seed
    from tinyc.reporting import compare, explain
    from tinyc.tensor import (
        Size,
        Tensor,
        enable_grad,
        from_dlpack,
        from_numpy,
        grad,
        is_grad_enabled,
        maximum,
        minimum,
        no_grad,
        set_grad_enabled,
        value_and_grad,
        vjp,
        where,
    )

_MODULES = ("config", "data", "diagnostics", "functional", "models", "nn", "optim", "random")

# Where the public names are defined.
_HOMES = {
    "capture": ("jit",),
    "config": ("configure", "debug"),
    "diagnostics": ("TinycError",),
    "ir.dtype": (
        *("DType", "bool_", "f32", "f64", "i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64"),
    ),
    "random": ("Generator", "manual_seed"),
    "reporting": ("compare", "explain"),
    "tensor": (
        *("Size", "Tensor", "enable_grad", "from_dlpack", "from_numpy", "grad"),
        *("is_grad_enabled", "maximum", "minimum", "no_grad", "set_grad_enabled"),
        *("value_and_grad", "vjp", "where"),
    ),
}

# PyTorch's names of the dtypes.
_DTYPES = {
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
    *("abs", "allclose", "amax", "amin", "argmax", "argmin", "clamp", "clip", "cos", "equal"),
    *("erf", "exp", "flatten", "flip", "floor", "gather", "isfinite", "isinf", "isnan", "log"),
    *("log1p", "log_softmax", "logsumexp", "matmul", "mean", "outer", "permute", "pow"),
    *("relu", "reshape", "roll", "rsqrt", "sigmoid", "sign", "sin", "softmax", "split", "sqrt"),
    *("square", "squeeze", "std", "tanh", "transpose", "tril", "triu", "unsqueeze", "var"),
)

_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    *_MODULES,
    *_HOME_OF,
    *_DTYPES,
    *_OF_TENSOR,
    "__version__",
    "max",
    "min",
    "sum",
]


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


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
