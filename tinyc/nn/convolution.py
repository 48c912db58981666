"""Convolution and pooling of images [n, channels, height, width]."""

from __future__ import annotations

from tinyc import functional as F
from tinyc.nn import init
from tinyc.nn.module import Module
from tinyc.nn.parameter import Parameter, empty
from tinyc.tensor import Tensor

Size = int | tuple[int, int]


def _pair(size: Size, what: str) -> tuple[int, int]:
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2:
        raise ValueError(f"{what}: expected an int or two, not {size!r}")
    return pair


class Conv2d(Module):
    """Correlate [n, in_channels, h, w] with ``out_channels`` kernels and add ``bias``.

    Attributes ``weight`` [out_channels, in_channels/groups, *kernel_size] and ``bias``
    [out_channels], or None; both start uniform in +-1/sqrt(fan in). ``padding`` is zeros on each
    side: an int, a pair, "same" (stride 1 only) or "valid".
    """

    bias: Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"Conv2d: {in_channels} channels in and {out_channels} out do not divide into "
                f"{groups} groups"
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = _pair(kernel_size, "Conv2d kernel_size")
        self.stride = _pair(stride, "Conv2d stride")
        self.padding = padding if isinstance(padding, str) else _pair(padding, "Conv2d padding")
        self.dilation = _pair(dilation, "Conv2d dilation")
        self.groups = groups
        self.weight = empty(out_channels, in_channels // groups, *self.kernel_size)
        self.bias = empty(out_channels) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters anew."""
        init.fan_in_uniform_(self.weight, self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Return [n, out_channels, h', w']."""
        return F.conv2d(
            input,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )

    def extra_repr(self) -> str:
        """Return the arguments that are not defaults, as PyTorch has it."""
        parts = [
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}",
            f"stride={self.stride}",
        ]
        if self.padding != (0, 0):
            parts.append(f"padding={self.padding}")
        if self.dilation != (1, 1):
            parts.append(f"dilation={self.dilation}")
        if self.groups != 1:
            parts.append(f"groups={self.groups}")
        if self.bias is None:
            parts.append("bias=False")
        return ", ".join(parts)


class MaxPool2d(Module):
    """The largest value of each window; ``stride`` is the window's size unless given."""

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        dilation: Size = 1,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding
        self.dilation = dilation
        self.ceil_mode = ceil_mode

    def forward(self, input: Tensor) -> Tensor:
        """Return [n, channels, h', w']."""
        return F.max_pool2d(
            input,
            self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            ceil_mode=self.ceil_mode,
        )

    def extra_repr(self) -> str:
        """Return the arguments, as PyTorch has it."""
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}, ceil_mode={self.ceil_mode}"
        )


class AvgPool2d(Module):
    """The mean of each window; ``stride`` is the window's size unless given.

    Zeros of the padding count as values unless ``count_include_pad`` is False.
    """

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding
        self.ceil_mode = ceil_mode
        self.count_include_pad = count_include_pad

    def forward(self, input: Tensor) -> Tensor:
        """Return [n, channels, h', w']."""
        return F.avg_pool2d(
            input,
            self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            ceil_mode=self.ceil_mode,
            count_include_pad=self.count_include_pad,
        )

    def extra_repr(self) -> str:
        """Return the arguments, as PyTorch has it."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class AdaptiveAvgPool2d(Module):
    """Means over ``output_size`` equal blocks of the image: 1 is the mean over all of it."""

    def __init__(self, output_size: Size) -> None:
        super().__init__()
        self.output_size = output_size

    def forward(self, input: Tensor) -> Tensor:
        """Return [n, channels, *output_size]."""
        return F.adaptive_avg_pool2d(input, self.output_size)

    def extra_repr(self) -> str:
        """Return the size."""
        return f"output_size={self.output_size}"
