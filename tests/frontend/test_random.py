"""Random tensors: streams, seeds, and that a draw is a value like any other."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import tinyc
from tinyc import Generator, Tensor, config, random


@pytest.fixture(autouse=True)
def _on_numpy() -> Iterator[None]:
    with config.configure(device="numpy"):
        yield


def test_a_seed_gives_the_same_stream() -> None:
    tinyc.manual_seed(3)
    first = [tinyc.rand(4).tolist(), tinyc.randn(2, 2).tolist(), tinyc.randint(9, (5,)).tolist()]
    tinyc.manual_seed(3)
    again = [tinyc.rand(4).tolist(), tinyc.randn(2, 2).tolist(), tinyc.randint(9, (5,)).tolist()]
    assert first == again
    tinyc.manual_seed(4)
    assert tinyc.rand(4).tolist() != first[0]


def test_draws_do_not_depend_on_when_they_are_computed() -> None:
    tinyc.manual_seed(1)
    a, b = tinyc.rand(3), tinyc.rand(3)
    tinyc.manual_seed(2)
    late = (b.tolist(), a.tolist())
    tinyc.manual_seed(1)
    assert (tinyc.rand(3).tolist(), tinyc.rand(3).tolist()) == late[::-1]


def test_one_program_for_all_draws_of_a_shape() -> None:
    from tinyc import compiler

    tinyc.rand(7).realize()
    made = compiler.compilations
    for _ in range(3):
        tinyc.rand(7).realize()
    assert compiler.compilations == made


def test_the_stream_is_one_sequence() -> None:
    whole = Generator(7)
    parts = Generator(7)
    wanted = tinyc.rand(10, generator=whole).tolist()
    found = tinyc.rand(4, generator=parts).tolist() + tinyc.rand(6, generator=parts).tolist()
    assert found == wanted


def test_generators_have_states_of_their_own() -> None:
    one = Generator(7)
    tinyc.rand(5, generator=one)
    where = one.get_state()
    wanted = tinyc.rand(5, generator=one).tolist()
    other = Generator(0).set_state(where)
    assert other.initial_seed() == 7
    assert tinyc.rand(5, generator=other).tolist() == wanted
    assert Generator(-1).initial_seed() == 2**64 - 1
    with pytest.raises(ValueError, match="64 bits"):
        Generator(2**64)


@pytest.mark.parametrize("seed", [3, 2**63 + 5])
def test_a_saved_state_goes_on_with_every_kind_of_number(seed: int, tmp_path) -> None:
    def draw() -> list[list]:
        return [t.tolist() for t in (tinyc.randn(3), tinyc.randperm(9), tinyc.randint(9, (4,)))]

    tinyc.manual_seed(seed)
    draw()
    tinyc.randperm(3)  # half of a word of numpy's generator is left
    tinyc.save({"rng": tinyc.get_rng_state()}, tmp_path / "state")
    wanted = draw(), draw()
    tinyc.manual_seed(0)
    tinyc.set_rng_state(tinyc.load(tmp_path / "state")["rng"])
    assert (draw(), draw()) == wanted
    assert random.default_generator.initial_seed() == seed
    with pytest.raises(ValueError, match=r"got float64\[8\]; a generator's state is the int64"):
        tinyc.set_rng_state(np.zeros(8))
    with pytest.raises(ValueError, match=r"got int64\[2\]"):
        tinyc.set_rng_state(np.zeros(2, np.int64))


def test_the_same_numbers_on_every_device() -> None:
    tinyc.manual_seed(9)
    wanted = tinyc.rand(100).numpy()
    with config.configure(device="cpu"):
        tinyc.manual_seed(9)
        np.testing.assert_array_equal(tinyc.rand(100).numpy(), wanted)


def test_distributions() -> None:
    tinyc.manual_seed(0)
    uniform = tinyc.rand(20_000).numpy()
    assert 0 <= uniform.min() < uniform.max() < 1
    assert uniform.mean() == pytest.approx(0.5, abs=0.01)
    normal = tinyc.randn(20_000, dtype=tinyc.f64).numpy()
    assert (normal.mean(), normal.std()) == pytest.approx((0, 1), abs=0.03)
    numbers = tinyc.randint(-2, 3, (20_000,)).numpy()
    assert set(numbers.tolist()) == {-2, -1, 0, 1, 2}
    assert tinyc.bernoulli(tinyc.full((20_000,), 0.3)).mean().item() == pytest.approx(0.3, abs=0.02)
    assert sorted(tinyc.randperm(10).tolist()) == list(range(10))
    with pytest.raises(TypeError, match="no float type"):
        tinyc.rand(3, dtype=tinyc.i32)


def test_numpy_s_generator_follows_the_seed() -> None:
    tinyc.manual_seed(5)
    first = random.numpy_generator().random(3), random.numpy_generator().random(3)
    tinyc.manual_seed(5)
    again = random.numpy_generator().random(6)
    np.testing.assert_array_equal(np.concatenate(first), again)


def test_a_draw_is_one_value_wherever_it_is_used() -> None:
    x = Tensor(np.ones(50, np.float32), requires_grad=True)
    mask = tinyc.rand(50) < 0.5
    y = tinyc.where(mask, x * 2, 0.0)
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), np.where(mask.numpy(), 2, 0))
    np.testing.assert_array_equal(y.numpy(), x.grad.numpy())
