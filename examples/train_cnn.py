"""Train a small CNN on MNIST to 99 % of the test images, in about a minute on two cores.

    python examples/train_cnn.py               # two epochs, then what happened
    python examples/train_cnn.py --steps 3     # a try
    DEBUG=3 python examples/train_cnn.py --steps 1     # what is fused, and what is not

It reads the data beside this file and writes examples/out/loss.png where matplotlib is installed.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from pathlib import Path

import tinyc
from tinyc import data, nn, optim
from tinyc.models import SmallCNN
from tinyc.runtime.cache import disk_cache

OUT = Path(__file__).parent / "out"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a small CNN on MNIST.")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--steps", type=int, help="stop after so many steps")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=4e-3, help="the highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tests", type=int, default=10_000, help="test images to judge by")
    parser.add_argument("--data", help="a folder with the four files of MNIST or a relative of it")
    return parser.parse_args()


def learning_rate(step: int, steps: int, highest: float) -> float:
    """A short warm-up, then half a cosine down to zero."""
    warm_up = min(1.0, (step + 1) / 100)
    return highest * warm_up * 0.5 * (1 + math.cos(math.pi * step / steps))


def progress(steps: int):
    """Return a function that shows the step and its loss: a tqdm bar, or a line now and then."""
    try:
        from tqdm import tqdm
    except ImportError:
        return lambda i, loss: i % 100 or print(f"step {i:5d} of {steps}: loss {loss:.4f}")
    bar = tqdm(total=steps, unit="step")

    def show(i: int, loss: float) -> None:
        bar.update()
        bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        if i + 1 == steps:
            bar.close()

    return show


def main() -> None:
    args = arguments()
    start = time.perf_counter()
    tinyc.manual_seed(args.seed)
    train, test = data.mnist(args.data)
    batches = data.DataLoader(
        train, args.batch, shuffle=True, seed=args.seed, drop_last=True, num_workers=1
    )
    steps = min(args.steps or math.inf, args.epochs * len(batches))

    model = SmallCNN()
    optimizer = optim.AdamW(model.parameters(), lr=args.lr)
    print(model)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {steps} steps")

    @tinyc.jit  # forward, backward and update become one native program
    def step(x, y):
        loss = nn.functional.cross_entropy(model((x - 0.1307) / 0.3081), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    @tinyc.jit
    def hits(x, y):
        with tinyc.no_grad():
            return (model((x - 0.1307) / 0.3081).argmax(1) == y).sum()

    losses, times = [], []
    show = progress(steps)
    while len(losses) < steps:
        for x, y in batches:
            optimizer.lr = learning_rate(len(losses), steps, args.lr)  # compiles nothing
            before = time.perf_counter()
            losses.append(step(x, y).item())
            times.append(time.perf_counter() - before)
            show(len(losses) - 1, losses[-1])
            if not math.isfinite(losses[-1]):
                sys.exit(
                    f"the loss is {losses[-1]} at step {len(losses)}: training has diverged; try "
                    f"a learning rate below {args.lr:g} with --lr"
                )
            if len(losses) == steps:
                break

    model.eval()
    tests = data.Subset(test, range(min(args.tests, len(test))))
    right = sum(hits(x, y).item() for x, y in data.DataLoader(tests, min(500, len(tests))))
    seconds = time.perf_counter() - start
    model.train()

    comparison = tinyc.compare(step, x, y, repeats=5)
    unfused = sum(kernel.unfused_kernels for kernel in comparison.kernels)
    table = {
        "accuracy": f"{right / len(tests):.2%} of {len(tests):,} test images",
        "time": f"{seconds:.1f} s in all, {times[0]:.1f} s for the first step with its compile",
        "a step": f"{statistics.median(times) * 1e3:.2f} ms (median), {args.batch} images",
    }
    if comparison.kernels:
        cache = disk_cache().summary()
        table |= {
            "kernels": f"{len(comparison.kernels)} in a step, {unfused} unfused",
            "fusion": f"{comparison.speedup:.2f} times the speed of unfused kernels",
            "cache": f"{cache['root']} ({cache['entries']} programs; a second run compiles none)",
        }
    else:
        table["kernels"] = "none: the numpy device interprets the graph (see `tinyc doctor`)"
    if plot(losses):
        table["loss curve"] = str(OUT / "loss.png")
    table["next"] = "python examples/fused_vs_unfused.py, examples/inspect_ir.py; DEBUG=3 here"
    print()
    for name, text in table.items():
        print(f"{name:12}{text}")


def plot(losses: list[float]) -> bool:
    """Draw the loss curve, if matplotlib is there to do it."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    axes.plot(range(1, len(losses) + 1), losses, linewidth=0.5, color="0.7", label="each step")
    width = max(1, len(losses) // 50)
    means = [statistics.fmean(losses[max(0, i - width) : i + 1]) for i in range(len(losses))]
    axes.plot(range(1, len(losses) + 1), means, label=f"mean of {width + 1} steps")
    axes.set(xlabel="step", ylabel="cross entropy", yscale="log", title="CNN on MNIST")
    axes.legend()
    OUT.mkdir(exist_ok=True)
    figure.savefig(OUT / "loss.png", dpi=120, bbox_inches="tight")
    return True


if __name__ == "__main__":
    main()
