"""Follow one function through the compiler: graph, kernels, loops, and the C that runs.

    python examples/inspect_ir.py
"""

from __future__ import annotations

import tinyc


def title(text: str) -> None:
    print(f"\n{'-' * 88}\n{text}\n{'-' * 88}")


@tinyc.jit
def normalised(x, scale):
    """Rows with mean 0 and variance 1, times a scale."""
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * scale


def main() -> None:
    tinyc.manual_seed(0)
    x, scale = tinyc.randn(64, 128), tinyc.ones(128)

    title("1. A tensor is lazy: it knows how it is made, and is computed when looked at.")
    lazy = (x * 2 + 1).relu()
    print(repr(lazy)[:200])
    print("its sum:", lazy.sum().item())

    title("2. Called the first time, a jitted function runs once in Python and leaves a graph.")
    print(normalised(x, scale)[0, :4])
    print(normalised.graph())

    if normalised.program is None:
        print("\nThe numpy device interprets the graph: no kernels, no loops, no source.")
        print("`tinyc doctor` says what a compiled device needs.")
        return

    title("3. The scheduler puts operations into loops. What was joined, what not, and why:")
    print(tinyc.explain(normalised, x, scale))

    title("4. Loops, before they are written as C.")
    print(normalised.loops())

    title("5. The C. One call of it is one call of the function.")
    print(normalised.source())

    title("6. Is it worth it? One operation to a kernel, against fused.")
    print(tinyc.compare(normalised, x, scale, repeats=5))

    title("7. A gradient is a graph too, built from the function's nodes; it is fused with them.")
    gradient = tinyc.jit(tinyc.grad(lambda w: (w.tanh() ** 2).sum()))
    print(gradient(scale)[:4])
    print(gradient.graph())


if __name__ == "__main__":
    main()
