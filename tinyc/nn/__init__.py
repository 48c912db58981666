"""Modules, layers and losses, with the names, defaults and state dicts of PyTorch."""

from __future__ import annotations

from tinyc.nn import functional, init, utils
from tinyc.nn.activation import GELU, LeakyReLU, LogSoftmax, ReLU, Sigmoid, SiLU, Softmax, Tanh
from tinyc.nn.attention import MultiheadAttention
from tinyc.nn.container import ModuleList, Sequential
from tinyc.nn.convolution import AdaptiveAvgPool2d, AvgPool2d, Conv2d, MaxPool2d
from tinyc.nn.layers import Dropout, Embedding, Flatten, Identity, Linear, Unflatten
from tinyc.nn.losses import BCEWithLogitsLoss, CrossEntropyLoss, L1Loss, MSELoss
from tinyc.nn.module import Module, StateDictError
from tinyc.nn.normalization import BatchNorm1d, BatchNorm2d, LayerNorm, RMSNorm
from tinyc.nn.parameter import Parameter
from tinyc.nn.transformer import (
    TransformerDecoder,
    TransformerDecoderLayer,
    TransformerEncoder,
    TransformerEncoderLayer,
)

__all__ = [
    "GELU",
    "AdaptiveAvgPool2d",
    "AvgPool2d",
    "BCEWithLogitsLoss",
    "BatchNorm1d",
    "BatchNorm2d",
    "Conv2d",
    "CrossEntropyLoss",
    "Dropout",
    "Embedding",
    "Flatten",
    "Identity",
    "L1Loss",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "LogSoftmax",
    "MSELoss",
    "MaxPool2d",
    "Module",
    "ModuleList",
    "MultiheadAttention",
    "Parameter",
    "RMSNorm",
    "ReLU",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "StateDictError",
    "Tanh",
    "TransformerDecoder",
    "TransformerDecoderLayer",
    "TransformerEncoder",
    "TransformerEncoderLayer",
    "Unflatten",
    "functional",
    "init",
    "utils",
]
