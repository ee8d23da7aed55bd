"""The generator against its published table, written out once more, and folded against unfolded."""

import pytest
import torch
from torch.nn.functional import conv_transpose1d

from hxrd.models.generator import LATENT_POINTS, N_POINTS, Generator
from hxrd.models.resnet1d import ResNet1D

# channels, kernel, stride (the table of the release)
TABLE = [(32, 17, 2), (32, 15, 1), (32, 14, 1), (32, 18, 3), (32, 13, 1), (32, 11, 4), (32, 9, 1), (32, 9, 1)]
TABLE.append((1, 7, 1))


def noise(n, seed=0):
    return torch.randn(n, 1, LATENT_POINTS, generator=torch.Generator().manual_seed(seed))


def used_generator(dtype=torch.float32):
    """A generator whose normalisations all differ, as after training."""
    torch.manual_seed(0)
    generator = Generator().to(dtype)
    with torch.no_grad():
        for block in generator.blocks:
            block.batch_norm.weight.uniform_(0.5, 1.5)
            block.batch_norm.bias.normal_(0, 0.5)
        for _ in range(20):  # so that the running statistics come near those of these weights
            generator(torch.randn(1, 1, LATENT_POINTS, dtype=dtype))
    return generator.eval()


def by_hand(generator, z, training):
    """The forward pass, written out from the table alone."""
    weights = [block.conv.weight for block in generator.blocks] + [generator.last.weight]
    y = z
    for i, (channels, kernel, stride) in enumerate(TABLE):
        assert weights[i].shape[1:] == (channels, kernel)
        y = conv_transpose1d(y, weights[i], stride=stride)
        if i == len(TABLE) - 1:
            break
        y = torch.where(y > 0, y, 0.2 * y)
        norm = generator.blocks[i].batch_norm
        mean, variance = norm.running_mean, norm.running_var
        if training:
            mean, variance = y.mean(dim=(0, 2)), y.var(dim=(0, 2), unbiased=False)
        y = (y - mean[:, None]) / (variance[:, None] + 1e-4).sqrt()
        y = y * norm.weight[:, None] + norm.bias[:, None]
    return 1 / (1 + torch.exp(-y))


def test_published_numbers_of_parameters_and_points():
    generator = Generator()
    assert sum(parameter.numel() for parameter in generator.parameters()) == 92_416
    patterns = generator(noise(2))
    assert patterns.shape == (2, 1, N_POINTS) == (2, 1, 3041)
    assert patterns.min() >= 0
    assert patterns.max() <= 1


@pytest.mark.parametrize("training", [True, False])
def test_equals_the_plain_transcription(training):
    generator = used_generator(torch.float64).train(training)
    z = noise(3).double()
    with torch.no_grad():
        expected, found = by_hand(generator, z, training), generator(z)
    assert expected.std() > 0.01  # the comparison is of something
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_folded_equals_evaluation_mode(dtype, bound):
    generator = used_generator(dtype)
    z = noise(3, seed=1).to(dtype)
    with torch.no_grad():
        expected, found = generator(z), generator.folded()(z)
    assert found.dtype == dtype
    assert expected.std() > 0.01
    assert (found - expected).abs().max() <= bound


def test_folded_needs_a_bias_for_every_point():
    """At the ends, and at every stride-th point between them, the shift of a channel counts otherwise."""
    folded = used_generator(torch.float64).folded()
    bias_CL = folded.bias5  # kernel 11, stride 4
    middle = bias_CL[:, 100:-100]
    assert torch.allclose(middle[:, 4:], middle[:, :-4], rtol=0, atol=1e-12)
    assert (middle[:, 1:] - middle[:, :-1]).abs().max() > 0.01
    assert (bias_CL[:, :8] - bias_CL[:, 100:108]).abs().max() > 0.01


def test_folded_has_no_normalisation_left_and_nothing_to_train():
    generator = used_generator()
    folded = generator.folded()
    assert not any(isinstance(module, torch.nn.BatchNorm1d) for module in folded.modules())
    assert not list(folded.parameters())
    before = folded(noise(1))
    with torch.no_grad():
        generator.last.weight.zero_()
    assert torch.equal(folded(noise(1)), before)  # it holds its own weights


def test_one_compiled_graph_for_inference():
    folded = used_generator().folded()
    compiled = torch.compile(folded, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(noise(2)), folded(noise(2)), atol=1e-6)


def test_patterns_feed_the_classifier_and_gradients_come_back():
    generator, classifier = Generator(), ResNet1D(14, backend="reference")
    classifier(generator(noise(2))).logsumexp(1).mean().backward()
    for parameter in generator.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().max() > 0
