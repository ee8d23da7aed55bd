"""The generator of Lolla et al. (2022), J. Appl. Cryst. 55: noise to patterns of 3041 points.

Shape suffixes: B batch, Z points of the latent signal, C channels, L positions along the signal.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

LATENT_POINTS = 100
N_POINTS = 3041
CHANNELS = 32
# (kernel, stride) of the transposed convolutions; all but the last have `CHANNELS` outputs
LAYERS = ((17, 2), (15, 1), (14, 1), (18, 3), (13, 1), (11, 4), (9, 1), (9, 1), (7, 1))
SLOPE = 0.2
EPS = 1e-4


class UpBlock(nn.Module):
    """Transposed convolution without bias, LeakyReLU, then batch normalisation."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int):
        super().__init__()
        self.conv = nn.ConvTranspose1d(channels_in, channels_out, kernel, stride, bias=False)
        self.batch_norm = nn.BatchNorm1d(channels_out, eps=EPS)

    def forward(self, x_BCL: Tensor) -> Tensor:
        """Map (B, C_in, L) to (B, C_out, (L − 1)·stride + kernel)."""
        return self.batch_norm(functional.leaky_relu(self.conv(x_BCL), SLOPE))

    def affine(self) -> tuple[Tensor, Tensor]:
        """Return what the normalisation multiplies by and adds in evaluation mode, float64, per channel."""
        norm = self.batch_norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale_C = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        return scale_C, norm.bias.double() - norm.running_mean.double() * scale_C


class Generator(nn.Module):
    """Noise to patterns between 0 and 1, on the grid of 3041 points from 3° to 155°.

    Nine transposed convolutions; each but the last is followed by LeakyReLU(0.2) and then by batch
    normalisation, the last by a sigmoid.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = [1, *[CHANNELS] * (len(LAYERS) - 1)]
        self.blocks = nn.Sequential(
            *(
                UpBlock(channels_in, CHANNELS, kernel, stride)
                for channels_in, (kernel, stride) in zip(widths, LAYERS[:-1], strict=False)
            )
        )
        kernel, stride = LAYERS[-1]
        self.last = nn.ConvTranspose1d(CHANNELS, 1, kernel, stride, bias=False)

    def forward(self, z_B1Z: Tensor) -> Tensor:
        """Map noise (B, 1, 100) to patterns (B, 1, 3041)."""
        return torch.sigmoid(self.last(self.blocks(z_B1Z)))

    def up_blocks(self) -> list[UpBlock]:
        """Return the blocks in their order: all layers but the last."""
        return [block for block in self.blocks if isinstance(block, UpBlock)]

    def folded(self) -> "FoldedGenerator":
        """Return the same function of evaluation mode without batch normalisation; see `FoldedGenerator`."""
        return FoldedGenerator(self)


class FoldedGenerator(nn.Module):
    """A trained generator for inference, each batch normalisation folded into the convolution after it.

    The normalisation scales and shifts each channel. The scale goes into the next weights. The shift
    reaches the next convolution as a constant signal, which it does not map to a constant: fewer taps
    meet the signal near its ends, and with a stride s every s-th point sees other taps. So a bias is
    kept for every channel and point, which is exact.

    Parameters
    ----------
    generator : Generator
        Its weights are copied, in float32 as they are.
    """

    def __init__(self, generator: Generator):
        super().__init__()
        convolutions = [*(block.conv for block in generator.up_blocks()), generator.last]
        affines = [block.affine() for block in generator.up_blocks()]
        self.strides = [stride for _, stride in LAYERS]
        first = convolutions[0].weight.detach()
        weights, biases = [first.clone()], [torch.zeros((), dtype=first.dtype, device=first.device)]
        length = _length_out(LATENT_POINTS, 0)
        for i, (scale_C, shift_C) in enumerate(affines, start=1):
            weight = convolutions[i].weight.detach()
            constant_1CL = shift_C.detach()[None, :, None].expand(1, -1, length)
            bias_1CL = functional.conv_transpose1d(constant_1CL, weight.double(), stride=self.strides[i])
            weights.append((weight.double() * scale_C.detach()[:, None, None]).to(weight.dtype))
            biases.append(bias_1CL[0].to(weight.dtype))
            length = _length_out(length, i)
        for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            self.register_buffer(f"weight{i}", weight)
            self.register_buffer(f"bias{i}", bias)
        self.eval()

    def forward(self, z_B1Z: Tensor) -> Tensor:
        """Map noise (B, 1, 100) to patterns (B, 1, 3041)."""
        x_BCL = z_B1Z
        for i, stride in enumerate(self.strides):
            weight, bias_CL = getattr(self, f"weight{i}"), getattr(self, f"bias{i}")
            x_BCL = functional.conv_transpose1d(x_BCL, weight, stride=stride) + bias_CL
            if i + 1 < len(self.strides):
                x_BCL = functional.leaky_relu(x_BCL, SLOPE)
        return torch.sigmoid(x_BCL)


def _length_out(length: int, layer: int) -> int:
    kernel, stride = LAYERS[layer]
    return (length - 1) * stride + kernel
