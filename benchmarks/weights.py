"""Initial weights and batches of the models, made by numpy from fixed seeds, kept in a folder.

Layouts are PyTorch's: Linear weights [out, in], convolution weights OIHW, images NCHW,
labels int64.
"""

from __future__ import annotations

import os

import numpy as np

WORK = os.environ.get(
    "BENCH_WORK", os.path.join(os.path.dirname(os.path.abspath(__file__)), ".work")
)

Model = tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]


def _uniform(r: np.random.Generator, shape: tuple[int, ...], fan_in: int) -> np.ndarray:
    bound = 1 / np.sqrt(fan_in)
    return r.uniform(-bound, bound, shape).astype(np.float32)


def _normal(r: np.random.Generator, shape: tuple[int, ...], std: float) -> np.ndarray:
    return (r.standard_normal(shape) * std).astype(np.float32)


def mlp() -> Model:
    """784-512-512-10, batches of 128."""
    r = np.random.default_rng(1)
    w = {}
    for i, (a, b) in enumerate([(784, 512), (512, 512), (512, 10)]):
        w[f"w{i}"] = _uniform(r, (b, a), a)
        w[f"b{i}"] = _uniform(r, (b,), a)
    return w, _normal(r, (4, 128, 784), 1.0), r.integers(0, 10, (4, 128))


def lenet(batch: int) -> Model:
    """Two 5x5 convolutions and three linear layers on 1x28x28."""
    r = np.random.default_rng(2)
    w = {}
    w["c1w"], w["c1b"] = _uniform(r, (6, 1, 5, 5), 25), _uniform(r, (6,), 25)
    w["c2w"], w["c2b"] = _uniform(r, (16, 6, 5, 5), 150), _uniform(r, (16,), 150)
    for i, (a, b) in enumerate([(400, 120), (120, 84), (84, 10)]):
        w[f"f{i}w"] = _uniform(r, (b, a), a)
        w[f"f{i}b"] = _uniform(r, (b,), a)
    return w, _normal(r, (4, batch, 1, 28, 28), 1.0), r.integers(0, 10, (4, batch))


def resnet20() -> Model:
    """Three stages of three basic blocks on 3x32x32, batches of 128."""
    r = np.random.default_rng(3)
    w: dict[str, np.ndarray] = {}

    def conv(name: str, out: int, cin: int, k: int) -> None:
        w[name] = _normal(r, (out, cin, k, k), np.sqrt(2 / (cin * k * k)))

    def norm(name: str, c: int) -> None:
        for key, fill in ((".g", 1), (".b", 0), (".rm", 0), (".rv", 1)):
            w[name + key] = np.full(c, fill, np.float32)

    conv("c0", 16, 3, 3)
    norm("n0", 16)
    cin = 16
    for stage, c in enumerate((16, 32, 64)):
        for block in range(3):
            p = f"s{stage}b{block}"
            conv(p + ".c1", c, cin, 3)
            norm(p + ".n1", c)
            conv(p + ".c2", c, c, 3)
            norm(p + ".n2", c)
            if cin != c:
                conv(p + ".sc", c, cin, 1)
                norm(p + ".ns", c)
            cin = c
    w["fw"], w["fb"] = _uniform(r, (10, 64), 64), _uniform(r, (10,), 64)
    return w, _normal(r, (4, 128, 3, 32, 32), 1.0), r.integers(0, 10, (4, 128))


def gpt(layers: int, c: int, t: int, b: int, seed: int, v: int = 65) -> Model:
    """A character transformer with tied embeddings and no biases."""
    r = np.random.default_rng(seed)
    w = {"wte": _normal(r, (v, c), 0.02), "wpe": _normal(r, (t, c), 0.02)}
    residual = 0.02 / np.sqrt(2 * layers)
    for i in range(layers):
        p = f"h{i}."
        w[p + "ln1"] = np.ones(c, np.float32)
        w[p + "qkv"] = _normal(r, (3 * c, c), 0.02)
        w[p + "proj"] = _normal(r, (c, c), residual)
        w[p + "ln2"] = np.ones(c, np.float32)
        w[p + "fc"] = _normal(r, (4 * c, c), 0.02)
        w[p + "fc2"] = _normal(r, (c, 4 * c), residual)
    w["lnf"] = np.ones(c, np.float32)
    tokens = r.integers(0, v, (4, b, t + 1))
    return w, tokens[:, :, :-1].copy(), tokens[:, :, 1:].copy()


MODELS = {
    "mlp": mlp,
    "lenet64": lambda: lenet(64),
    "lenet512": lambda: lenet(512),
    "resnet20": resnet20,
    "gpt_small": lambda: gpt(4, 128, 64, 12, 4),
    "gpt_big": lambda: gpt(6, 384, 256, 8, 5),
}


def load(name: str) -> Model:
    """Return (weights by name, 4 input batches, 4 label batches) of a model."""
    folder = os.path.join(WORK, "weights")
    path = os.path.join(folder, name + ".npz")
    if not os.path.exists(path):
        os.makedirs(folder, exist_ok=True)
        w, x, y = MODELS[name]()
        temporary = os.path.join(folder, f".{name}.{os.getpid()}.npz")
        np.savez(temporary, x=x, y=y, **{"w:" + k: v for k, v in w.items()})
        os.replace(temporary, path)
    z = np.load(path)
    return {k[2:]: z[k] for k in z.files if k.startswith("w:")}, z["x"], z["y"]


def load_for(workload: dict) -> Model:
    """Return the weights and batches that a training or decoding workload starts from."""
    return load(workload["name"] if workload["kind"] == "train" else "gpt_big")
