"""tinygrad on its CPU device, which needs clang: TinyJit, and TinyJit with a BEAM of 2."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import weights
import workloads

from adapters.case import Case, as_tuple, repeat_add, training_case

MODES = ["jit", "beam"]
tinygrad: Any = None
device: Any = None


def init(mode: str, threads: int) -> None:
    """Import tinygrad with its CPU device."""
    global tinygrad, device
    os.environ["DEV"] = os.environ.get("TINYGRAD_DEV", "CPU")
    os.environ["NUM_CPU_THREADS"] = str(threads)
    if mode == "beam":
        os.environ["BEAM"] = "2"
    import tinygrad as module
    import tinygrad.nn

    tinygrad = module
    device = tinygrad.Device[tinygrad.Device.DEFAULT]


def tensor(array: np.ndarray) -> Any:
    """Return a realized tensor."""
    return tinygrad.Tensor(np.ascontiguousarray(array)).realize()


def operation(function: Callable, arrays: list) -> Case:
    """Return the case of a jitted function of tensors."""
    args = [tensor(a) for a in arrays]

    def realized(*a: Any) -> tuple:
        y = as_tuple(function(*a))
        tinygrad.Tensor.realize(*y)
        return y

    jitted = tinygrad.TinyJit(realized)

    def run(n: int) -> Any:
        for _ in range(n):
            y = jitted(*args)
            device.synchronize()
        return y

    def check() -> list:
        for _ in range(3):  # traced, captured, replayed
            y = run(1)
        return [t.numpy() for t in y]

    return Case(run, check)


def mlp(p: dict, x: Any) -> Any:
    """Return the logits of the 784-512-512-10 network."""
    x = x.linear(p["w0"].T, p["b0"]).relu()
    x = x.linear(p["w1"].T, p["b1"]).relu()
    return x.linear(p["w2"].T, p["b2"])


def lenet(p: dict, x: Any) -> Any:
    """Return the logits of LeNet."""
    x = x.conv2d(p["c1w"], p["c1b"], padding=2).relu().max_pool2d((2, 2))
    x = x.conv2d(p["c2w"], p["c2b"]).relu().max_pool2d((2, 2)).flatten(1)
    x = x.linear(p["f0w"].T, p["f0b"]).relu()
    x = x.linear(p["f1w"].T, p["f1b"]).relu()
    return x.linear(p["f2w"].T, p["f2b"])


def batch_norm(p: dict, x: Any, n: str) -> Any:
    """Normalise as tinygrad's own layer does in training, and update the running statistics."""
    mean = x.mean(axis=(0, 2, 3))
    centred = x - mean.detach().reshape(1, -1, 1, 1)
    var = (centred * centred).mean(axis=(0, 2, 3))
    count = x.numel() // x.shape[1]
    p[n + ".rm"].assign(0.9 * p[n + ".rm"] + 0.1 * mean.detach())
    unbiased = 0.1 * count / (count - 1)
    p[n + ".rv"].assign(0.9 * p[n + ".rv"] + unbiased * var.detach())
    return x.batchnorm(p[n + ".g"], p[n + ".b"], mean, var.add(1e-5).rsqrt())


def resnet20(p: dict, x: Any) -> Any:
    """Return the logits of ResNet-20 and update the running statistics."""
    x = batch_norm(p, x.conv2d(p["c0"], padding=1), "n0").relu()
    for stage in range(3):
        for block in range(3):
            q = f"s{stage}b{block}"
            stride = 2 if stage and not block else 1
            h = x.conv2d(p[q + ".c1"], stride=stride, padding=1)
            h = batch_norm(p, h, q + ".n1").relu()
            h = batch_norm(p, h.conv2d(p[q + ".c2"], padding=1), q + ".n2")
            if stride == 2:
                x = batch_norm(p, x.conv2d(p[q + ".sc"], stride=2), q + ".ns")
            x = (x + h).relu()
    return x.mean((2, 3)).linear(p["fw"].T, p["fb"])


def feed_forward(p: dict, q: str, x: Any) -> Any:
    """Return the second half of a transformer block."""
    h = (x.layernorm(eps=1e-5) * p[q + "ln2"]).linear(p[q + "fc"].T)
    return h.gelu().linear(p[q + "fc2"].T)


def gpt(p: dict, tokens: Any, layers: int, heads: int) -> Any:
    """Return the logits of the character transformer."""
    b, t = tokens.shape
    c = p["wte"].shape[1]
    x = p["wte"][tokens] + p["wpe"][:t]
    for i in range(layers):
        q = f"h{i}."
        a = (x.layernorm(eps=1e-5) * p[q + "ln1"]).linear(p[q + "qkv"].T)
        qkv = [s.reshape(b, t, heads, c // heads).transpose(1, 2) for s in a.split(c, 2)]
        y = qkv[0].scaled_dot_product_attention(qkv[1], qkv[2], is_causal=True)
        x = x + y.transpose(1, 2).reshape(b, t, c).linear(p[q + "proj"].T)
        x = x + feed_forward(p, q, x)
    return (x.layernorm(eps=1e-5) * p["lnf"]).linear(p["wte"].T)


def optimizer(o: dict, params: list) -> Any:
    """Return the optimizer that a workload names."""
    optim = tinygrad.nn.optim
    if o["name"] == "sgd":
        return optim.SGD(params, lr=o["lr"], momentum=o["momentum"])
    common = {"lr": o["lr"], "b1": o["b1"], "b2": o["b2"], "eps": o["eps"]}
    if o["name"] == "adam":
        return optim.Adam(params, **common)
    matrices = [t for t in params if t.ndim >= 2]
    vectors = [t for t in params if t.ndim < 2]
    return optim.OptimizerGroup(
        optim.AdamW(matrices, weight_decay=o["wd"], **common),
        optim.AdamW(vectors, weight_decay=0.0, **common),
    )


def train(w: dict, mode: str) -> Case:
    """Return the case of a model's training step in one TinyJit."""
    name = w["name"]
    arrays, x, y = weights.load(name)
    p = {k: tensor(v) for k, v in arrays.items()}
    for k in p:
        if k.endswith((".rm", ".rv")):
            p[k].is_param_(False)
    is_gpt = name.startswith("gpt")
    xs = [tensor(v.astype(np.int32) if is_gpt else v) for v in x]
    ys = [tensor(v.astype(np.int32)) for v in y]
    model = {"mlp": mlp, "resnet20": resnet20}.get(name, lenet)
    update = optimizer(w["opt"], list(p.values()))

    @tinygrad.TinyJit
    def step(a: Any, b: Any) -> Any:
        with tinygrad.Context(TRAINING=1):
            update.zero_grad()
            logits = gpt(p, a, w["L"], w["H"]).flatten(0, 1) if is_gpt else model(p, a)
            loss = logits.sparse_categorical_crossentropy(b.flatten() if is_gpt else b)
            loss.backward()
            return loss.realize(*update.schedule_step())

    def one(i: int) -> Any:
        loss = step(xs[i % 4], ys[i % 4])
        device.synchronize()
        return loss

    return training_case(one, lambda loss: loss.item())


class Decoder:
    """Greedy decoding with a cache of keys and values and a symbolic position."""

    def __init__(self, w: dict) -> None:
        self.p = {k: tensor(v) for k, v in weights.load_for(w)[0].items()}
        self.w, self.head = w, w["C"] // w["H"]
        shape = (1, w["H"], w["T"], self.head)
        zeros = tinygrad.Tensor.zeros
        self.keys = [zeros(*shape).contiguous().realize() for _ in range(w["L"])]
        self.values = [zeros(*shape).contiguous().realize() for _ in range(w["L"])]
        self.position = tinygrad.Variable("position", 1, w["T"] - 1)
        self.jitted = tinygrad.TinyJit(self.forward)

    def forward(self, token: Any, position: Any) -> Any:
        """Return the next token, realized."""
        p, c = self.p, self.w["C"]
        here = (position, position + 1)
        x = (p["wte"][token] + p["wpe"].shrink((here, None))).reshape(1, 1, c)
        for i in range(self.w["L"]):
            q = f"h{i}."
            a = (x.layernorm(eps=1e-5) * p[q + "ln1"]).linear(p[q + "qkv"].T)
            a = a.reshape(3, 1, self.w["H"], 1, self.head)
            self.keys[i].shrink((None, None, here, None)).assign(a[1]).realize()
            self.values[i].shrink((None, None, here, None)).assign(a[2]).realize()
            past = (None, None, (0, position + 1), None)
            k, v = self.keys[i].shrink(past), self.values[i].shrink(past)
            y = a[0].scaled_dot_product_attention(k, v)
            x = x + y.transpose(1, 2).reshape(1, 1, c).linear(p[q + "proj"].T)
            x = x + feed_forward(p, q, x)
        logits = (x.layernorm(eps=1e-5) * p["lnf"]).linear(p["wte"].T)
        return logits.reshape(-1).argmax().cast(tinygrad.dtypes.int32).realize()

    def generate(self) -> list[int]:
        """Return the tokens of one run from an empty cache."""
        out: list[int] = []
        for i in range(self.w["n_new"]):
            token = tinygrad.Tensor([out[-1] if out else 0], dtype=tinygrad.dtypes.int32).realize()
            step = self.jitted(token, self.position.bind(i)) if i else self.forward(token, 0)
            out.append(step.item())
        return out


def decode(w: dict, mode: str) -> Case:
    """Return the case of generating tokens."""
    decoder = Decoder(w)
    return Case(lambda n: [decoder.generate() for _ in range(n)], decoder.generate)


def function_of(w: dict) -> Callable:
    """Return the function that an operation workload computes."""
    name = w["name"]
    if name.startswith("ew_chain"):
        return lambda a, b, c: (a * b + c).tanh() * a.sigmoid() - b.relu() * 0.5
    if name.startswith("ew_fma"):
        return lambda a, b, c: a * b + c
    if name.startswith("softmax"):
        return lambda x: x.softmax(-1)
    if name.startswith("layernorm"):
        return lambda x, g, b: x.layernorm(eps=1e-5) * g + b
    if name.startswith("sum"):
        return lambda x: x.sum()
    if name.startswith("transpose"):
        return lambda x: x.T.contiguous()
    if w["kind"] == "mm":
        return lambda a, b: a @ b
    if w["kind"] == "conv":
        return lambda x, k, b: x.conv2d(k, b, padding=w["k"] // 2, groups=w["g"])
    return lambda q, k, v: q.scaled_dot_product_attention(k, v, is_causal=True)


def tiny(w: dict, arrays: list) -> Case:
    """Return the case of a thousand additions of ten numbers."""
    n, name = w["n"], w["name"]
    if name == "tiny_unroll":
        return operation(repeat_add(n), arrays)
    x, b = tensor(arrays[0]), tensor(arrays[1])
    # outputs of a TinyJit live in reused buffers, so two captures take turns
    add = [lambda x, b: (x + b).realize()] * 2
    if name == "tiny_jitcall":
        add = [tinygrad.TinyJit(f) for f in add]

    def run(m: int) -> Any:
        for _ in range(m):
            y = x
            for i in range(n):
                y = add[i & 1](y, b)
            device.synchronize()
        return y

    return Case(run, lambda: [run(1).numpy()])


def make(w: dict, mode: str) -> Case:
    """Return the case of a workload."""
    if w["kind"] == "train":
        return train(w, mode)
    if w["kind"] == "decode":
        return decode(w, mode)
    arrays = workloads.inputs(w)
    if w["kind"] == "tiny":
        return tiny(w, arrays)
    function = function_of(w)
    if not w.get("bwd"):
        return operation(function, arrays[:-1] if "bwd" in w else arrays)

    def gradients(*a: Any) -> tuple:
        *inputs, dy = a
        return tuple(function(*inputs).gradient(*inputs, gradient=dy))

    return operation(gradients, arrays)
