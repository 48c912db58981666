"""JAX under jit, the whole step in one function with donated state.

Mode ``jit`` lays images out as NHWC, which XLA prefers on a CPU; ``jit_nchw`` leaves them NCHW.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import weights
import workloads

from adapters.case import Case, as_tuple, repeat_add, training_case

MODES = ["jit", "jit_nchw"]
jax: Any = None
jnp: Any = None


def init(mode: str, threads: int) -> None:
    """Import JAX."""
    global jax, jnp
    import jax as jax_module
    import jax.numpy as numpy_module

    jax, jnp = jax_module, numpy_module


def tensor(array: np.ndarray) -> Any:
    """Return an array in JAX's memory."""
    return jax.block_until_ready(jnp.asarray(np.ascontiguousarray(array)))


def operation(function: Callable, arrays: list, jit: bool = True) -> Case:
    """Return the case of a function of arrays."""
    f = jax.jit(function) if jit else function
    args = [tensor(a) for a in arrays]

    def run(n: int) -> Any:
        for _ in range(n):
            y = f(*args)
            jax.block_until_ready(y)
        return y

    return Case(run, lambda: [np.asarray(t) for t in as_tuple(run(1))])


class Layout:
    """Convolutions, pooling and channel vectors in one of the two layouts."""

    def __init__(self, nchw: bool) -> None:
        self.nchw = nchw
        self.names = ("NCHW", "OIHW", "NCHW") if nchw else ("NHWC", "HWIO", "NHWC")
        self.space = (2, 3) if nchw else (1, 2)
        self.channel = 1 if nchw else 3

    def image(self, x: np.ndarray) -> np.ndarray:
        """Return a NCHW array (with any leading axes) in this layout."""
        return x if self.nchw else np.moveaxis(x, -3, -1)

    def kernel(self, w: np.ndarray) -> np.ndarray:
        """Return an OIHW array in this layout."""
        return w if self.nchw else w.transpose(2, 3, 1, 0)

    def back(self, array: np.ndarray, kernel: bool = False) -> np.ndarray:
        """Return a result in NCHW, or OIHW where it is a kernel."""
        if self.nchw or array.ndim != 4:
            return array
        return array.transpose(3, 2, 0, 1) if kernel else array.transpose(0, 3, 1, 2)

    def conv(self, x: Any, w: Any, stride: int = 1, pad: int = 0, groups: int = 1) -> Any:
        """Return the convolution."""
        return jax.lax.conv_general_dilated(
            x, w, (stride, stride), [(pad, pad)] * 2,
            dimension_numbers=self.names, feature_group_count=groups,
        )  # fmt: skip

    def vector(self, v: Any) -> Any:
        """Return a channel vector in the shape that broadcasts."""
        return v[:, None, None] if self.nchw else v

    def pool(self, x: Any) -> Any:
        """Return the maxima of 2x2 blocks."""
        window = (1, 1, 2, 2) if self.nchw else (1, 2, 2, 1)
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")


def linear(x: Any, w: Any, b: Any = 0.0) -> Any:
    """Return ``x @ w.T + b``."""
    return x @ w.T + b


def cross_entropy(logits: Any, y: Any) -> Any:
    """Return the mean cross entropy with integer labels."""
    logs = jax.nn.log_softmax(logits, -1)
    return -jnp.take_along_axis(logs, y[..., None], -1).mean()


def mlp(p: dict, s: dict, x: Any, layout: Layout) -> tuple[Any, dict]:
    """Return the logits of the 784-512-512-10 network, and its state."""
    x = jax.nn.relu(linear(x, p["w0"], p["b0"]))
    x = jax.nn.relu(linear(x, p["w1"], p["b1"]))
    return linear(x, p["w2"], p["b2"]), s


def lenet(p: dict, s: dict, x: Any, layout: Layout) -> tuple[Any, dict]:
    """Return the logits of LeNet, and its state."""
    relu, vector = jax.nn.relu, layout.vector
    x = layout.pool(relu(layout.conv(x, p["c1w"], pad=2) + vector(p["c1b"])))
    x = layout.pool(relu(layout.conv(x, p["c2w"]) + vector(p["c2b"])))
    if not layout.nchw:
        x = x.transpose(0, 3, 1, 2)
    x = x.reshape(x.shape[0], -1)
    x = relu(linear(x, p["f0w"], p["f0b"]))
    x = relu(linear(x, p["f1w"], p["f1b"]))
    return linear(x, p["f2w"], p["f2b"]), s


def resnet20(p: dict, s: dict, x: Any, layout: Layout) -> tuple[Any, dict]:
    """Return the logits of ResNet-20, and its new running statistics."""
    new = dict(s)
    axes = (0, *layout.space)

    def norm(x: Any, n: str) -> Any:
        mean = x.mean(axes)
        var = (x * x).mean(axes) - mean * mean
        count = x.size // x.shape[layout.channel]
        new[n + ".rm"] = 0.9 * s[n + ".rm"] + 0.1 * mean
        new[n + ".rv"] = 0.9 * s[n + ".rv"] + 0.1 * var * (count / (count - 1))
        scale = p[n + ".g"] * jax.lax.rsqrt(var + 1e-5)
        return x * layout.vector(scale) + layout.vector(p[n + ".b"] - mean * scale)

    x = jax.nn.relu(norm(layout.conv(x, p["c0"], pad=1), "n0"))
    for stage in range(3):
        for block in range(3):
            q = f"s{stage}b{block}"
            stride = 2 if stage and not block else 1
            h = jax.nn.relu(norm(layout.conv(x, p[q + ".c1"], stride, 1), q + ".n1"))
            h = norm(layout.conv(h, p[q + ".c2"], 1, 1), q + ".n2")
            if stride == 2:
                x = norm(layout.conv(x, p[q + ".sc"], 2), q + ".ns")
            x = jax.nn.relu(x + h)
    return linear(x.mean(layout.space), p["fw"], p["fb"]), new


def layer_norm(x: Any, g: Any) -> Any:
    """Return the normalised last axis, scaled."""
    mean = x.mean(-1, keepdims=True)
    var = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(var + 1e-5) * g


def attention(q: Any, k: Any, v: Any, mask: Any) -> Any:
    """Return masked attention over [batch, head, position, size]."""
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k) * (q.shape[-1] ** -0.5)
    weight = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), -1)
    return jnp.einsum("bhqk,bhkd->bhqd", weight, v)


def causal_attention(q: Any, k: Any, v: Any) -> Any:
    """Return attention to earlier positions."""
    t = q.shape[-2]
    return attention(q, k, v, jnp.tril(jnp.ones((t, t), bool)))


def feed_forward(p: dict, q: str, x: Any) -> Any:
    """Return the second half of a transformer block."""
    h = linear(layer_norm(x, p[q + "ln2"]), p[q + "fc"])
    return linear(jax.nn.gelu(h, approximate=True), p[q + "fc2"])


def gpt(p: dict, tokens: Any, layers: int, heads: int) -> Any:
    """Return the logits of the character transformer."""
    b, t = tokens.shape
    c = p["wte"].shape[1]
    x = p["wte"][tokens] + p["wpe"][:t]
    for i in range(layers):
        q = f"h{i}."
        a = linear(layer_norm(x, p[q + "ln1"]), p[q + "qkv"]).reshape(b, t, 3, heads, c // heads)
        y = causal_attention(*a.transpose(2, 0, 3, 1, 4))
        x = x + linear(y.transpose(0, 2, 1, 3).reshape(b, t, c), p[q + "proj"])
        x = x + feed_forward(p, q, x)
    return linear(layer_norm(x, p["lnf"]), p["wte"])


def optimizer(o: dict, p: dict) -> tuple[Any, Callable]:
    """Return the optimizer's state and its update ``(p, g, state) -> (p, state)``."""
    tree = jax.tree.map

    def sgd(p: dict, g: dict, v: dict) -> tuple[dict, dict]:
        v = tree(lambda v, g: o["momentum"] * v + g, v, g)
        return tree(lambda p, v: p - o["lr"] * v, p, v), v

    def adam(p: dict, g: dict, state: tuple) -> tuple[dict, tuple]:
        m, v, t = state
        t = t + 1
        c1, c2 = 1 - o["b1"] ** t, 1 - o["b2"] ** t
        m = tree(lambda m, g: o["b1"] * m + (1 - o["b1"]) * g, m, g)
        v = tree(lambda v, g: o["b2"] * v + (1 - o["b2"]) * g * g, v, g)

        def update(p: Any, m: Any, v: Any) -> Any:
            decayed = p * (1 - o["lr"] * (o["wd"] if p.ndim >= 2 else 0.0))
            return decayed - o["lr"] * (m / c1) / (jnp.sqrt(v / c2) + o["eps"])

        return tree(update, p, m, v), (m, v, t)

    def zeros() -> dict:
        return tree(jnp.zeros_like, p)

    if o["name"] == "sgd":
        return zeros(), sgd
    return (zeros(), zeros(), jnp.zeros((), jnp.float32)), adam


def train(w: dict, mode: str) -> Case | None:
    """Return the case of a model's training step in one jit."""
    name = w["name"]
    arrays, x, y = weights.load(name)
    if mode == "jit_nchw" and x.ndim != 5:
        return None
    layout = Layout(nchw=mode == "jit_nchw" or x.ndim != 5)
    arrays = {k: layout.kernel(v) if v.ndim == 4 else v for k, v in arrays.items()}
    running = {k: tensor(v) for k, v in arrays.items() if k.endswith((".rm", ".rv"))}
    params = {k: tensor(v) for k, v in arrays.items() if k not in running}
    xs = [tensor(layout.image(v) if v.ndim == 4 else v) for v in x]
    ys = [tensor(v.astype(np.int32)) for v in y]
    model = {"mlp": mlp, "resnet20": resnet20}.get(name, lenet)

    def loss_of(p: dict, s: dict, a: Any, b: Any) -> tuple[Any, dict]:
        if name.startswith("gpt"):
            return cross_entropy(gpt(p, a, w["L"], w["H"]), b), s
        logits, s = model(p, s, a, layout)
        return cross_entropy(logits, b), s

    moments, update = optimizer(w["opt"], params)

    def step(p: dict, s: dict, m: Any, a: Any, b: Any) -> tuple:
        (loss, s), g = jax.value_and_grad(loss_of, has_aux=True)(p, s, a, b)
        p, m = update(p, g, m)
        return loss, (p, s, m)

    jitted = jax.jit(step, donate_argnums=(0, 1, 2))
    state: tuple = (params, running, moments)

    def one(i: int) -> Any:
        nonlocal state
        loss, state = jitted(*state, xs[i % 4], ys[i % 4])
        return jax.block_until_ready(loss)

    return training_case(one, float)


class Decoder:
    """Greedy decoding with a donated cache of keys and values."""

    def __init__(self, w: dict) -> None:
        self.p = {k: tensor(v) for k, v in weights.load_for(w)[0].items()}
        self.w, self.head = w, w["C"] // w["H"]
        self.jitted = jax.jit(self.step, donate_argnums=(1, 2))

    def step(self, p: dict, keys: list, values: list, token: Any, position: Any) -> tuple:
        """Return the next token and the new cache."""
        w, put = self.w, jax.lax.dynamic_update_slice
        x = (p["wte"][token] + p["wpe"][position])[None]
        mask = jnp.arange(w["T"]) <= position
        new_keys, new_values = [], []
        for i in range(w["L"]):
            q = f"h{i}."
            a = linear(layer_norm(x, p[q + "ln1"]), p[q + "qkv"])
            a = a.reshape(3, w["H"], 1, self.head)
            new_keys.append(put(keys[i], a[1], (0, position, 0)))
            new_values.append(put(values[i], a[2], (0, position, 0)))
            y = attention(a[0][None], new_keys[i][None], new_values[i][None], mask)
            x = x + linear(y.reshape(1, w["C"]), p[q + "proj"])
            x = x + feed_forward(p, q, x)
        logits = linear(layer_norm(x, p["lnf"]), p["wte"])
        return jnp.argmax(logits[0]), new_keys, new_values

    def generate(self) -> list[int]:
        """Return the tokens of one run from an empty cache."""
        shape = (self.w["H"], self.w["T"], self.head)
        keys = [jnp.zeros(shape) for _ in range(self.w["L"])]
        values = [jnp.zeros(shape) for _ in range(self.w["L"])]
        out: list[int] = []
        for i in range(self.w["n_new"]):
            token = np.int32(out[-1] if out else 0)
            found, keys, values = self.jitted(self.p, keys, values, token, np.int32(i))
            out.append(int(found))
        return out


def convolution(w: dict, mode: str, arrays: list) -> Case:
    """Return the case of a convolution, or of its three gradients."""
    layout = Layout(nchw=mode == "jit_nchw")
    x, kernel, b, dy = arrays
    args = [layout.image(x), layout.kernel(kernel), b]

    def forward(x: Any, k: Any, b: Any) -> Any:
        return layout.conv(x, k, 1, w["k"] // 2, w["g"]) + layout.vector(b)

    def gradients(x: Any, k: Any, b: Any, dy: Any) -> tuple:
        return jax.vjp(forward, x, k, b)[1](dy)

    if w["bwd"]:
        case = operation(gradients, [*args, layout.image(dy)])
    else:
        case = operation(forward, args)
    results = case.check
    assert results
    case.check = lambda: [layout.back(y, kernel=i == 1) for i, y in enumerate(results())]
    return case


def function_of(w: dict) -> Callable:
    """Return the function that an operation workload computes."""
    name = w["name"]
    if name.startswith("ew_chain"):
        nn = jax.nn
        return lambda a, b, c: jnp.tanh(a * b + c) * nn.sigmoid(a) - nn.relu(b) * 0.5
    if name.startswith("ew_fma"):
        return lambda a, b, c: a * b + c
    if name.startswith("softmax"):
        return lambda x: jax.nn.softmax(x, -1)
    if name.startswith("layernorm"):
        return lambda x, g, b: layer_norm(x, g) + b
    if name.startswith("sum"):
        return lambda x: x.sum()
    if name.startswith("transpose"):
        return lambda x: x.T
    if w["kind"] == "mm":
        return jnp.matmul
    if w["bwd"]:
        return lambda q, k, v, dy: jax.vjp(causal_attention, q, k, v)[1](dy)
    return causal_attention


def tiny(w: dict, arrays: list) -> Case:
    """Return the case of a thousand additions of ten numbers."""
    if w["name"] == "tiny_unroll":
        return operation(repeat_add(w["n"]), arrays)
    if w["name"] == "tiny_eager":
        return operation(repeat_add(w["n"]), arrays, jit=False)
    add = jax.jit(lambda x, b: x + b)

    def loop(x: Any, b: Any) -> Any:
        for _ in range(w["n"]):
            x = add(x, b)
        return x

    return operation(loop, arrays, jit=False)


def make(w: dict, mode: str) -> Case | None:
    """Return the case of a workload; the second mode has only what convolves."""
    if w["kind"] == "train":
        return train(w, mode)
    if mode == "jit_nchw" and w["kind"] != "conv":
        return None
    if w["kind"] == "decode":
        decoder = Decoder(w)
        return Case(lambda n: [decoder.generate() for _ in range(n)], decoder.generate)
    arrays = workloads.inputs(w)
    if w["kind"] == "conv":
        return convolution(w, mode, arrays)
    if w["kind"] == "tiny":
        return tiny(w, arrays)
    if w["kind"] == "attn" and not w["bwd"]:
        arrays = arrays[:-1]
    return operation(function_of(w), arrays)
