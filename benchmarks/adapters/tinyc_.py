"""tinyc: the whole step in one ``@jit``; ``unfused`` runs one operation to a kernel."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import weights
import workloads

from adapters.case import Case, as_tuple, repeat_add, training_case

MODES = ["jit", "unfused"]
tinyc: Any = None
F: Any = None


def init(mode: str, threads: int) -> None:
    """Import tinyc with its threads and, for one mode, without fusion."""
    global tinyc, F
    os.environ["TINYC_THREADS"] = str(threads)
    import tinyc as module
    import tinyc.nn.functional as functional

    tinyc, F = module, functional
    tinyc.configure(threads=threads, fuse=mode != "unfused")


def tensor(array: np.ndarray) -> Any:
    """Return a tensor that holds the array's values."""
    return tinyc.Tensor(np.ascontiguousarray(array))


def operation(function: Callable, args: list) -> Case:
    """Return the case of a jitted function of tensors."""
    jitted = tinyc.jit(function)

    def run(n: int) -> Any:
        for _ in range(n):
            y = jitted(*args)
        return y

    return Case(run, lambda: [t.numpy() for t in as_tuple(run(1))])


def mlp(p: dict, x: Any) -> Any:
    """Return the logits of the 784-512-512-10 network."""
    x = F.relu(F.linear(x, p["w0"], p["b0"]))
    x = F.relu(F.linear(x, p["w1"], p["b1"]))
    return F.linear(x, p["w2"], p["b2"])


def lenet(p: dict, x: Any) -> Any:
    """Return the logits of LeNet."""
    x = F.max_pool2d(F.relu(F.conv2d(x, p["c1w"], p["c1b"], padding=2)), 2)
    x = F.max_pool2d(F.relu(F.conv2d(x, p["c2w"], p["c2b"])), 2).flatten(1)
    x = F.relu(F.linear(x, p["f0w"], p["f0b"]))
    x = F.relu(F.linear(x, p["f1w"], p["f1b"]))
    return F.linear(x, p["f2w"], p["f2b"])


def resnet20(p: dict, x: Any) -> Any:
    """Return the logits of ResNet-20 and update the running statistics."""

    def norm(x: Any, n: str) -> Any:
        stats = (p[n + ".rm"], p[n + ".rv"], p[n + ".g"], p[n + ".b"])
        return F.batch_norm(x, *stats, training=True, momentum=0.1, eps=1e-5)

    x = F.relu(norm(F.conv2d(x, p["c0"], padding=1), "n0"))
    for stage in range(3):
        for block in range(3):
            q = f"s{stage}b{block}"
            stride = 2 if stage and not block else 1
            h = F.relu(norm(F.conv2d(x, p[q + ".c1"], stride=stride, padding=1), q + ".n1"))
            h = norm(F.conv2d(h, p[q + ".c2"], padding=1), q + ".n2")
            if stride == 2:
                x = norm(F.conv2d(x, p[q + ".sc"], stride=2), q + ".ns")
            x = F.relu(x + h)
    return F.linear(x.mean((2, 3)), p["fw"], p["fb"])


def optimizer(o: dict, params: list) -> Any:
    """Return the optimizer that a workload names."""
    if o["name"] == "sgd":
        return tinyc.optim.SGD(params, lr=o["lr"], momentum=o["momentum"])
    return tinyc.optim.Adam(params, lr=o["lr"], betas=(o["b1"], o["b2"]), eps=o["eps"])


def train(w: dict) -> Case | None:
    """Return the case of a model's training step in one jit."""
    name = w["name"]
    if name.startswith("gpt"):
        return None
    arrays, x, y = weights.load(name)
    p = {k: tensor(v) for k, v in arrays.items()}
    params = [p[k].requires_grad_() for k in p if not k.endswith((".rm", ".rv"))]
    xs, ys = [tensor(v) for v in x], [tensor(v) for v in y]
    model = {"mlp": mlp, "resnet20": resnet20}.get(name, lenet)
    update = optimizer(w["opt"], params)

    @tinyc.jit
    def step(a: Any, b: Any) -> Any:
        loss = F.cross_entropy(model(p, a), b)
        update.zero_grad()
        loss.backward()
        update.step()
        return loss

    return training_case(lambda i: step(xs[i % 4], ys[i % 4]), lambda loss: loss.item())


def function_of(w: dict) -> Callable | None:
    """Return the function that an operation workload computes."""
    name = w["name"]
    if name.startswith("ew_chain"):
        return lambda a, b, c: (a * b + c).tanh() * a.sigmoid() - b.relu() * 0.5
    if name.startswith("ew_fma"):
        return lambda a, b, c: a * b + c
    if name.startswith("softmax"):
        return lambda x: x.softmax(-1)
    if name.startswith("layernorm"):
        return layer_norm
    if name.startswith("sum"):
        return lambda x: x.sum()
    if name.startswith("transpose"):
        return lambda x: x.T.contiguous()
    if w["kind"] == "mm":
        return lambda a, b: a @ b
    if w["kind"] == "conv":
        return lambda x, k, b: F.conv2d(x, k, b, padding=w["k"] // 2, groups=w["g"])
    return None


def layer_norm(x: Any, g: Any, b: Any) -> Any:
    """Return the normalised last axis, scaled and shifted."""
    mean = x.mean(-1, keepdim=True)
    var = x.var(-1, correction=0, keepdim=True)
    return (x - mean) * (var + 1e-5).rsqrt() * g + b


def tiny(w: dict, args: list) -> Case:
    """Return the case of a thousand additions of ten numbers."""
    n, name = w["n"], w["name"]
    if name == "tiny_unroll":
        return operation(repeat_add(n), args)
    add = tinyc.jit(lambda x, b: x + b) if name == "tiny_jitcall" else _realized_add
    x, b = args

    def run(m: int) -> Any:
        for _ in range(m):
            y = x
            for _ in range(n):
                y = add(y, b)
        return y

    return Case(run, lambda: [run(1).numpy()])


def _realized_add(x: Any, b: Any) -> Any:
    return (x + b).realize()


def gradients(function: Callable) -> Callable:
    """Return a function of inputs and cotangent that gives the gradient of every input."""

    def of_inputs(*args: Any) -> tuple:
        *inputs, dy = args
        _, pullback = tinyc.vjp(function, *inputs)
        return pullback(dy)

    return of_inputs


def make(w: dict, mode: str) -> Case | None:
    """Return the case of a workload, None for those whose operations tinyc does not have yet."""
    if w["kind"] == "train":
        return train(w)
    if w["kind"] in ("decode", "attn"):
        return None
    args = [tensor(v) for v in workloads.inputs(w)]
    if w["kind"] == "tiny":
        return tiny(w, args)
    function = function_of(w)
    if function is None:
        return None
    if w.get("bwd"):
        return operation(gradients(function), args)
    return operation(function, args[:-1] if "bwd" in w else args)
