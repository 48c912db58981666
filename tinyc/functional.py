"""The functions of ``torch.nn.functional`` on Tensors, with PyTorch's names and defaults.

Each is a line: the work is in ``tinyc.composites``, which knows nodes only.
"""

from __future__ import annotations

from collections.abc import Sequence

from tinyc import random
from tinyc.composites import (
    activation,
    attention,
    convolution,
    indexing,
    losses,
    normalization,
    reductions,
)
from tinyc.composites import linear as products
from tinyc.diagnostics import ShapeError
from tinyc.ir import build
from tinyc.ir.node import Node
from tinyc.ir.ops import fail
from tinyc.tensor import Tensor, apply, is_grad_enabled

Extents = int | Sequence[int]

# Activations.


def relu(input: Tensor) -> Tensor:
    """Return the input where it is positive, else 0; NaN stays."""
    return apply(activation.relu, input)


def leaky_relu(input: Tensor, negative_slope: float = 0.01) -> Tensor:
    """Return the input where it is positive, else the input times the slope."""
    return apply(activation.leaky_relu, input, negative_slope)


def sigmoid(input: Tensor) -> Tensor:
    """Return 1/(1+exp(-input))."""
    return apply(activation.sigmoid, input)


def logsigmoid(input: Tensor) -> Tensor:
    """Return log(sigmoid(input)), without overflow."""
    return apply(activation.logsigmoid, input)


def tanh(input: Tensor) -> Tensor:
    """Return the hyperbolic tangent."""
    return apply(build.tanh, input)


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """Return the input times the normal distribution's share below it, by erf or "tanh"."""
    return apply(activation.gelu, input, approximate)


def silu(input: Tensor) -> Tensor:
    """Return input * sigmoid(input)."""
    return apply(activation.silu, input)


def softplus(input: Tensor) -> Tensor:
    """Return log(1+exp(input)), without overflow."""
    return apply(activation.softplus, input)


def softsign(input: Tensor) -> Tensor:
    """Return input / (1 + |input|)."""
    return apply(activation.softsign, input)


def softmax(input: Tensor, dim: int) -> Tensor:
    """Return exp(input) over its sum along axis ``dim``."""
    return apply(reductions.softmax, input, dim)


def log_softmax(input: Tensor, dim: int) -> Tensor:
    """Return the logarithm of softmax along axis ``dim``, without overflow."""
    return apply(reductions.log_softmax, input, dim)


# Layers.


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return input @ weight.T + bias: [..., in], [out, in], [out] to [..., out]."""
    return apply(products.linear, input, weight, bias)


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Extents = 1,
    padding: Extents | str = 0,
    dilation: Extents = 1,
    groups: int = 1,
) -> Tensor:
    """Return the cross-correlation of [N, C, L] with [O, C/groups, K]."""
    _check_rank("conv1d", weight, 3)
    return apply(convolution.conv, input, weight, bias, stride, padding, dilation, groups)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Extents = 1,
    padding: Extents | str = 0,
    dilation: Extents = 1,
    groups: int = 1,
) -> Tensor:
    """Return the cross-correlation of [N, C, H, W] with [O, C/groups, KH, KW].

    ``padding`` is a number of zeros, "valid", or "same" where the stride is 1.
    """
    _check_rank("conv2d", weight, 4)
    return apply(convolution.conv, input, weight, bias, stride, padding, dilation, groups)


def max_pool2d(
    input: Tensor,
    kernel_size: Extents,
    stride: Extents | None = None,
    padding: Extents = 0,
    dilation: Extents = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """Return the maximum of each window of [N, C, H, W] or [C, H, W].

    ``stride`` is the window's size unless given. The padding counts as -inf, NaN wins, and the
    first maximum takes the gradient.
    """
    return apply(
        convolution.max_pool, input, kernel_size, stride, padding, dilation, ceil_mode,
        gradient=input.requires_grad and is_grad_enabled(),
    )  # fmt: skip


def avg_pool2d(
    input: Tensor,
    kernel_size: Extents,
    stride: Extents | None = None,
    padding: Extents = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """Return the mean of each window of [N, C, H, W] or [C, H, W].

    ``stride`` is the window's size unless given; the padding counts as zeros, or not at all.
    """
    return apply(
        convolution.avg_pool, input, kernel_size, stride, padding, ceil_mode, count_include_pad
    )


def adaptive_avg_pool2d(input: Tensor, output_size: Extents) -> Tensor:
    """Return means over ``output_size`` equal blocks of the last two axes.

    ShapeError where the blocks would not be equal.
    """
    return apply(convolution.adaptive_avg_pool, input, output_size)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalize each channel (axis 1) by its own statistics, or outside training by the running.

    In training the running statistics are moved in place.
    """
    step = momentum.detach().node if isinstance(momentum, Tensor) else momentum
    moved: list[Node] = []

    def normalized(x: Node, mean: Node, var: Node, weight: Node, bias: Node) -> Node:
        found = normalization.batch_norm(x, mean, var, weight, bias, training, step, eps)
        if training and found.running_mean is not None and found.running_var is not None:
            moved[:] = found.running_mean, found.running_var
        return found.y

    y = apply(normalized, input, running_mean, running_var, weight, bias)
    if moved and running_mean is not None and running_var is not None:
        running_mean.assign(Tensor._new(moved[0]))
        running_var.assign(Tensor._new(moved[1]))
    return y


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalize over the last axes, whose sizes are ``normalized_shape``; then weight and bias."""
    return apply(normalization.layer_norm, input, normalized_shape, weight, bias, eps)


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """Divide by the root of the mean square over the last axes, ``normalized_shape``; then weight.

    ``eps`` is added to the mean square: by default the smallest that 1 + eps differs from 1.
    """
    return apply(normalization.rms_norm, input, normalized_shape, weight, eps)


def dropout(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    """In training zero each value with probability ``p`` and divide the others by 1-p.

    Each call draws a new mask from the default generator, each run of a jitted function too.
    ``inplace`` is taken as in PyTorch and changes no value: memory is reused by plan anyway.
    """
    _check_probability("dropout", p)
    if not training or p == 0:
        return input
    return apply(normalization.dropout, input, p, random.bits(input.shape))


def embedding(input: Tensor, weight: Tensor, padding_idx: int | None = None) -> Tensor:
    """Return rows of the weight by number; row ``padding_idx`` gets no gradient.

    A number out of range is an IndexError when the value is computed.
    """
    return apply(indexing.embedding, input, weight, padding_idx)


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return softmax(query @ key^T * scale + mask) @ value, `scale` by default 1/sqrt(E).

    [..., L, E], [..., S, E] and [..., S, V] give [..., L, V]; leading axes broadcast. The mask
    broadcasts to [..., L, S]: True takes part, a floating one is added; a row in which nobody
    takes part gives zeros. With ``is_causal`` row i sees columns 0 to i. With ``enable_gqa``
    heads (axis -3) of the query share those of key and value, whose number divides theirs.
    Dropout is always on: pass 0 outside training. ShapeError and DTypeError name what does not
    fit.
    """
    _check_probability("scaled_dot_product_attention", dropout_p)
    return apply(
        attention.attention, query, key, value, attn_mask, is_causal, scale, enable_gqa,
        dropout_p, random.bits,
    )  # fmt: skip


def one_hot(input: Tensor, num_classes: int = -1) -> Tensor:
    """Return i64 [..., num_classes] with 1 at each number; by default up to the largest."""
    if num_classes < 0:
        num_classes = int(input.max().item()) + 1
    return apply(indexing.one_hot, input, num_classes)


def pad(
    input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None
) -> Tensor:
    """Pad by (before, after) of the last axis, then of the one before it, and so on.

    A negative number cuts. Only "constant" padding is there.
    """
    if mode != "constant":
        raise ValueError(f"pad: mode is 'constant', not {mode!r}")
    return apply(indexing.pad_last, input, pad, 0 if value is None else value)


# Losses.


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the cross entropy of logits [N, C, ...] and labels [N, ...] or probabilities.

    A label out of range is an IndexError when the value is computed.
    """
    return apply(
        losses.cross_entropy, input, target, weight, ignore_index, reduction, label_smoothing
    )


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Return minus the log probabilities [N, C, ...] at the labels [N, ...]."""
    return apply(losses.nll_loss, input, target, weight, ignore_index, reduction)


def mse_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Return the mean squared difference of equal shapes; "sum" and "none" are the others.

    ShapeError where the shapes differ, ValueError for another ``reduction``: so in all losses.
    """
    return apply(losses.mse_loss, input, target, reduction)


def l1_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Return the mean absolute difference of equal shapes, or by ``reduction`` "sum" or "none"."""
    return apply(losses.l1_loss, input, target, reduction)


def binary_cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    """Return the cross entropy of probabilities and targets in 0..1, of equal shapes.

    ``weight`` multiplies the losses; a logarithm of 0 counts as -100.
    """
    return apply(losses.binary_cross_entropy, input, target, weight, reduction)


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """Return the binary cross entropy of sigmoid(input), without overflow; shapes are equal.

    ``weight`` multiplies the losses, ``pos_weight`` what the targets contribute to them.
    """
    return apply(
        losses.binary_cross_entropy_with_logits, input, target, weight, pos_weight, reduction
    )


def _check_probability(name: str, p: float) -> None:
    if not 0 <= p <= 1:
        raise ValueError(f"{name}: the probability p is {p}; it must be in 0..1")


def _check_rank(name: str, weight: Tensor, rank: int) -> None:
    if weight.ndim != rank:
        rule = f"it has {rank} axes: [out, in/groups, *kernel]"
        fail(ShapeError, name, "the weight does not fit", (weight.node,), rule)
