"""What verify accepts, and that it names what is wrong."""

from __future__ import annotations

import pytest

from tinyc.diagnostics import VerifyError
from tinyc.ir import build as b
from tinyc.ir.dtype import f32, f64
from tinyc.ir.node import Node
from tinyc.ir.verify import verify


def buffer(uid, shape, version=0):
    return b.buffer(uid, version, shape, f32, "cpu")


X, Y = buffer(300, (3, 4)), buffer(301, (4, 5))


def forged(n, **changes):
    """A node made behind the back of ``node()``, as a broken pass would."""
    fake = Node()
    for slot in ("op", "src", "attrs", "shape", "dtype", "device", "origin"):
        setattr(fake, slot, changes.get(slot, getattr(n, slot)))
    return fake


def refused(*outputs):
    with pytest.raises(VerifyError) as error:
        verify(outputs)
    return str(error.value)


def test_good_graphs_pass():
    y = b.contract(b.exp(X), Y, (0, 1), (1, 2), (0, 2))
    stored = b.assign(b.assign(X, 1.0, (0, 0), (1, 4)), b.exp(X))
    verify([b.sum_(y, 0), b.slice_(y, (2, 4), (2, 2), (-1, -3)), stored, b.exp(stored)])


def test_a_wrong_type_is_named():
    fake = forged(b.exp(X), shape=(3, 5))
    assert "type is f32[3,5], inferred is f32[3,4]: exp(buffer f32[3,4])" in refused(b.neg(fake))
    assert "inferred is f32" in refused(forged(b.exp(X), dtype=f64))


def test_sources_that_the_op_refuses():
    assert "refuses its sources" in refused(forged(b.add(X, X), src=(X, Y)))


def test_a_node_beside_the_interned_one():
    assert "two nodes for one expression" in refused(forged(b.exp(X)))


def test_contract_labels():
    y = b.contract(X, Y, (0, 1), (1, 2), (0, 2))
    assert "refuses" in refused(forged(y, attrs=((0, 1), (1, 2), (0, 3))))
    assert "refuses" in refused(forged(y, attrs=((0, 1), (2, 1), (0, 2))))


def test_slices_out_of_bounds():
    assert "refuses" in refused(forged(b.slice_(X, (0, 0), (2, 2)), attrs=((2, 0), (2, 2), (1, 1))))


def test_assigns_form_one_chain():
    first, second = b.assign(X, 1.0), b.assign(X, 2.0)
    assert "two assigns to one version" in refused(first, second)
    fake = forged(first, src=(b.exp(X), first.src[1]))
    assert "refuses its sources" in refused(fake)


def test_two_versions_of_a_buffer():
    assert "two versions of a buffer" in refused(b.add(X, buffer(300, (3, 4), version=1)))


def test_the_users_line_is_in_the_message():
    assert "test_verify.py:" in refused(forged(b.exp(X), shape=(9,)))
