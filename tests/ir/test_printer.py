"""Dumps read back as the same nodes, and read well."""

from __future__ import annotations

from tinyc.ir import build as b
from tinyc.ir.dtype import DTYPES, bool_, f32, i64, u8
from tinyc.ir.ops import Op
from tinyc.ir.parser import parse_text
from tinyc.ir.printer import brief, carry_names, number, to_text, type_text


def buffer(uid, shape, dtype=f32):
    return b.buffer(uid, 0, shape, dtype, "cpu")


X, Y, K = buffer(200, (3, 4)), buffer(201, (4, 5)), buffer(202, (2,), i64)


def every_op():
    assigned = b.assign(X, 2.0, (0, 1), (3, 2), (1, 2))
    flags = b.lt(X, 1.0)
    return [
        b.sum_(b.exp(b.add(X, 1.5)), 1),
        b.max_(b.window(b.pad(X, (1, 0), (0, 2), (1, 0)), 1, 2, 2, 1), (0, 2)),
        b.contract(X, Y, (0, 1), (1, 2), (0, 2)),
        b.fold(b.window(X, 0, 2), 0, 3),
        b.scatter_add(b.gather(X, K, 1), K, 1, 9),
        b.cat([b.slice_(X, (2, 0), (2, 4), (-1, 1)), X], 0),
        b.where(b.or_(flags, b.and_(flags, b.invert(flags))), X, 0.0),
        b.permute(b.reshape(X, (4, 3)), (1, 0)),
        b.assign(assigned, b.materialize(b.detach(b.mul(X, X)))),
        *b.together([b.boundary(b.exp(X))], [X]),
        b.copy(b.cast(b.bitcast(X, DTYPES["i32"]), u8), "numpy"),
        b.add(b.iota(7), b.var("n", 0, 9)),
        b.shl(K, b.shr(b.xor(K, 3), b.mod(b.idiv(K, 2), 5))),
        b.pow(b.erf(b.tanh(b.floor(X))), 2.5),
        b.log(b.sqrt(b.sin(b.cos(b.div(b.neg(X), b.sub(X, b.maximum(X, 0.0))))))),
        b.full((2, 0), True, bool_),
    ]


def test_every_op_reads_back_as_the_same_nodes():
    outputs = tuple(every_op())
    text = to_text(outputs)
    assert parse_text(text) == outputs
    assert {op.name.lower() for op in Op} - {word.strip("_") for word in names(text)} == {"eq"}


def names(text):
    return {line.split(" = ")[1].split("(")[0] for line in text.splitlines()[:-1]}


def test_the_text_is_one_typed_line_a_node():
    lines = to_text([b.sum_(b.add(X, 1), (1,))]).splitlines()
    assert lines[0].split()[-2].startswith("test_printer.py:") and lines[0].endswith(" (in0)")
    assert [line.split("#")[0].rstrip() for line in lines] == [
        'v0 = buffer(200, 0, (3, 4), f32, "cpu")',
        "v1 = const(f32, 1.0)",
        "v2 = expand(v1, (3, 4), ())",
        "v3 = add(v0, v2)",
        'v4 = reduce(v3, "sum", (1,))',
        "outputs = (v4,)",
    ]
    assert [line.split("# ")[1].split()[0] for line in lines[:-1]] == [
        "f32[3,4]", "f32[]", "f32[3,4]", "f32[3,4]", "f32[3]",
    ]  # fmt: skip


def test_one_line_forms():
    assert type_text(X) == "f32[3,4]"
    assert brief(b.sum_(b.exp(X), 1)) == 'reduce(exp f32[3,4], "sum", (1,))'
    assert brief(b.and_(b.lt(X, X), b.eq(X, X))) == "and_(lt bool[3,4], eq bool[3,4])"


def test_no_outputs_and_repeated_outputs():
    assert parse_text(to_text([])) == ()
    assert parse_text(to_text([X, X])) == (X, X)


def test_names_are_carried_to_a_rewritten_graph():
    before = [b.exp(b.neg(b.neg(X))), b.sqrt(b.add(X, 1.0))]
    after = [b.exp(X), b.sqrt(b.mul(X, 2.0))]
    names = carry_names(number(before), before, after)
    old = to_text(before).splitlines()
    new = to_text(after, names).splitlines()
    gone = [line.split("  #")[0].split(" = ")[1].strip() for line in old if line not in new]
    come = [line.split("  #")[0].strip() for line in new if line not in old]
    assert gone == ["neg(v0)", "neg(v1)", "exp(v2)", "const(f32, 1.0)", "expand(v4, (3, 4), ())",
                    "add(v0, v5)", "sqrt(v6)"]  # fmt: skip
    assert come == ["v3 = exp(v0)", "v8 = const(f32, 2.0)", "v9 = expand(v8, (3, 4), ())",
                    "v10 = mul(v0, v9)", "v7 = sqrt(v10)"]  # fmt: skip
    assert parse_text("\n".join(new)) == tuple(after)
