"""The ResNet-18-1D of Lolla et al. (2022), J. Appl. Cryst. 55, in the paper's and the released form.

Shape suffixes: B batch, C channels, L positions along the pattern, K classes.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

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

    def forward(self, x_BCL: Tensor) -> Tensor:
        """Map (B, C_in, L) to (B, C_out, L')."""
        y_BCL = functional.dropout(self.conv(x_BCL), self.dropout, self.training)
        return self.layer_norm(y_BCL.transpose(1, 2)).transpose(1, 2)


class ResidualBlock(nn.Module):
    """Two `ConvNorm`, the first followed by GELU; a projected shortcut; GELU."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int, dropout: float):
        super().__init__()
        self.conv1 = ConvNorm(channels_in, channels_out, kernel, stride, kernel // 2, dropout)
        self.conv2 = ConvNorm(channels_out, channels_out, kernel, 1, kernel // 2, dropout)
        self.downsample = ConvNorm(channels_in, channels_out, 1, stride, 0, 0.0)

    def forward(self, x_BCL: Tensor) -> Tensor:
        """Map (B, C_in, L) to (B, C_out, L')."""
        y_BCL = self.conv2(functional.gelu(self.conv1(x_BCL)))
        return functional.gelu(y_BCL + self.downsample(x_BCL))


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

    def forward(self, x_BCL: Tensor) -> Tensor:
        """Map patterns (B, 1, L) to features (B, C)."""
        y_BCL = self.conv(x_BCL)
        if self.pool is None:
            y_BCL = functional.gelu(y_BCL)
        else:
            y_BCL = _pooled_gelu(y_BCL, self.pool)
        for number in range(1, len(STAGES) + 1):
            y_BCL = getattr(self, f"layer{number}")(y_BCL)
        return y_BCL.amax(dim=2)


def _pooled_gelu(x_BCL: Tensor, size: int) -> Tensor:
    return functional.max_pool1d(functional.gelu(x_BCL), size, size, size // 2)


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

    def forward(self, x_BCL: Tensor) -> Tensor:
        """Map patterns (B, 1, L) to logits (B, K)."""
        return self.classifier(self.resnet(x_BCL))
