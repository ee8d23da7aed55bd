"""The ResNet-18-1D against a second, plain transcription of the table in the paper and its release."""

import pytest
import torch
from torch.nn.functional import conv1d, gelu, layer_norm, linear, max_pool1d

from hxrd.models.resnet1d import ResNet1D

# name of the layer, kernel, strides of its two blocks (the table of the release)
LAYERS = [("layer1", 5, (4, 1)), ("layer2", 7, (4, 1)), ("layer3", 17, (5, 1)), ("layer4", 13, (3, 1))]
CHANNELS = {"layer1": (32, 32), "layer2": (32, 64), "layer3": (64, 64), "layer4": (64, 64)}


def released_shapes(n_classes, adversarial):
    """Key → shape, as the release's checkpoints have them."""
    shapes = {"resnet.conv.conv.weight": (32, 1, 13)}
    norms = {"resnet.conv.layer_norm": 32}
    for layer, kernel, _ in LAYERS:
        first, out = CHANNELS[layer]
        for block, channels in ((0, first), (1, out)):
            stem = f"resnet.{layer}.{block}"
            shapes[f"{stem}.conv1.conv.weight"] = (out, channels, kernel)
            shapes[f"{stem}.conv2.conv.weight"] = (out, out, kernel)
            shapes[f"{stem}.downsample.conv.weight"] = (out, channels, 1)
            norms |= {f"{stem}.{part}.layer_norm": out for part in ("conv1", "conv2", "downsample")}
    for stem, channels in norms.items():
        shapes |= {f"{stem}.weight": (channels,), f"{stem}.bias": (channels,)}
    shapes |= {"classifier.weight": (n_classes, 64), "classifier.bias": (n_classes,)}
    if adversarial:
        shapes |= {"adv.weight": (1, 64), "adv.bias": (1,)}
    return shapes


def random_weights(n_classes=144, adversarial=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for key, shape in released_shapes(n_classes, adversarial).items():
        noise = torch.randn(shape, generator=generator)
        is_gain = key.endswith("layer_norm.weight")
        weights[key] = 1 + 0.1 * noise if is_gain else noise / max(1, noise[0].numel()) ** 0.5
    return weights


def plain_logits(weights, x, pooled):
    """The forward pass, written out from the table alone."""

    def conv_norm(y, stem, stride, padding):
        y = conv1d(y, weights[f"{stem}.conv.weight"], None, stride, padding)
        gain, shift = weights[f"{stem}.layer_norm.weight"], weights[f"{stem}.layer_norm.bias"]
        return layer_norm(y.permute(0, 2, 1), gain.shape, gain, shift, 1e-5).permute(0, 2, 1)

    y = gelu(conv_norm(x, "resnet.conv", 1, 0))
    if pooled:
        y = max_pool1d(y, kernel_size=7, stride=7, padding=3)
    for layer, kernel, strides in LAYERS:
        for block, stride in enumerate(strides):
            stem = f"resnet.{layer}.{block}"
            inner = gelu(conv_norm(y, f"{stem}.conv1", stride, kernel // 2))
            inner = conv_norm(inner, f"{stem}.conv2", 1, kernel // 2)
            y = gelu(inner + conv_norm(y, f"{stem}.downsample", stride, 0))
    return linear(y.max(dim=2).values, weights["classifier.weight"], weights["classifier.bias"])


def test_released_layout_has_the_released_number_of_parameters():
    model = ResNet1D(144, variant="released", adversarial_head=True)
    assert sum(parameter.numel() for parameter in model.parameters()) == 649_521


@pytest.mark.parametrize("adversarial", [True, False])
@pytest.mark.parametrize("n_classes", [144, 14])
def test_keys_and_shapes_are_those_of_the_release(n_classes, adversarial):
    state = ResNet1D(n_classes, variant="released", adversarial_head=adversarial).state_dict()
    assert {key: tuple(tensor.shape) for key, tensor in state.items()} == released_shapes(
        n_classes, adversarial
    )


@pytest.mark.parametrize(("variant", "pooled"), [("paper", True), ("released", False)])
@pytest.mark.parametrize("n_points", [3041, 3042])
def test_logits_equal_the_plain_transcription(variant, pooled, n_points):
    weights = random_weights()
    model = ResNet1D(144, variant=variant, adversarial_head=True).eval()
    model.load_state_dict(weights)
    x = torch.rand((3, 1, n_points), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, logits = plain_logits(weights, x, pooled), model(x)
    assert logits.shape == (3, 144)
    assert expected.std() > 0.1  # the comparison is of something
    assert torch.allclose(logits, expected, rtol=0, atol=1e-5)


def test_the_two_variants_differ():
    weights = random_weights(adversarial=False)
    x = torch.rand((1, 1, 3041), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        difference = plain_logits(weights, x, True) - plain_logits(weights, x, False)
    assert difference.abs().max() > 0.01


def test_dropout_acts_in_training_only():
    model = ResNet1D(144, dropout=0.5)
    x = torch.rand((2, 1, 3041))
    torch.manual_seed(0)
    with torch.no_grad():
        assert not torch.equal(model.train()(x), model(x))
        assert torch.equal(model.eval()(x), model(x))


def test_default_dropout_is_that_of_the_variant():
    assert ResNet1D(14, variant="paper").resnet.conv.dropout == 0.1
    assert ResNet1D(14, variant="released").resnet.conv.dropout == 0.05
    assert ResNet1D(14, variant="released").resnet.layer1[1].downsample.dropout == 0.0
