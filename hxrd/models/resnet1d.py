"""The ResNet-18-1D of Lolla et al. (2022), J. Appl. Cryst. 55, in the paper's and the released form.

Activations are channels-last, which suits LayerNorm over the channels and the convolutions alike.
Shape suffixes: B batch, L positions along the pattern, C channels, K classes.
"""

import torch
from torch import Tensor, nn

from hxrd.kernels import dispatch
from hxrd.models.layout import STAGES, STEM_CHANNELS, STEM_KERNEL, Variant, pool_of

MOST_SEEDS = 2**62


class ConvNorm(nn.Module):
    """The weights of a convolution without bias and of the LayerNorm over its channels.

    Between the two comes dropout. What follows differs, so a block calls the kernels with `tensors`.
    """

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, stride: int, padding: int, dropout: float
    ):
        super().__init__()
        self.conv = nn.Conv1d(channels_in, channels_out, kernel, stride, padding, bias=False)
        self.layer_norm = nn.LayerNorm(channels_out, eps=1e-5)
        self.dropout = dropout

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weight (C_out, C_in, taps), and the LayerNorm's affine part."""
        return self.conv.weight, self.layer_norm.weight, self.layer_norm.bias

    def dropout_now(self) -> tuple[float, Tensor | None]:
        """Return the probability of losing an element, 0 outside training, and a fresh seed."""
        if not (self.training and self.dropout):
            return 0.0, None
        return self.dropout, torch.randint(MOST_SEEDS, (1,), device=self.conv.weight.device)


class ResidualBlock(nn.Module):
    """Two `ConvNorm`, the first followed by GELU; a projected shortcut; GELU."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int, dropout: float):
        super().__init__()
        self.stride, self.padding = stride, kernel // 2
        self.conv1 = ConvNorm(channels_in, channels_out, kernel, stride, kernel // 2, dropout)
        self.conv2 = ConvNorm(channels_out, channels_out, kernel, 1, kernel // 2, dropout)
        self.downsample = ConvNorm(channels_in, channels_out, 1, stride, 0, 0.0)

    def forward(self, x_BLC: Tensor, backend: str) -> Tensor:
        """Map (B, L, C_in) to (B, L', C_out)."""
        dropout, seed = self.conv1.dropout_now()
        main_BLC, shortcut_BLC = dispatch.conv_norm_pair(
            x_BLC,
            *self.conv1.tensors,
            *self.downsample.tensors,
            stride=self.stride,
            padding=self.padding,
            dropout=dropout,
            seed=seed,
            backend=backend,
        )
        dropout, seed = self.conv2.dropout_now()
        return dispatch.conv_norm_gelu(
            main_BLC,
            *self.conv2.tensors,
            shortcut_BLC,
            padding=self.padding,
            dropout=dropout,
            seed=seed,
            backend=backend,
        )


class Backbone(nn.Module):
    """Everything before the classifier: patterns to feature vectors.

    Parameters
    ----------
    variant : {"paper", "released"}
        With the max pool of the paper's figure, or without it as in the released code,
        which builds the pool and never calls it.
    dropout : float
        0.1 in the paper's Table 2, 0.05 in the released code.
    backend : str
        Of the kernels; see `hxrd.kernels.dispatch.choose`.
    """

    def __init__(self, variant: Variant, dropout: float, backend: str = "auto"):
        super().__init__()
        self.pool, self.backend = pool_of(variant), backend
        self.conv = ConvNorm(1, STEM_CHANNELS, STEM_KERNEL, 1, 0, dropout)
        channels = STEM_CHANNELS
        for number, (channels_out, kernel, stride) in enumerate(STAGES, start=1):
            blocks = nn.ModuleList(
                [
                    ResidualBlock(channels, channels_out, kernel, stride, dropout),
                    ResidualBlock(channels_out, channels_out, kernel, 1, dropout),
                ]
            )
            self.add_module(f"layer{number}", blocks)
            channels = channels_out
        self.n_features = channels

    def forward(self, x_BL: Tensor) -> Tensor:
        """Map patterns (B, L) to features (B, C)."""
        dropout, seed = self.conv.dropout_now()
        y_BLC = dispatch.stem_norm_pool(
            x_BL, *self.conv.tensors, pool=self.pool, dropout=dropout, seed=seed, backend=self.backend
        )
        for number in range(1, len(STAGES) + 1):
            for block in getattr(self, f"layer{number}"):
                y_BLC = block(y_BLC, self.backend)
        return y_BLC.amax(dim=1)


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
    backend : str
        Of the kernels; see `hxrd.kernels.dispatch.choose`.
    """

    def __init__(
        self,
        n_classes: int = 144,
        variant: Variant = "paper",
        dropout: float | None = None,
        adversarial_head: bool = False,
        backend: str = "auto",
    ):
        super().__init__()
        if dropout is None:
            dropout = 0.1 if variant == "paper" else 0.05
        self.resnet = Backbone(variant, dropout, backend)
        self.classifier = nn.Linear(self.resnet.n_features, n_classes)
        self.adv = nn.Linear(self.resnet.n_features, 1) if adversarial_head else None

    def forward(self, x_B1L: Tensor) -> Tensor:
        """Map patterns (B, 1, L) to logits (B, K)."""
        return self.classifier(self.resnet(x_B1L.squeeze(1)))
