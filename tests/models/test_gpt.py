"""GPT: PyTorch's numbers from the same weights, GPT-2's first weights, and generation."""

from __future__ import annotations

import numpy as np
import pytest

import tinyc
from tinyc import Tensor, compiler, nn, optim
from tinyc.models import GPT, GPTConfig

SMALL = {"block_size": 16, "vocab_size": 23, "n_layer": 2, "n_head": 2, "n_embd": 16}


def make(seed=0, **changes):
    tinyc.manual_seed(seed)
    return GPT(GPTConfig(**{**SMALL, **changes}))


def spread(seed=0, **changes):
    """A model whose weights are large enough that logits differ."""
    model = make(seed, **changes)
    numbers = np.random.default_rng(seed)
    for p in model.parameters():
        p.load(p.numpy() + numbers.normal(0, 0.3, p.shape).astype(np.float32))
    return model


def tokens(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, SMALL["vocab_size"], shape)


def torch_logits(torch, params, idx, layers, heads):
    """GPT written out in PyTorch, with the names of the state dict."""
    F = torch.nn.functional

    def linear(x, name):
        return F.linear(x, params[name + ".weight"], params.get(name + ".bias"))

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], params[name + ".weight"], params.get(name + ".bias"))

    b, t = idx.shape
    x = params["wte.weight"][idx] + params["wpe.weight"][:t]
    for i in range(layers):
        q, k, v = (
            part.view(b, t, heads, -1).transpose(1, 2)
            for part in linear(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn").chunk(3, -1)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + linear(y, f"h.{i}.attn.c_proj")
        h = F.gelu(linear(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc"), approximate="tanh")
        x = x + linear(h, f"h.{i}.mlp.c_proj")
    return F.linear(norm(x, "ln_f"), params["wte.weight"])


@pytest.mark.oracle
@pytest.mark.parametrize("bias", [False, True])
def test_logits_loss_and_gradients_are_pytorch_s(bias):
    torch = pytest.importorskip("torch")
    model = spread(bias=bias)
    twins = {
        name: torch.tensor(p.numpy(), requires_grad=True) for name, p in model.named_parameters()
    }
    x, y = tokens(3, 11), tokens(3, 11, seed=1)
    logits, loss = model(Tensor(x), Tensor(y))
    expected = torch_logits(torch, twins, torch.tensor(x), 2, 2)
    np.testing.assert_allclose(logits.numpy(), expected.detach().numpy(), rtol=1e-4, atol=1e-5)
    theirs = torch.nn.functional.cross_entropy(expected.flatten(0, 1), torch.tensor(y).flatten())
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-5)
    loss.backward()
    theirs.backward()
    for name, p in model.named_parameters():
        wanted = twins[name].grad.numpy()
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(p.grad.numpy(), wanted, rtol=1e-3, atol=1e-4 * scale)


def test_first_weights_are_gpt_2_s():
    model = make(vocab_size=500, n_embd=128, n_layer=8)
    state = {name: p.numpy() for name, p in model.named_parameters()}
    for name, values in state.items():
        if name.endswith("bias"):
            assert (values == 0).all(), name
        elif values.ndim == 1:
            assert (values == 1).all(), name
        else:
            wanted = 0.02 / 4 if name.endswith("c_proj.weight") else 0.02
            assert values.std() == pytest.approx(wanted, rel=0.05), name
            assert abs(values.mean()) < 0.05 * wanted, name
    _, loss = model(Tensor(tokens(2, 16)), Tensor(tokens(2, 16, seed=1)))
    assert loss.item() == pytest.approx(np.log(500), abs=0.2)


def test_embedding_and_head_are_one_parameter():
    model = make()
    assert model.lm_head.weight is model.wte.weight
    names = [name for name, _ in model.named_parameters()]
    assert "wte.weight" in names and "lm_head.weight" not in names
    c, v, t = 16, 23, 16
    per_layer = 12 * c * c + 13 * c  # four matrices with biases, two norms
    assert sum(p.numel() for p in model.parameters()) == (v + t) * c + 2 * per_layer + 2 * c
    other = make(seed=1)
    other.load_state_dict(model.state_dict())
    assert other.lm_head.weight is other.wte.weight
    x = Tensor(tokens(1, 5))
    np.testing.assert_array_equal(model(x)[0].numpy(), other(x)[0].numpy())


def test_each_place_sees_only_what_came_before():
    model, x = spread(), tokens(1, 12)
    before = model(Tensor(x))[0].numpy()
    x[0, 7] = (x[0, 7] + 1) % SMALL["vocab_size"]
    after = model(Tensor(x))[0].numpy()
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert np.abs(before[:, 7:] - after[:, 7:]).max(-1).min() > 1e-4


def test_dropout_is_on_in_training_and_off_else():
    model, x = spread(dropout=0.3), Tensor(tokens(2, 8))
    assert not np.array_equal(model(x)[0].numpy(), model(x)[0].numpy())
    model.eval()
    np.testing.assert_array_equal(model(x)[0].numpy(), model(x)[0].numpy())
    same = spread(dropout=0.0)
    np.testing.assert_allclose(model(x)[0].numpy(), same(x)[0].numpy(), rtol=1e-5, atol=1e-6)


def test_matrices_decay_and_vectors_do_not():
    optimizer = make().configure_optimizer(weight_decay=0.2, lr=1e-3, betas=(0.8, 0.9))
    matrices, vectors = optimizer.param_groups
    assert {p.ndim for p in matrices["params"]} == {2} and matrices["weight_decay"] == 0.2
    assert {p.ndim for p in vectors["params"]} == {1} and vectors["weight_decay"] == 0
    assert optimizer.lr == 1e-3 and matrices["betas"] == (0.8, 0.9)
    assert len(matrices["params"]) == 2 + 2 * 4


def test_a_jitted_step_learns_a_batch_by_heart():
    model = make()
    optimizer = model.configure_optimizer(lr=1e-2)
    x, y = Tensor(tokens(4, 16)), Tensor(tokens(4, 16, seed=1))

    @tinyc.jit
    def step(x, y):
        _, loss = model(x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    losses = [step(x, y).item() for _ in range(60)]
    assert losses[0] > 3 and losses[-1] < 0.5
    assert step.captures == 1


def test_a_step_with_clipping_is_one_program_and_clips():
    """Gradients become parts of one vector, whose norm decides before any is used."""
    moved = {}
    for limit in (1e9, 1e-3):
        model = make()
        before = {name: p.numpy().copy() for name, p in model.named_parameters()}
        optimizer = optim.SGD(model.parameters(), lr=1.0)

        def step(x, y, model=model, optimizer=optimizer, limit=limit):
            _, loss = model(x, y)
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), limit)
            optimizer.step()
            return norm

        norm = tinyc.jit(step)(Tensor(tokens(2, 16)), Tensor(tokens(2, 16, seed=1))).item()
        change = [p.numpy() - before[name] for name, p in model.named_parameters()]
        moved[limit] = np.sqrt(sum((c.astype(np.float64) ** 2).sum() for c in change))
    assert norm > 0.1
    assert moved[1e9] == pytest.approx(norm, rel=1e-4)
    assert moved[1e-3] == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"n_embd": 15}, "no multiple of n_head=2"), ({"n_layer": 0}, "at least 1, not 0")],
)
def test_sizes_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        GPTConfig(**{**SMALL, **changes})


def test_tokens_that_do_not_fit_are_refused():
    model = make()
    with pytest.raises(ValueError, match=r"block_size=16.*\[1, 17\]"):
        model(Tensor(tokens(1, 17)))
    with pytest.raises(ValueError, match=r"\[5\]"):
        model(Tensor(tokens(5)))
    with pytest.raises(IndexError):
        model(Tensor(np.array([[23]])))[0].numpy()


# Generation


def uncached(model, idx, count, window):
    """Greedy tokens by running the whole model for each."""
    for _ in range(count):
        seen = idx[:, -window:]
        # What follows the last token changes nothing, and one length is one program.
        full = np.pad(seen, ((0, 0), (0, window - seen.shape[1])))
        logits = model(Tensor(full))[0].numpy()[:, seen.shape[1] - 1]
        idx = np.concatenate([idx, logits.argmax(-1)[:, None]], 1)
    return idx


def test_cached_logits_are_the_uncached_ones_by_one_program():
    model, x = spread(), tokens(3, 16)
    wanted = model(Tensor(x))[0].numpy()
    cache = model.new_cache(3)
    step = tinyc.jit(lambda token: model.decode(token, cache))
    before = compiler.compilations
    for _ in range(2):
        found = [step(Tensor(column.copy())).numpy() for column in x.T]
        np.testing.assert_allclose(np.stack(found, 1), wanted, rtol=1e-5, atol=1e-5)
        cache.clear()
    assert compiler.compilations == before + 1 and step.captures == 1
    with pytest.raises(IndexError):
        for _ in range(17):
            step(Tensor(x[:, 0].copy())).numpy()


def test_greedy_tokens_are_those_of_the_whole_model():
    model, x = spread(), tokens(2, 3)
    found = model.generate(Tensor(x), 13, temperature=0).numpy()
    np.testing.assert_array_equal(found, uncached(model, x, 13, 16))
    assert found.dtype == np.int64 and found.shape == (2, 16)


def test_generation_goes_on_where_the_context_is_full():
    model, x = spread(), tokens(1, 20)
    found = model.generate(Tensor(x), 30, temperature=0).numpy()
    assert found.shape == (1, 50)
    np.testing.assert_array_equal(found[:, :20], x)
    # At first the last 16 tokens are seen, then the last 8 begin a new context, and so on.
    assert found[0, 20] == uncached(model, x, 1, 16)[0, -1]
    np.testing.assert_array_equal(found[:, 13:29], uncached(model, found[:, 13:21], 8, 16))
    np.testing.assert_array_equal(found[:, 21:37], uncached(model, found[:, 21:29], 8, 16))


def test_a_seed_decides_and_one_compilation_serves_all():
    model, x = spread(vocab_size=23), Tensor(tokens(2, 2))
    before = compiler.compilations
    first = model.generate(x, 20, temperature=1.5, seed=5).numpy()
    assert compiler.compilations == before + 1
    again = model.generate(x, 20, temperature=1.5, seed=5).numpy()
    other = model.generate(x, 20, temperature=1.5, seed=6).numpy()
    colder = model.generate(x, 20, temperature=0.01, seed=6).numpy()
    assert compiler.compilations == before + 1
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(colder, model.generate(x, 20, temperature=0).numpy())
    tinyc.manual_seed(1)
    drawn = [model.generate(x, 20, temperature=1.5).numpy() for _ in range(2)]
    assert not np.array_equal(*drawn)
    tinyc.manual_seed(1)
    np.testing.assert_array_equal(model.generate(x, 20, temperature=1.5).numpy(), drawn[0])


def test_only_the_likeliest_are_drawn_from():
    model, x = spread(), tokens(8, 2)
    found = model.generate(Tensor(x), 14, temperature=3.0, top_k=3, seed=2).numpy()
    logits = model(Tensor(found[:, :-1]))[0].numpy()[:, 1:]
    rank = (logits > np.take_along_axis(logits, found[:, 2:, None], -1)).sum(-1)
    assert set(np.unique(rank)) == {0, 1, 2}
    best = model.generate(Tensor(x), 14, top_k=1, seed=2).numpy()
    np.testing.assert_array_equal(best, model.generate(Tensor(x), 14, temperature=0).numpy())
    every = model.generate(Tensor(x), 14, top_k=1000, seed=2).numpy()
    np.testing.assert_array_equal(every, model.generate(Tensor(x), 14, seed=2).numpy())


def test_modes_are_as_they_were_and_dropout_is_off():
    model, x = spread(dropout=0.5), Tensor(tokens(1, 2))
    model.h[1].eval()
    greedy = [model.generate(x, 10, temperature=0).numpy() for _ in range(2)]
    np.testing.assert_array_equal(*greedy)
    assert model.training and model.h[0].mlp.training and not model.h[1].mlp.training
    assert model(x)[0].requires_grad


def test_the_numpy_device_generates_the_same():
    model, x = spread(), tokens(1, 4)
    wanted = model.generate(Tensor(x), 6, top_k=5, seed=3).numpy()
    with tinyc.configure(device="numpy"):
        twin = spread()
        np.testing.assert_array_equal(twin.generate(Tensor(x), 6, top_k=5, seed=3).numpy(), wanted)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens is -1"),
        ({"temperature": -0.5}, "temperature is -0.5"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0"),
        ({"idx": Tensor(np.zeros((1, 0), np.int64))}, r"i64\[1, 0\]"),
        ({"idx": Tensor([[0.5]])}, r"f32\[1, 1\]"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        make().generate(**{"idx": Tensor([[1]]), "max_new_tokens": 2, **options})
