"""Normal form, bounds and rewriting of index expressions, against plain integer arithmetic."""
from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyc.ir.index import Affine, Data, FloorDiv, Mod, Var, ravel, unravel

Value = Callable[[dict], int]
VARS = tuple(Var(name, n) for name, n in zip("ijklm", (1, 2, 5, 6, 16)))
DATA = Data("x", 7)
of, const = Affine.of, Affine.const_of


def assignments(vars_: tuple[Var, ...]) -> list[dict]:
    return [dict(zip(vars_, v)) for v in itertools.product(*(range(v.extent) for v in vars_))]


POINTS = [dict(env) | {DATA: (sum(env.values()) * 3) % 7} for env in assignments(VARS)][::7]


@st.composite
def pairs(draw: st.DrawFn, depth: int = 4) -> tuple[Affine, Value]:
    """An index expression and the same arithmetic on plain integers."""
    kind = draw(st.sampled_from(["leaf"] if not depth else ["leaf", "add", "mul", "div", "mod"]))
    if kind == "leaf":
        leaf = draw(st.sampled_from((*VARS, DATA, 0, 3, -5)))
        if isinstance(leaf, int):
            return const(leaf), lambda env: leaf
        return of(leaf), lambda env: env[leaf]
    e, f = draw(pairs(depth - 1))
    if kind == "add":
        e2, f2 = draw(pairs(depth - 1))
        return (e - e2, lambda env: f(env) - f2(env)) if draw(st.booleans()) else (
            e + e2, lambda env: f(env) + f2(env))
    n = draw(st.sampled_from((1, 2, 3, 4, 5, 6, 12)))
    if kind == "mul":
        n *= draw(st.sampled_from((1, -1)))
        return e * n, lambda env: f(env) * n
    if kind == "div":
        return e // n, lambda env: f(env) // n
    return e % n, lambda env: f(env) % n


def check_normal(e: Affine) -> None:
    """What code generators rely on, and what makes equality structural."""
    keys = [a.key for a, _ in e.terms]
    assert keys == sorted(keys) and len(set(keys)) == len(keys)
    for a, c in e.terms:
        assert c != 0
        if isinstance(a, (FloorDiv, Mod)):
            lo, hi = a.operand.bounds()
            assert 0 <= lo < a.n <= hi
            check_normal(a.operand)


@settings(max_examples=600)
@given(pairs())
def test_the_normal_form_has_the_same_values_within_its_bounds(pair: tuple[Affine, Value]) -> None:
    e, f = pair
    check_normal(e)
    lo, hi = e.bounds()
    for env in POINTS:
        assert lo <= e.evaluate(env) == f(env) <= hi


@settings(max_examples=300)
@given(pairs(), pairs(depth=2))
def test_substitution_is_evaluation_of_the_replaced_variable(
    pair: tuple[Affine, Value], other: tuple[Affine, Value]
) -> None:
    e, f = pair
    var = VARS[3]
    inner = other[0] % var.extent
    replaced = e.substitute({var: inner})
    check_normal(replaced)
    for env in POINTS:
        assert replaced.evaluate(env) == f(env | {var: inner.evaluate(env)})


@settings(max_examples=300)
@given(pairs(), st.sampled_from((2, 3, 4, 6)))
def test_quotient_and_remainder_meet_again(pair: tuple[Affine, Value], n: int) -> None:
    e, f = pair
    joined = e // n * n + e % n
    for env in POINTS:
        assert joined.evaluate(env) == f(env)


@settings(max_examples=300)
@given(pairs())
def test_linearity_is_the_difference_of_neighbours(pair: tuple[Affine, Value]) -> None:
    e, _ = pair
    for var in VARS[1:]:
        if e.is_linear_in(var):
            for env in POINTS:
                if env[var] + 1 < var.extent:
                    step = e.evaluate(env | {var: env[var] + 1}) - e.evaluate(env)
                    assert step == e.coeff(var)


def factorisations(n: int, parts: int) -> list[tuple[int, ...]]:
    if parts == 1:
        return [(n,)]
    return [(d, *rest) for d in range(1, n + 1) if n % d == 0
            for rest in factorisations(n // d, parts - 1)]


@pytest.mark.parametrize("total", [12, 24, 30])
def test_digits_of_every_reshape(total: int) -> None:
    shapes = [s for parts in (1, 2, 3) for s in factorisations(total, parts)][::2]
    for old, new in itertools.product(shapes, repeat=2):
        vars_ = tuple(Var(f"i{k}", n) for k, n in enumerate(new))
        flat = ravel([of(v) for v in vars_], new)
        digits = unravel(flat, old)
        for k, env in enumerate(assignments(vars_)):
            assert flat.evaluate(env) == k
            position = 0
            for digit, n in zip(digits, old):
                assert 0 <= digit.evaluate(env) < n
                position = position * n + digit.evaluate(env)
            assert position == k


@pytest.mark.parametrize("total", [12, 24, 30])
def test_a_reshape_and_back_is_the_identity(total: int) -> None:
    shapes = [s for parts in (1, 2, 3) for s in factorisations(total, parts)]
    for new, via in itertools.product(shapes[::2], shapes):
        index = tuple(of(Var(f"i{k}", n)) for k, n in enumerate(new))
        there = unravel(ravel(index, new), via)
        assert unravel(ravel(there, via), new) == index, (new, via)


def vars_of(**extents: int) -> list[Affine]:
    return [Affine.of(Var(name, n)) for name, n in extents.items()]


def test_folding() -> None:
    i, j, k = vars_of(i=6, j=4, k=3)
    assert (4 * i + j) // 4 == i
    assert (4 * i + j) % 4 == j
    assert (12 * i + 3 * j + k) // 12 == i
    assert (12 * i + 3 * j + k) % 12 == 3 * j + k
    assert (12 * i + 3 * j + k) // 3 % 4 == j
    assert str((12 * i + 3 * j + k) // 24) == "i//2"
    assert str((12 * i + 3 * j + k) % 24) == "3*j + k + 12*(i%2)"
    assert i // 2 // 2 == i // 4
    assert (i // 2 + 3) // 2 == (i + 6) // 4
    assert i % 4 % 2 == i % 2
    assert i % 4 // 2 == i // 2 % 2
    assert (7 * i) // 7 == i
    assert (5 * i) // 4 == i + i // 4
    assert i % 6 == i
    assert i // 6 == const(0)
    assert (i - 6) // 6 == const(-1)
    assert (i - 4) % 4 == i % 4
    assert i - i == const(0)
    assert of(Var("one", 1)) == const(0)
    assert of(Var("none", 0)) == const(0)


def test_remainders_join() -> None:
    (i,) = vars_of(i=60)
    assert i // 4 % 3 * 4 + i % 4 == i % 12
    assert i // 12 * 12 + i // 4 % 3 * 4 + i % 4 == i
    assert i // 12 * 24 + i // 4 % 3 * 8 + i % 4 * 2 + 5 == 2 * i + 5
    assert len((i // 4 * 8 + i % 4).terms) == 2, "another stride is no digit"


def test_digits_of_a_row_of_a_block_join() -> None:
    """Rows of images: a block of 128 of them begins anywhere in an image of 7 x 7."""
    block, row = Var("block", 4), Var("row", 128)
    whole = of(block) * 128 + of(row)
    h, w = whole // 7 % 7, whole % 7
    joined = h * 7 + w
    assert joined == whole % 49
    assert whole // 49 * 49 + joined == whole
    for env in assignments((block, row)):
        assert joined.evaluate(env) == (128 * env[block] + env[row]) % 49
    other = (whole // 7 + of(block)) % 7 * 7 + w
    for env in assignments((block, row)):
        assert other.evaluate(env) == (h + of(block)).evaluate(env) % 7 * 7 + w.evaluate(env)


def test_the_operand_of_a_division_is_never_negative() -> None:
    i, j = vars_of(i=10, j=10)
    assert str((i - 3) // 4) == "(i + 1)//4 - 1"
    for e in ((i - 3) // 4, (-i) // 4, (7 - i - j) % 4, (-5 * i + j) // 3):
        check_normal(e)


def test_text() -> None:
    i, j = vars_of(i=10, j=10)
    assert str(4 * i + j // 3) == "4*i + j//3"
    assert str(2 - i) == "-i + 2"
    assert str(const(0)) == "0"
    assert str(const(-3)) == "-3"
    assert str(3 * (j % 4) + 1) == "3*(j%4) + 1"
    assert str((2 * i + j) // 4 - 1) == "(2*i + j)//4 - 1"


def test_variables_are_themselves_only() -> None:
    a, b = Var("i", 4), Var("i", 4)
    assert of(a) != of(b)
    assert of(a) == of(a) and hash(of(a)) == hash(of(a))
    assert (of(a) + of(b)).free_vars() == {a, b}
    assert (of(a) * 3 + of(b) % 2).coeff(a) == 3
    assert (of(a) * 3 + of(b) % 2).coeff(b) == 0
    assert not (of(a) * 3 + of(b) % 2).is_linear_in(b)


def test_data_indices() -> None:
    i = Var("i", 4)
    d = of(Data("load", 10, frozenset((i,))))
    assert d == of(Data("load", 10, frozenset((i,))))
    e = 5 * d + of(i)
    assert list(e.data()) == ["load"]
    assert e.free_vars() == {i} and not e.is_linear_in(i)
    assert e.map_data(str.upper) == 5 * of(Data("LOAD", 10, frozenset((i,)))) + of(i)
    j = Var("j", 4)
    moved = e.substitute({i: j})
    assert moved.free_vars() == {j} and list(moved.data()) == ["load"]
    assert (d // 10) == const(0)
    assert list((e // 3).data()) == ["load"]
    assert str(of(Data("only", 1))) == "[only]", "its computation may check the value"


def test_substitution_takes_ints_variables_and_expressions() -> None:
    i, j, k = Var("i", 8), Var("j", 2), Var("k", 4)
    e = of(i) // 4 * 3 + of(i) % 4
    assert e.substitute({i: 5}) == const(4)
    assert e.substitute({i: 4 * of(j) + of(k)}) == 3 * of(j) + of(k)
    assert e.substitute({i: k}) == of(k)
    assert e.substitute({j: 1}) is e


@pytest.mark.parametrize("n", [0, -2])
def test_divisors_are_positive(n: int) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        of(Var("i", 8)) // n
    with pytest.raises(ValueError, match="must be positive"):
        of(Var("i", 8)) % n


def test_text_does_not_depend_on_the_hash_seed() -> None:
    program = (
        "from tinyc.ir.index import Affine, Data, Var\n"
        "v = [Affine.of(Var(f'v{k}', 7)) for k in range(8)]\n"
        "e = sum((k + 1) * x for k, x in enumerate(v)) + Data('d', 9)\n"
        "e = e // 5 + (e + v[3] // 2) % 11 + v[2] % 3\n"
        "print(e, [str(x) for x in e.free_vars()])\n"
    )
    texts = {
        subprocess.run([sys.executable, "-c", program], env=os.environ | {"PYTHONHASHSEED": seed},
                       capture_output=True, text=True, check=True).stdout
        for seed in ("0", "1", "77")
    }
    assert len(texts) == 1 and texts.pop().strip()
