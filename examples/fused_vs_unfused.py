"""What fusion is worth: the same functions with one kernel for each operation, and fused.

    python examples/fused_vs_unfused.py             # all of them
    python examples/fused_vs_unfused.py softmax     # one, kernel by kernel, with the reasons
"""

from __future__ import annotations

import argparse

import tinyc
from tinyc import nn, optim
from tinyc.models import LeNet

SCALE = 1  # divides the sizes


def chain():
    """tanh(a*b + c) * sigmoid(a) - relu(b)/2: one pass over memory instead of seven"""
    a, b, c = (tinyc.randn((1 << 20) // SCALE) for _ in range(3))
    return lambda a, b, c: (a * b + c).tanh() * a.sigmoid() - b.relu() * 0.5, a, b, c


def softmax():
    """softmax of rows: maximum, exponentials and sum stay in one loop over rows"""
    return lambda x: x.softmax(-1), tinyc.randn(1024 // SCALE, 1024)


def layer_norm():
    """layer norm forward and backward: each row is read once for all its sums"""
    norm = nn.LayerNorm(1024 // SCALE)

    def forward_backward(x):
        norm.zero_grad()
        norm(x).square().mean().backward()
        return norm.weight.grad, norm.bias.grad

    return forward_backward, tinyc.randn(1024 // SCALE, 1024 // SCALE)


def linear():
    """relu(x @ w + b): bias and relu are applied while the product is in registers"""
    layer = nn.Linear(512 // SCALE, 512 // SCALE)
    return lambda x: layer(x).relu(), tinyc.randn(256, 512 // SCALE)


def conv():
    """convolution, bias, relu: the window is never stored, nor what is before relu"""
    layer = nn.Conv2d(16, 32, 3, padding=1)
    return lambda x: layer(x).relu(), tinyc.randn(max(1, 32 // SCALE), 16, 28, 28)


def training(model):
    """Return a jitted training step of a model with Adam."""
    optimizer = optim.Adam(model.parameters())

    @tinyc.jit
    def step(x, y):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


def mlp():
    """a training step of a perceptron: forward, loss, backward, Adam in one program"""
    model = nn.Sequential(nn.Linear(784, 256 // SCALE), nn.ReLU(), nn.Linear(256 // SCALE, 10))
    return training(model), tinyc.randn(128, 784), tinyc.randint(0, 10, (128,))


def lenet():
    """a training step of LeNet on 64 images; Adam updates all parameters in one kernel"""
    batch = max(1, 64 // SCALE)
    return training(LeNet()), tinyc.randn(batch, 1, 28, 28), tinyc.randint(0, 10, (batch,))


CASES = {f.__name__: f for f in (chain, softmax, layer_norm, linear, conv, mlp, lenet)}


def main() -> None:
    global SCALE
    parser = argparse.ArgumentParser(description="Time functions fused and unfused.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(CASES)}")
    parser.add_argument("--steps", type=int, default=15, help="timed runs of each kind")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try it out")
    args = parser.parse_args()
    unknown = [name for name in args.names if name not in CASES]
    if unknown:
        parser.error(f"no case {', '.join(unknown)}; there are {', '.join(CASES)}")
    SCALE = 16 if args.tiny else 1
    tinyc.manual_seed(0)
    if len(args.names) == 1:
        function, *inputs = CASES[args.names[0]]()
        print(CASES[args.names[0]].__doc__, end="\n\n")
        print(tinyc.compare(function, *inputs, repeats=args.steps), end="\n\n")
        print(tinyc.explain(function, *inputs))
        return
    print(f"{'':12}{'kernels':>9}{'unfused':>9}{'us':>11}{'unfused us':>12}{'ratio':>8}  what")
    for name in args.names or CASES:
        function, *inputs = CASES[name]()
        result = tinyc.compare(function, *inputs, repeats=args.steps)
        unfused = sum(kernel.unfused_kernels for kernel in result.kernels)
        print(
            f"{name:12}{len(result.kernels):9}{unfused:9}{result.fused_us:11.1f}"
            f"{result.unfused_us:12.1f}{result.speedup:7.2f}x  {CASES[name].__doc__}"
        )
    print("\nmedians, fused and unfused runs in turns; name one case to see its kernels and why")


if __name__ == "__main__":
    main()
