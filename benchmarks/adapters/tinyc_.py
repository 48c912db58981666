"""tinyc: the whole step in one ``@jit``; ``unfused`` runs one operation to a kernel, and ``tuned``
has timed a few ways to make each kernel."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import weights
import workloads

from adapters.case import Case, as_tuple, repeat_add, training_case

MODES = ["jit", "unfused", "tuned", "opencl", "cuda"]
tinyc: Any = None
F: Any = None


def init(mode: str, threads: int) -> None:
    """Import tinyc with its threads, and with what the mode asks for."""
    global tinyc, F
    os.environ["TINYC_THREADS"] = str(threads)
    import tinyc as module
    import tinyc.nn.functional as functional

    tinyc, F = module, functional
    tinyc.configure(threads=threads, fuse=mode != "unfused", tune=mode == "tuned")
    if mode.startswith(("opencl", "cuda")):
        tinyc.device(mode)


def tensor(array: np.ndarray) -> Any:
    """Return a tensor that holds the array's values."""
    return tinyc.Tensor(np.ascontiguousarray(array))


def operation(function: Callable, args: list, frozen: Any = None) -> Case:
    """Return the case of a jitted function of tensors."""
    jitted = tinyc.jit(function, frozen=frozen)

    def run(n: int) -> Any:
        for _ in range(n):
            y = jitted(*args)
        tinyc.synchronize()
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


def gpt(p: dict, tokens: Any, layers: int, heads: int) -> Any:
    """Return the logits of the character transformer."""
    b, t = tokens.shape
    c = p["wte"].shape[1]
    x = F.embedding(tokens, p["wte"]) + p["wpe"][:t]
    for i in range(layers):
        q = f"h{i}."
        a = F.linear(F.layer_norm(x, (c,), p[q + "ln1"], None, 1e-5), p[q + "qkv"])
        qkv = [s.view(b, t, heads, c // heads).transpose(1, 2) for s in a.split(c, 2)]
        y = F.scaled_dot_product_attention(*qkv, is_causal=True)
        x = x + F.linear(y.transpose(1, 2).reshape(b, t, c), p[q + "proj"])
        x = x + feed_forward(p, q, x)
    return F.linear(F.layer_norm(x, (c,), p["lnf"], None, 1e-5), p["wte"])


def feed_forward(p: dict, q: str, x: Any) -> Any:
    """Return the second half of a transformer block."""
    h = F.layer_norm(x, x.shape[-1:], p[q + "ln2"], None, 1e-5)
    return F.linear(F.gelu(F.linear(h, p[q + "fc"]), approximate="tanh"), p[q + "fc2"])


def optimizer(o: dict, params: list) -> Any:
    """Return the optimizer that a workload names."""
    if o["name"] == "sgd":
        return tinyc.optim.SGD(params, lr=o["lr"], momentum=o["momentum"])
    common = {"lr": o["lr"], "betas": (o["b1"], o["b2"]), "eps": o["eps"]}
    if o["name"] == "adam":
        return tinyc.optim.Adam(params, **common)
    groups = [
        {"params": [t for t in params if t.ndim >= 2], "weight_decay": o["wd"]},
        {"params": [t for t in params if t.ndim < 2], "weight_decay": 0.0},
    ]
    return tinyc.optim.AdamW(groups, **common)


def train(w: dict) -> Case:
    """Return the case of a model's training step in one jit."""
    name = w["name"]
    arrays, x, y = weights.load(name)
    p = {k: tensor(v) for k, v in arrays.items()}
    params = [p[k].requires_grad_() for k in p if not k.endswith((".rm", ".rv"))]
    xs, ys = [tensor(v) for v in x], [tensor(v) for v in y]
    model = {"mlp": mlp, "resnet20": resnet20}.get(name, lenet)
    update = optimizer(w["opt"], params)

    def loss_of(a: Any, b: Any) -> Any:
        if name.startswith("gpt"):
            logits = gpt(p, a, w["L"], w["H"])
            return F.cross_entropy(logits.view(-1, logits.shape[-1]), b.reshape(-1))
        return F.cross_entropy(model(p, a), b)

    @tinyc.jit
    def step(a: Any, b: Any) -> Any:
        loss = loss_of(a, b)
        update.zero_grad()
        loss.backward()
        update.step()
        return loss

    case = training_case(lambda i: step(xs[i % 4], ys[i % 4]), lambda loss: loss.item())
    return Case(lambda n: (case.run(n), tinyc.synchronize()), step=case.step)


class Decoder:
    """Greedy decoding with a cache of keys and values; token and place are state as well."""

    def __init__(self, w: dict) -> None:
        self.p = {k: tensor(v) for k, v in weights.load_for(w)[0].items()}
        self.w, self.head = w, w["C"] // w["H"]
        shape = (1, w["H"], w["T"], self.head)
        self.caches = [
            [tensor(np.zeros(shape, np.float32)) for _ in range(2)] for _ in range(w["L"])
        ]
        self.token, self.place = tensor(np.zeros((1, 1), np.int64)), tensor(np.zeros(1, np.int64))
        self.places = tensor(np.arange(w["T"]))

    def attend(self, i: int, q: Any, new: list) -> Any:
        """Store the new key and value of layer i, and attend to what is filled."""
        here = (self.places == self.place).reshape(1, 1, -1, 1)
        for cache, entry in zip(self.caches[i], new):
            cache.assign(tinyc.where(here, entry, cache))
        filled = self.places <= self.place
        return F.scaled_dot_product_attention(q, *self.caches[i], attn_mask=filled)

    def step(self) -> Any:
        """Append one token and return it."""
        p, c = self.p, self.w["C"]
        x = F.embedding(self.token, p["wte"]) + F.embedding(self.place, p["wpe"])
        for i in range(self.w["L"]):
            q = f"h{i}."
            a = F.linear(F.layer_norm(x, (c,), p[q + "ln1"], None, 1e-5), p[q + "qkv"])
            query, *new = a.view(1, 1, 3, self.w["H"], self.head).permute(2, 0, 3, 1, 4).unbind()
            y = self.attend(i, query, new)
            x = x + F.linear(y.transpose(1, 2).reshape(1, 1, c), p[q + "proj"])
            x = x + feed_forward(p, q, x)
        logits = F.linear(F.layer_norm(x, (c,), p["lnf"], None, 1e-5), p["wte"])
        following = logits[0, 0].argmax()
        self.token.assign(following.reshape(1, 1))
        self.place.assign(self.place + 1)
        return following


def decode(w: dict) -> Case:
    """Return the case of generating tokens: one native call for each."""
    decoder = Decoder(w)
    step = tinyc.jit(decoder.step)

    def generate() -> list[int]:
        decoder.token.load([[0]])
        decoder.place.load([0])
        return [step().item() for _ in range(w["n_new"])]

    return Case(lambda n: [generate() for _ in range(n)], generate)


def attention(q: Any, k: Any, v: Any) -> Any:
    """Return causal attention."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


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
    if w["kind"] == "attn":
        return attention
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
    if w["kind"] == "decode":
        return decode(w)
    args = [tensor(v) for v in workloads.inputs(w)]
    if w["kind"] == "tiny":
        return tiny(w, args)
    function = function_of(w)
    if function is None:
        return None
    if w.get("frozen"):
        x, weight = args
        return operation(lambda x: function(x, weight), [x], weight)
    if w.get("bwd"):
        return operation(gradients(function), args)
    return operation(function, args[:-1] if "bwd" in w else args)
