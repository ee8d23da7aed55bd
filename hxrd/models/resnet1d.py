"""The ResNet-18-1D of Lolla et al. (2022), J. Appl. Cryst. 55, in the paper's and the released form.

Activations are channels-last, which suits LayerNorm over the channels and the convolutions alike.
Shape suffixes: B batch, L positions along the pattern, C channels, K classes.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from hxrd.kernels import pooled_norm

Variant = Literal["paper", "released"]

STEM_CHANNELS, STEM_KERNEL = 32, 13
POOL = 7
# (out channels, kernel, stride) of the four stages, two residual blocks each.
STAGES = ((32, 5, 4), (64, 7, 4), (64, 17, 5), (64, 13, 3))


class ConvNorm(nn.Module):
    """Convolution without bias, dropout, then LayerNorm over the channels at each position."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, stride: int, padding: int, dropout: float
    ):
        super().__init__()
        self.conv = nn.Conv1d(channels_in, channels_out, kernel, stride, padding, bias=False)
        self.layer_norm = nn.LayerNorm(channels_out, eps=1e-5)
        self.dropout = dropout

    def convolved(self, x_BLC: Tensor) -> Tensor:
        """Convolution and dropout alone: map (B, L, C_in) to (B, L', C_out)."""
        # A channels-last 2D convolution of height 1: torch's 1D one would copy to channels-first and back.
        y_BC1L = functional.conv2d(
            x_BLC.transpose(1, 2).unsqueeze(2),
            self.conv.weight.unsqueeze(2),
            stride=(1, self.conv.stride[0]),
            padding=(0, int(self.conv.padding[0])),
        )
        y_BLC = y_BC1L.squeeze(2).transpose(1, 2)
        return functional.dropout(y_BLC, self.dropout, self.training) if self.dropout else y_BLC

    def forward(self, x_BLC: Tensor) -> Tensor:
        """Map (B, L, C_in) to (B, L', C_out)."""
        return self.layer_norm(self.convolved(x_BLC))


class ResidualBlock(nn.Module):
    """Two `ConvNorm`, the first followed by GELU; a projected shortcut; GELU."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int, dropout: float):
        super().__init__()
        self.conv1 = ConvNorm(channels_in, channels_out, kernel, stride, kernel // 2, dropout)
        self.conv2 = ConvNorm(channels_out, channels_out, kernel, 1, kernel // 2, dropout)
        self.downsample = ConvNorm(channels_in, channels_out, 1, stride, 0, 0.0)

    def forward(self, x_BLC: Tensor) -> Tensor:
        """Map (B, L, C_in) to (B, L', C_out)."""
        y_BLC = self.conv2(functional.gelu(self.conv1(x_BLC)))
        return functional.gelu(y_BLC + self.downsample(x_BLC))


class Backbone(nn.Module):
    """Everything before the classifier: patterns to feature vectors.

    Parameters
    ----------
    variant : {"paper", "released"}
        With the max pool of the paper's figure, or without it as in the released code,
        which builds the pool and never calls it.
    dropout : float
        0.1 in the paper's Table 2, 0.05 in the released code.
    """

    def __init__(self, variant: Variant, dropout: float):
        super().__init__()
        self.pool = POOL if variant == "paper" else None
        self.conv = ConvNorm(1, STEM_CHANNELS, STEM_KERNEL, 1, 0, dropout)
        channels = STEM_CHANNELS
        for number, (channels_out, kernel, stride) in enumerate(STAGES, start=1):
            blocks = nn.Sequential(
                ResidualBlock(channels, channels_out, kernel, stride, dropout),
                ResidualBlock(channels_out, channels_out, kernel, 1, dropout),
            )
            self.add_module(f"layer{number}", blocks)
            channels = channels_out
        self.n_features = channels

    def forward(self, x_BLC: Tensor) -> Tensor:
        """Map patterns (B, L, 1) to features (B, C)."""
        y_BLC = self._stem(x_BLC)
        for number in range(1, len(STAGES) + 1):
            y_BLC = getattr(self, f"layer{number}")(y_BLC)
        return y_BLC.amax(dim=1)

    def _stem(self, x_BLC: Tensor) -> Tensor:
        if self.pool is None:
            return functional.gelu(self.conv(x_BLC))
        norm = self.conv.layer_norm
        if x_BLC.device.type != "cpu" or torch.compiler.is_compiling():
            y_BLC = self.conv.convolved(x_BLC)
            return pooled_norm.reference(y_BLC, norm.weight, norm.bias, self.pool, norm.eps)
        # One input channel: a product with the pattern's windows is already channels-last.
        with torch.autocast("cpu", enabled=False):
            windows_BLT = x_BLC.float().squeeze(2).unfold(1, STEM_KERNEL, 1)
            y_BLC = windows_BLT @ self.conv.conv.weight.squeeze(1).T
            y_BLC = functional.dropout(y_BLC, self.conv.dropout, self.training)
            return pooled_norm.pooled_norm(y_BLC, norm.weight, norm.bias, self.pool, norm.eps)


class ResNet1D(nn.Module):
    """Classifier of powder patterns.

    The keys of its `state_dict` are those of the released checkpoints.

    Parameters
    ----------
    n_classes : int
        144 space groups, 230, or 14 Bravais lattices.
    variant : {"paper", "released"}
        See `Backbone`.
    dropout : float, optional
        The variant's own value where left out.
    adversarial_head : bool
        The release's second output, which tells measured from generated patterns.
    """

    def __init__(
        self,
        n_classes: int = 144,
        variant: Variant = "paper",
        dropout: float | None = None,
        adversarial_head: bool = False,
    ):
        super().__init__()
        if dropout is None:
            dropout = 0.1 if variant == "paper" else 0.05
        self.resnet = Backbone(variant, dropout)
        self.classifier = nn.Linear(self.resnet.n_features, n_classes)
        self.adv = nn.Linear(self.resnet.n_features, 1) if adversarial_head else None

    def forward(self, x_B1L: Tensor) -> Tensor:
        """Map patterns (B, 1, L) to logits (B, K)."""
        return self.classifier(self.resnet(x_B1L.transpose(1, 2)))
