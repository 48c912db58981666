"""PyTorch: eager, and compile (inductor) where it does anything of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import weights
import workloads

from adapters.case import Case, as_tuple, repeat_add, training_case

MODES = ["eager", "compile"]
device = "cpu"
torch: Any = None
F: Any = None


def init(mode: str, threads: int, on: str = "cpu") -> None:
    """Import torch, set its threads, and let tensors be on a device."""
    global torch, F, device
    import torch as torch_module
    import torch.nn.functional as functional

    torch, F, device = torch_module, functional, on
    torch.set_num_threads(threads)


def tensor(array: np.ndarray) -> Any:
    """Return a tensor on the array's memory, or with its values on another device."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def finish() -> None:
    """Wait until the device has finished."""
    if device == "cuda":
        torch.cuda.synchronize()


def compiled(function: Callable) -> Callable:
    """Return the function through torch.compile, with nothing left of earlier ones."""
    torch._dynamo.reset()
    return torch.compile(function)


def operation(function: Callable, args: list, grad: bool = False) -> Case:
    """Return the case of a function of tensors."""
    context = torch.enable_grad if grad else torch.no_grad

    def run(n: int) -> Any:
        with context():
            for _ in range(n):
                y = function(*args)
        finish()
        return y

    return Case(run, lambda: [t.detach().cpu().numpy() for t in as_tuple(run(1))])


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
    """Return the fused optimizer that a workload names."""
    if o["name"] == "sgd":
        return torch.optim.SGD(params, lr=o["lr"], momentum=o["momentum"], fused=True)
    common = {"lr": o["lr"], "betas": (o["b1"], o["b2"]), "eps": o["eps"], "fused": True}
    if o["name"] == "adam":
        return torch.optim.Adam(params, **common)
    groups = [
        {"params": [t for t in params if t.dim() >= 2], "weight_decay": o["wd"]},
        {"params": [t for t in params if t.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, **common)


def train(w: dict, mode: str) -> Case:
    """Return the case of a model's training step."""
    name = w["name"]
    arrays, x, y = weights.load(name)
    p = {k: tensor(v) for k, v in arrays.items()}
    params = [p[k].requires_grad_() for k in p if not k.endswith((".rm", ".rv"))]
    xs, ys = [tensor(v) for v in x], [tensor(v) for v in y]
    model = {"mlp": mlp, "resnet20": resnet20}.get(name, lenet)

    def loss_of(p: dict, a: Any, b: Any) -> Any:
        if name.startswith("gpt"):
            logits = gpt(p, a, w["L"], w["H"])
            return F.cross_entropy(logits.view(-1, logits.shape[-1]), b.reshape(-1))
        return F.cross_entropy(model(p, a), b)

    update = optimizer(w["opt"], params)
    loss_fn = compiled(loss_of) if mode == "compile" else loss_of

    def one(i: int) -> Any:
        update.zero_grad(set_to_none=True)
        loss = loss_fn(p, xs[i % 4], ys[i % 4])
        loss.backward()
        update.step()
        return loss

    case = training_case(one, lambda loss: float(loss.detach()))
    return Case(lambda n: (case.run(n), finish()), step=case.step)


class Decoder:
    """Greedy decoding with a cache of keys and values."""

    def __init__(self, w: dict) -> None:
        self.p = {k: tensor(v) for k, v in weights.load_for(w)[0].items()}
        self.w, self.head = w, w["C"] // w["H"]
        self.keys = torch.zeros(w["L"], 1, w["H"], w["T"], self.head)
        self.values = torch.zeros_like(self.keys)
        self.positions = [torch.tensor([[i]]) for i in range(w["T"])]

    def trunk(self, token: Any, position: Any, attend: Callable) -> Any:
        """Return the next token; ``attend(layer, q, k, v)`` stores and reads the cache."""
        p, c = self.p, self.w["C"]
        x = F.embedding(token, p["wte"]) + F.embedding(position, p["wpe"])
        for i in range(self.w["L"]):
            q = f"h{i}."
            a = F.linear(F.layer_norm(x, (c,), p[q + "ln1"], None, 1e-5), p[q + "qkv"])
            qkv = a.view(1, 1, 3, self.w["H"], self.head).permute(2, 0, 3, 1, 4)
            y = attend(i, *qkv)
            x = x + F.linear(y.transpose(1, 2).reshape(1, 1, c), p[q + "proj"])
            x = x + feed_forward(p, q, x)
        logits = F.linear(F.layer_norm(x, (c,), p["lnf"], None, 1e-5), p["wte"])
        return logits[0, 0].argmax()

    def eager(self, token: Any, position: int) -> Any:
        """Take one step on exactly the part of the cache that is filled."""

        def attend(i: int, q: Any, k: Any, v: Any) -> Any:
            self.keys[i, :, :, position] = k[:, :, 0]
            self.values[i, :, :, position] = v[:, :, 0]
            past = slice(0, position + 1)
            return F.scaled_dot_product_attention(
                q, self.keys[i, :, :, past], self.values[i, :, :, past]
            )

        return self.trunk(token, self.positions[position], attend)

    def masked(self) -> Callable:
        """Return a compiled step with static shapes: masked attention over the whole cache."""
        every = torch.arange(self.w["T"])

        def body(token: Any, position: Any) -> Any:
            mask = (every <= position[0, 0])[None, None, None]

            def attend(i: int, q: Any, k: Any, v: Any) -> Any:
                self.keys[i].index_copy_(2, position[0], k)
                self.values[i].index_copy_(2, position[0], v)
                return F.scaled_dot_product_attention(
                    q, self.keys[i], self.values[i], attn_mask=mask
                )

            return self.trunk(token, position, attend)

        step = compiled(body)
        return lambda token, position: step(token, self.positions[position])


def decode(w: dict, mode: str) -> Case:
    """Return the case of generating tokens."""
    decoder = Decoder(w)
    step = decoder.eager if mode == "eager" else decoder.masked()

    def generate() -> list[int]:
        token, out = 0, []
        with torch.no_grad():
            for position in range(w["n_new"]):
                token = int(step(torch.tensor([[token]]), position))
                out.append(token)
        return out

    return Case(lambda n: [generate() for _ in range(n)], generate)


def backward(function: Callable, args: list, dy: Any, mode: str) -> Case:
    """Return the case of a function's forward and the gradients of all its arguments."""
    for t in args:
        t.requires_grad_()
    f = compiled(function) if mode == "compile" else function
    return operation(lambda *a: torch.autograd.grad(f(*a), a, dy), args, grad=True)


def function_of(w: dict, mode: str) -> Callable | None:
    """Return the function that an operation workload computes, None where the mode has none."""
    name = w["name"]
    if name.startswith("ew_chain"):
        return lambda a, b, c: torch.tanh(a * b + c) * torch.sigmoid(a) - torch.relu(b) * 0.5
    if name.startswith("ew_fma"):
        eager = mode == "eager"
        return (lambda a, b, c: torch.addcmul(c, a, b)) if eager else (lambda a, b, c: a * b + c)
    if name.startswith("softmax"):
        return lambda x: torch.softmax(x, -1)
    if name.startswith("layernorm"):
        return lambda x, g, b: F.layer_norm(x, x.shape[-1:], g, b, 1e-5)
    if name.startswith("sum"):
        return lambda x: x.sum()
    if name.startswith("transpose"):
        return lambda x: x.t().clone(memory_format=torch.contiguous_format)
    if w["kind"] == "mm":  # compile calls the same library
        return torch.matmul if mode == "eager" else None
    if w["kind"] == "conv":
        return lambda x, k, b: F.conv2d(x, k, b, padding=w["k"] // 2, groups=w["g"])
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)


def tiny(w: dict, mode: str, args: list) -> Case | None:
    """Return the case of a thousand additions of ten numbers."""
    n, name = w["n"], w["name"]
    if (name == "tiny_eager") != (mode == "eager"):
        return None
    if name == "tiny_eager":
        return operation(repeat_add(n), args)
    if name == "tiny_unroll":
        return operation(compiled(repeat_add(n)), args)
    add = compiled(lambda x, b: x + b)

    def loop(x: Any, b: Any) -> Any:
        for _ in range(n):
            x = add(x, b)
        return x

    return operation(loop, args)


def make(w: dict, mode: str) -> Case | None:
    """Return the case of a workload."""
    if w["kind"] == "train":
        return train(w, mode)
    if w["kind"] == "decode":
        return decode(w, mode)
    args = [tensor(v) for v in workloads.inputs(w)]
    if w["kind"] == "tiny":
        return tiny(w, mode, args)
    function = function_of(w, mode)
    if function is None:
        return None
    if w.get("bwd"):
        return backward(function, args[:-1], args[-1], mode)
    if "bwd" in w:
        args = args[:-1]
    return operation(compiled(function) if mode == "compile" else function, args)
