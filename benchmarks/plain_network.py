"""The ResNet in torch's own operators, as somebody without our kernels would run it, to compare with.

Shape suffixes: B batch, C channels, L positions along the pattern, K classes.
"""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from hxrd.models.layout import POOL, STAGES
from hxrd.models.resnet1d import ResNet1D

Layout = Literal["channels-first", "channels-last"]


class PlainNetwork(nn.Module):
    """The same function of the same weights, each step an operator of torch.

    Parameters
    ----------
    model : ResNet1D
        Its parameters are shared, not copied.
    layout : {"channels-first", "channels-last"}
        The release's own, with 1-D convolutions and a transposition around each LayerNorm; or channels
        last throughout, with 2-D convolutions of height 1.
    """

    def __init__(self, model: ResNet1D, layout: Layout):
        super().__init__()
        self.model = model
        self.layout = layout

    def forward(self, x_B1L: Tensor) -> Tensor:
        """Map patterns (B, 1, L) to logits (B, K)."""
        backbone = self.model.resnet
        last = self.layout == "channels-last"
        y = x_B1L.transpose(1, 2) if last else x_B1L
        y = functional.gelu(self._conv_norm(backbone.conv, y, 1, 0))
        if backbone.pool:
            y = y.transpose(1, 2) if last else y
            y = functional.max_pool1d(y, POOL, POOL, POOL // 2)
            y = y.transpose(1, 2) if last else y
        for number, (_, kernel, stride) in enumerate(STAGES, start=1):
            for place, block in enumerate(getattr(backbone, f"layer{number}")):
                step = stride if place == 0 else 1
                inner = functional.gelu(self._conv_norm(block.conv1, y, step, kernel // 2))
                inner = self._conv_norm(block.conv2, inner, 1, kernel // 2)
                y = functional.gelu(inner + self._conv_norm(block.downsample, y, step, 0))
        return self.model.classifier(y.amax(dim=1 if last else 2))

    def _conv_norm(self, layer: nn.Module, x: Tensor, stride: int, padding: int) -> Tensor:
        weight, norm = layer.conv.weight, layer.layer_norm
        if self.layout == "channels-last":
            y_BC1L = functional.conv2d(
                x.transpose(1, 2).unsqueeze(2), weight.unsqueeze(2), stride=(1, stride), padding=(0, padding)
            )
            return norm(self._dropout(layer, y_BC1L.squeeze(2).transpose(1, 2)))
        y_BCL = self._dropout(layer, functional.conv1d(x, weight, stride=stride, padding=padding))
        return norm(y_BCL.transpose(1, 2)).transpose(1, 2)

    def _dropout(self, layer: nn.Module, y: Tensor) -> Tensor:
        dropout = float(layer.dropout)
        return functional.dropout(y, dropout, self.model.training) if dropout else y
