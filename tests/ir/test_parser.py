"""Reading graphs from text: the same nodes come back, all else is refused with its line."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyc.diagnostics import ParseError, TinycError
from tinyc.ir import build as b
from tinyc.ir import parser
from tinyc.ir.dtype import DTYPES, bool_, f32, f64
from tinyc.ir.node import node
from tinyc.ir.ops import OPS, Op
from tinyc.ir.parser import parse_text
from tinyc.ir.printer import to_text

X = b.buffer(7_000, 0, (3, 4), f32, "cpu")
START = 'v0 = buffer(0, 0, (3, 4), f32, "cpu")\n'


@pytest.mark.parametrize("value", [0.0, -0.0, math.inf, -math.inf, math.nan, 0.1, 1e-45, 3e38])
@pytest.mark.parametrize("dtype", [f32, f64])
def test_float_constants_keep_their_bits(value, dtype):
    n = b.const(value, dtype)
    assert parse_text(to_text([n])) == (n,)


@given(st.sampled_from(list(DTYPES.values())), st.integers(0, 2**64 - 1))
def test_constants_of_any_bits(dtype, bits):
    bits %= 2 if dtype is bool_ else 2**dtype.bits
    n = node(Op.CONST, (), (dtype, bits))
    assert parse_text(to_text([n])) == (n,)


@pytest.mark.parametrize("name", ["n", 'a "b"', "c\\d", "e\n", "ü"])
def test_texts_of_any_characters(name):
    n = b.var(name, 0, 9)
    assert parse_text(to_text([n])) == (n,)


def test_a_deep_graph():
    n = X
    for _ in range(3000):
        n = b.exp(n)
    assert parse_text(to_text([n])) == (n,)


def test_lines_of_the_user_come_back():
    text = 'v0 = buffer(31415, 0, (3, 4), f32, "cpu")\n'  # nobody else's, so that it is new
    text += "v1 = exp(v0)  # f32[3,4] my train.py:31\nv2 = sin(v1)\noutputs = (v2,)\n"
    (n,) = parse_text(text)
    assert n.src[0].origin == ("my train.py", 31)
    assert n.src[0].src[0].op is Op.BUFFER
    assert "# f32[3,4] my train.py:31\n" in to_text([n])


def test_each_op_with_attributes_has_a_row():
    plain = {op for op, spec in OPS.items() if spec.family == "elementwise"}
    plain -= {Op.CAST, Op.BITCAST}
    assert set(parser._ATTRIBUTES) | plain | {Op.MATERIALIZE, Op.BOUNDARY, Op.DETACH} == set(Op)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("import os", "not a line of a graph; expected NAME = OP"),
        ("v1 = __import__('os')", "there is no op __import__; expected an op"),
        ("v1 = ().__class__", "not a line"),
        ("v1 = (lambda: 1)()", "not a line"),
        ("v1, v2 = (1, 2)", "not a line"),
        ("v1 = open('x')", "no op open"),
        ("v1 = soft(v0)", "did you mean sqrt"),
        ("v1 = add(*[1])", "add takes 2 sources and 0 attributes, not 1 arguments"),
        ("v1 = add(v0, v9)", "v9 is no node so far"),
        ("v1 = add(v0, f32)", "f32 is no node so far"),
        ("v1 = exp(x=v0)", "no keywords; expected exp(SOURCE)"),
        ("v0 = exp(v0)", "v0 is there already"),
        ("v1 = exp(v0", "'(' was never closed"),
        ("v1 = reshape(v0, 12)", "shape of reshape is 12; expected a tuple of sizes"),
        ("v1 = reshape(v0, (-3, -4))", "shape of reshape is (-3, -4)"),
        ("v1 = reshape(v0, (5,))", "the number of elements stays 12"),
        ("v1 = reduce(v0, 'sum', (0.5,))", "axes of reduce is (0.5,); expected a tuple of int"),
        ("v1 = reduce(v0, 'mean', (0,))", "no reduction is called 'mean'"),
        ("v1 = reduce(v0, 'sum', (2,))", "there is no axis 2"),
        ("v1 = cast(v0, f31)", "dtype of cast is f31; expected a dtype: bool, u8"),
        ("v1 = copy(v0, 3)", "device of copy is 3"),
        ("v1 = cat(True, 0)", "True is no node so far"),
        ("v1 = cat(v0, v0, False)", "axis of cat is False"),
        ("v1 = const(f32)", "not a constant"),
        ("v1 = const(u8, 256)", "256 is no value of u8"),
        ("v1 = const(f32, bits=-1)", "not a constant"),
        ("v1 = const(i8, inf)", "a number that the dtype holds"),
        ("outputs = v0", "outputs are no tuple"),
        ("outputs = (v9,)", "v9 is no node so far"),
        ("v1 = exp(v0)", "ends without outputs"),
        ("\0", "null"),
        ("v1 = " + "-" * 100_000 + "1", ""),
        ("v1 = exp(" + "-" * 1_500 + "1)", ""),
        ("v1 = " + "(" * 300 + ")" * 300, ""),
    ],
)
def test_other_text_is_refused_with_its_place(line, message):
    with pytest.raises(ParseError) as error:
        parse_text(START + line, "file.ir")
    assert message in str(error.value)
    assert str(error.value).startswith(("file.ir:2: ", "file.ir:1: "))
    assert isinstance(error.value, TinycError) and isinstance(error.value, ValueError)


@given(st.text(alphabet="v01=exp(adreuc,\"') fF32[]#\n-.x:", max_size=60))
def test_garbage_is_refused_and_never_breaks(text):
    with pytest.raises(ParseError):
        parse_text(START + text + "\n!")


@given(st.integers(0, 10_000), st.characters())
def test_damaged_text_gives_a_graph_or_an_error(place, character):
    whole = to_text([b.sum_(b.pad(b.add(X, 1.5), (1, 0), (0, 2), (1, 0)), 1)])
    at = place % len(whole)
    try:
        outputs = parse_text(whole[:at] + character + whole[at + 1 :])
    except ParseError:
        return
    assert parse_text(to_text(outputs)) == outputs
