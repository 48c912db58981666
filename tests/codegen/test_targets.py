"""The same programs for each instruction set and compiler, run here or in an emulator."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from running import SPLITTING, Compiled, buffers, floats

from tinyc import checking, config, pipeline
from tinyc.commands import repro, standalone
from tinyc.composites import activation, attention, convolution, losses, normalization, reductions
from tinyc.composites.linear import linear, matmul
from tinyc.diagnostics import CompileError
from tinyc.ir import build as b
from tinyc.ir import dtype as d
from tinyc.ir.autograd import vjp
from tinyc.ir.node import Node, canonical_key
from tinyc.ir.program import CPU, Target
from tinyc.runtime import host, isa, toolchain

pytestmark = pytest.mark.cpu("vector instructions and C compilers")

Graph = tuple[list[Node], dict[int, np.ndarray]]
HERE = [name for name, i in isa.ISAS.items() if isa.runs_here(i)]
COMPILERS = [name for name in ("gcc", "clang") if shutil.which(name)]
CROSS = "aarch64-linux-gnu-gcc"
EMULATOR = "qemu-aarch64"


def updated(loss: Node, weights: list[Node]) -> list[Node]:
    """A loss, and weights moved against its gradient."""
    found = vjp([loss], [b.full((), 1.0, loss.dtype)], weights)
    return [loss, *(b.assign(w, b.sub(w, b.mul(g, 0.1))) for w, g in zip(weights, found) if g)]


def mlp_step() -> Graph:
    (x, w, c, u, y), memory = buffers(floats(37, 50), floats(41, 50, seed=1), floats(41, seed=2),
                                      floats(10, 41, seed=3), np.arange(37) % 10)
    hidden = activation.gelu(linear(x, w, c))
    return updated(losses.cross_entropy(linear(hidden, u), y), [w, c, u]), memory


def conv_step() -> Graph:
    (x, w, v, y), memory = buffers(floats(3, 4, 11, 11), floats(10, 4, 3, 3, seed=1),
                                   floats(5, 250, seed=2), np.arange(3))
    seen = convolution.max_pool(activation.relu(convolution.conv(x, w, padding=1)), 2)
    return updated(losses.cross_entropy(linear(b.reshape(seen, (3, 250)), v), y), [w, v]), memory


def attention_both_ways() -> Graph:
    (q, k, v, dy), memory = buffers(*(floats(2, 33, 20, seed=i) for i in range(4)))
    y = attention.attention(q, k, v, causal=True)
    return [y, *(g for g in vjp([y], [dy], [q, k, v]) if g)], memory


def rows() -> Graph:
    (x, w), memory = buffers(floats(19, 77), floats(77, seed=1))
    return [reductions.softmax(x), normalization.layer_norm(x, (77,), w), b.sum_(x, (0,)),
            reductions.logsumexp(x), reductions.argmax(x, 1)], memory


def moved() -> Graph:
    (x, y), memory = buffers(floats(37, 45), floats(37, 45, seed=1).astype(np.float64))
    across = b.permute(x, (1, 0))
    return [b.materialize(across), matmul(across, x), matmul(x, across),
            matmul(y, b.permute(y, (1, 0))), b.cat([across, across], 1)], memory


def functions() -> Graph:
    values = np.concatenate([floats(90) * 20, [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-42]])
    (x, y), memory = buffers(values.astype(np.float32), values)
    unary = [b.exp, b.log, b.sin, b.cos, b.tanh, b.erf, b.floor, b.sqrt, activation.sigmoid]
    whole = b.cast(b.where(b.lt(b.mul(x, x), 1e4), x, 0.0), d.i32)
    return [*(f(x) for f in unary), b.exp(y), b.log(y), b.tanh(y), b.pow(x, b.mul(x, 0.3)),
            b.mod(x, 0.7), b.idiv(x, 0.7), b.mod(whole, 7), b.shl(whole, 2)], memory


def halves(dtype: d.DType) -> Graph:
    """Products of halves in place, packed and transposed, windows, and a step that trains."""
    (x, w, c, u, y, image, k), memory = buffers(
        floats(37, 50), floats(41, 50, seed=1), floats(41, seed=2), floats(10, 41, seed=3),
        np.arange(37) % 10, floats(3, 4, 11, 11), floats(10, 4, 3, 3, seed=1))
    memory = {uid: d.stored(a, dtype) if a.dtype == np.float32 else a for uid, a in memory.items()}
    x, w, c, u, image, k = (b.buffer(n.attrs[0], 0, n.shape, dtype, "cpu")
                            for n in (x, w, c, u, image, k))
    hidden = activation.gelu(linear(x, w, c))
    step = updated(losses.cross_entropy(linear(hidden, u), y), [w, c, u])
    return [*step, matmul(w, b.permute(x, (1, 0))), matmul(b.permute(x, (1, 0)), x),
            convolution.conv(image, k, padding=1), reductions.softmax(x), b.mul(x, 0.7)], memory


def bf16() -> Graph:
    return halves(d.bf16)


def f16() -> Graph:
    return halves(d.f16)


PROGRAMS = [mlp_step, conv_step, attention_both_ways, rows, moved, functions, bf16, f16]


@pytest.mark.parametrize("cc", COMPILERS)
@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_agree_with_numpy_on_every_instruction_set(
        monkeypatch: pytest.MonkeyPatch, program: Callable[[], Graph], name: str, cc: str) -> None:
    monkeypatch.setenv("CC", cc)
    with config.configure(isa=name):
        agree(*program())


@pytest.mark.parametrize("cc", COMPILERS)
@pytest.mark.parametrize("name", [name for name in HERE if isa.ISAS[name].lanes > 1])
def test_what_goes_past_the_caches_arrives(
        monkeypatch: pytest.MonkeyPatch, name: str, cc: str) -> None:
    monkeypatch.setenv("CC", cc)
    with config.configure(isa=name):
        small = replace(host.host_target(), l2=256, l3=1024)
        monkeypatch.setattr(host, "host_target", lambda: small)
        assert "tc_stream(" in agree(*rows())


def agree(outputs: list[Node], memory: dict[int, np.ndarray]) -> str:
    """Check that a compiled graph agrees with the evaluator; the text of its program."""
    compiled = Compiled(outputs, split=True)
    found = compiled(memory, threads=2)
    for node, got, wanted in zip(outputs, found, checking.expected(outputs, memory)):
        relative = checking.tolerance(outputs, node.dtype)
        assert not checking.difference(wanted, got, relative), node.op
    return compiled.program.source


@pytest.mark.parametrize("name", HERE)
def test_vectors_are_as_wide_as_the_instruction_set_s(name: str) -> None:
    outputs, _ = mlp_step()
    with config.configure(isa=name):
        text = Compiled(outputs).program.source
        command = toolchain.find_compiler().flags()
    sizes = {int(n) for n in re.findall(r"vector_size\((\d+)\)", text)}
    lanes = isa.ISAS[name].lanes
    assert max(sizes, default=4) == 4 * lanes
    assert bool(sizes) == (lanes > 1), "plain C has no vector types"
    assert set(isa.ISAS[name].flags) <= set(command)


def test_an_instruction_set_that_the_cpu_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isa, "cpu_features", lambda: "Linux x86_64 flags=sse2")
    with config.configure(isa="avx2"), pytest.raises(
            CompileError, match=r"isa='avx2': this CPU can't run it; it can run .*scalar"):
        isa.isa_in_force()


@pytest.mark.parametrize(("features", "expected"), [
    ("Linux x86_64 flags=sse2 avx2 fma avx512f avx512bw avx512dq avx512vl", "avx512"),
    ("Linux x86_64 flags=sse2 avx2 fma avx512f", "avx2"),
    ("Darwin x86_64 machdep.cpu.features: FMA SSE2 machdep.cpu.leaf7_features: AVX2", "avx2"),
    ("Linux x86_64 flags=sse2 avx2", "sse2"),
    ("Linux aarch64 Features=fp asimd", "neon"),
    ("Linux riscv64 isa=rv64imafdc", "scalar"),
])  # fmt: skip
def test_the_widest_vectors_of_a_cpu_are_used(
        monkeypatch: pytest.MonkeyPatch, features: str, expected: str) -> None:
    monkeypatch.setattr(isa, "cpu_features", lambda: features)
    monkeypatch.setattr(isa.platform, "machine", lambda: features.split()[1])
    isa.widest.cache_clear()
    found = isa.widest()
    isa.widest.cache_clear()
    assert found.name == expected


def test_the_switch_names_the_instruction_sets() -> None:
    assert (isa.NATIVE, *isa.ISAS) == config.ISAS


# Kernels with their data as programs of their own, for other machines and simpler compilers ------


def target_of(name: str, split: bool) -> Target:
    """A target for an instruction set; with `split` even small loops are divided into chunks."""
    found = isa.ISAS[name]
    work = SPLITTING.serial_work if split else 1 << 62
    return replace(CPU, lanes=found.lanes, tile_rows=found.tile_rows, serial_work=work)


def run_alone(program: Callable[[], Graph], target: Target, folder: Path, compile_: list[str],
              run: list[str]) -> int:
    """Compile each kernel of a program with its data, run it, and check what it says; how many."""
    outputs, memory = program()
    leaves = canonical_key(outputs)[1]
    arrays = [memory[leaf.attrs[0]] for leaf in leaves]
    case = repro.Case(tuple(outputs), target, arrays, "a test", "of the test")
    compiled, _ = pipeline.build_program(tuple(outputs), tuple(leaves), target)
    for kernel in compiled.kernels:
        source, binary = folder / f"{kernel.name}.c", folder / kernel.name
        said = repro.reproduce(case, re.compile(kernel.name), str(source))
        assert re.search(r"numpy agrees on [1-9]", said), said
        words = [*compile_, source.name, "-o", binary.name, "-lm", "-lpthread"]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, f"{kernel.name}: {done.stderr}"
        done = subprocess.run([*run, f"./{binary.name}", "1"], cwd=folder, capture_output=True,
                              text=True)
        assert done.returncode == 0 and f"{kernel.name}: ok, " in done.stdout, done.stdout
    return len(compiled.kernels)


@pytest.mark.skipif(not (shutil.which(CROSS) and shutil.which(EMULATOR)),
                    reason="apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user")
@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_for_neon_run_in_an_emulator(program: Callable[[], Graph], tmp_path: Path) -> None:
    flags = [*toolchain.FLAGS[: toolchain.FLAGS.index("-fPIC")], *isa.ISAS["neon"].flags]
    line = [CROSS, "-Wall", "-Werror", "-static", *flags]
    assert run_alone(program, target_of("neon", True), tmp_path, line, [EMULATOR])


@pytest.mark.parametrize("line", [
    ["gcc", "-std=gnu11", "-Wall", "-Werror", "-O1"],
    ["clang", "-std=gnu11", "-Wall", "-Werror", "-O1"],
    ["tcc", "-std=c11", "-Wall", "-Werror"],
], ids=["gcc", "clang", "tcc"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_plain_c_is_enough(monkeypatch: pytest.MonkeyPatch, program: Callable[[], Graph],
                           line: list[str], tmp_path: Path) -> None:
    if not shutil.which(line[0]):
        pytest.skip(f"{line[0]} is not installed")
    monkeypatch.setattr(standalone, "EMBEDDED", 0)  # tcc has no negative infinities in tables
    assert run_alone(program, target_of("scalar", False), tmp_path, line, [])
