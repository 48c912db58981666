"""Hash-consing, origins, traversal, canonical keys, and depth."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import sys
import threading

import pytest

from tinyc.diagnostics import ShapeError
from tinyc.ir import build as B
from tinyc.ir.dtype import bool_, f32, f64, i32, i64
from tinyc.ir.node import (
    Graph,
    canonical_key,
    interned_count,
    node,
    rebuild,
    toposort,
    with_sources,
)
from tinyc.ir.ops import Op


def buf(uid=1, shape=(3, 4), dtype=f32, version=0, device="cpu"):
    return B.buffer(uid, version, shape, dtype, device)


def chain(n):
    x = buf()
    for _ in range(n):
        x = node(Op.NEG, (x,))
    return x


def test_equal_nodes_are_one_object():
    x = buf()
    a = B.add(x, x)
    assert B.add(x, x) is a
    assert B.mul(x, x) is not a
    assert buf() is x
    assert buf(version=1) is not x


def test_constants_are_told_apart_by_bits():
    assert B.const(0.0) is not B.const(-0.0)
    assert B.const(1) is not B.const(True)
    assert B.const(1) is not B.const(1.0)
    assert B.const(math.nan) is B.const(math.nan)
    assert B.const(1.0, f32) is not B.const(1.0, f64)
    assert B.const(True).dtype is bool_
    assert B.const(-3).value == -3
    assert math.copysign(1, B.const(-0.0).value) == -1


def test_only_constants_have_a_value():
    with pytest.raises(AttributeError, match="a buffer node has no value"):
        _ = buf().value


def test_origin_is_the_users_line_and_the_first_one_wins():
    line = sys._getframe().f_lineno
    a = B.exp(buf(77))
    b = B.exp(buf(77))
    assert a is b
    assert a.origin == (__file__, line + 1)


def test_like_hands_on_the_origin():
    old = B.exp(buf(78))
    assert node(Op.LOG, (buf(78),), like=old).origin == old.origin


def test_nodes_die_with_their_last_user():
    gc.collect()
    before = interned_count()
    x = B.add(B.mul(buf(101), 3.5), 4.5)
    assert interned_count() > before
    del x
    assert interned_count() == before


def test_an_equal_node_can_be_born_while_the_old_one_dies():
    """A dead entry's removal must not take the entry of its successor with it."""

    class Reborn:
        pass

    for _ in range(10):
        x = B.neg(buf(102))
        holder = Reborn()
        holder.x, holder.me = x, holder  # a cycle: dies when the collector runs
        del x, holder
        gc.collect()
        y = B.neg(buf(102))
        assert B.neg(buf(102)) is y


def test_copies_are_the_node_itself():
    x = buf()
    assert copy.copy(x) is x
    assert copy.deepcopy([x])[0] is x
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(x)


def test_threads_agree_on_one_node():
    results = []
    start = threading.Barrier(4)

    def work():
        start.wait()
        for k in range(300):
            results.append((k, B.add(B.mul(buf(103), float(k)), 1.0)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    found = {}
    for k, n in results:
        assert found.setdefault(k, n) is n


def test_a_deep_chain_is_built_walked_keyed_and_dropped():
    gc.collect()
    before = interned_count()
    x = chain(100_000)
    assert len(toposort([x])) == 100_001
    key, leaves = canonical_key([x])
    assert len(leaves) == 1
    assert hash(key) == hash(canonical_key([chain(100_000)])[0])
    copied = rebuild(Graph((x,)), with_sources)
    assert copied.outputs == (x,)
    del x, copied, leaves
    assert interned_count() == before


def test_doubling_keeps_a_graph_small():
    x = buf()
    for _ in range(60):
        x = B.add(x, x)
    assert len(toposort([x])) == 61
    assert len(canonical_key([x])[1]) == 1


def test_toposort_puts_sources_first_and_is_fixed():
    x, y = buf(1), buf(2)
    a = B.add(x, y)
    b = B.mul(a, x)
    order = toposort([b, a, b])
    assert order == [x, y, a, b]
    place = {n: i for i, n in enumerate(order)}
    assert all(place[s] < place[n] for n in order for s in n.src)


def test_devices_must_agree():
    with pytest.raises(ShapeError, match=r"add \(at .*\): devices differ, cpu and cuda:0"):
        B.add(buf(1), buf(2, device="cuda:0"))
    assert B.add(buf(1), 1.0).device == "cpu"
    assert B.add(B.iota(3), 1).device is None
    assert B.copy(buf(1), "cuda:0").device == "cuda:0"
    assert B.add(B.copy(buf(1), "cuda:0"), buf(2, device="cuda:0")).device == "cuda:0"


# canonical keys ---------------------------------------------------------------------------


def key(*outputs):
    return canonical_key(outputs)[0]


def test_key_forgets_which_buffers_but_not_their_types():
    def f(x, y):
        return B.add(B.exp(x), y)

    assert key(f(buf(1), buf(2))) == key(f(buf(8), buf(9, version=5)))
    assert key(f(buf(1), buf(2))) != key(f(buf(1, dtype=f64), buf(2, dtype=f64)))
    assert key(f(buf(1), buf(2))) != key(f(buf(1, (4, 4)), buf(2, (4, 4))))
    assert key(B.exp(buf(1))) != key(B.exp(buf(1, device="cuda")))


def test_leaves_correspond():
    _, leaves = canonical_key([B.sub(buf(5), B.exp(buf(6)))])
    assert [n.attrs[0] for n in leaves] == [5, 6]


def test_key_keeps_aliasing():
    assert key(B.add(buf(1), buf(2))) != key(B.add(buf(1), buf(1)))
    two = key(buf(1), buf(1, version=1))
    assert two != key(buf(1), buf(2, version=1))
    assert two == key(buf(3, version=7), buf(3, version=8))
    assert two != key(buf(3, version=7), buf(3, version=9))


def test_key_keeps_sharing_and_order():
    x, y = buf(1), buf(2)
    assert key(B.sub(x, y), x) != key(B.sub(x, y), y)
    assert key(B.sub(x, y), B.sub(y, x)) != key(B.sub(x, y), B.sub(x, y))
    assert key(B.exp(x), B.log(x)) != key(B.log(x), B.exp(x))
    assert key(x) != key(x, x)
    a = B.sub(B.exp(x), B.exp(y))
    b = B.sub(B.exp(x), B.exp(x))
    assert key(a) != key(b)


def test_key_keeps_attributes_and_counts():
    x = buf(1, (2, 2))
    assert key(B.sum_(x, 0)) != key(B.sum_(x, 1))
    assert key(B.const(0.0)) != key(B.const(-0.0))
    assert key(B.const(1, i64)) != key(B.const(1, i32))
    assert key(B.cat([x, x])) != key(B.cat([x, x, x]))
    assert key(B.cat([x, x], 0)) != key(B.cat([x, x], 1))


def test_key_does_not_depend_on_the_order_of_building():
    first = B.exp(buf(1))
    one = key(B.add(B.log(buf(2)), first))
    del first
    late = B.log(buf(4))
    assert key(B.add(late, B.exp(buf(3)))) == one


def test_key_outlives_its_graph():
    gc.collect()
    before = interned_count()
    kept = key(B.exp(buf(1)))
    assert interned_count() == before
    assert kept == key(B.exp(buf(2)))


def test_rebuild_replaces_bottom_up():
    x = buf(1)
    graph = Graph((B.add(B.exp(x), B.exp(x)), x), ("out", "in"))

    def swap(n, src):
        return node(Op.TANH, src, like=n) if n.op is Op.EXP else with_sources(n, src)

    new = rebuild(graph, swap)
    assert new.outputs == (B.add(B.tanh(x), B.tanh(x)), x)
    assert new.names == ("out", "in")
