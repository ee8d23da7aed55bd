"""Twenty steps of training with the Triton kernels, eager and compiled, against the same in plain torch.

The dropout masks are equal by construction, so the whole course must be equal, not its statistics alone.
"""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from hxrd.kernels import conv_norm_gelu as op
from hxrd.models import resnet1d

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE.type == "cuda"
N_CLASSES = 14
N_PATTERNS, N_POINTS = (16, 3041) if ON_GPU else (3, 61)  # the interpreter takes its time
SHORT_STAGES = ((64, 3, 4),)  # two blocks, of which the interpreter does twenty steps in time
REASON = op.unavailable(DEVICE)
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "Triton runs here")


@pytest.fixture(autouse=True)
def one_stream_of_random_numbers(monkeypatch):
    """Have compiled code draw its seeds as eager code does; keep float32 from being rounded to TF32."""
    import torch._inductor.config

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.compiler.reset()
    if not ON_GPU:  # a fifth of the interpreter's time; the tests of each kernel keep the checks
        from triton.runtime import interpreter

        builder = interpreter.interpreter_builder
        monkeypatch.setattr(builder, "options", replace(builder.options, sanitize_overflow=False))
    with torch._inductor.config.patch(fallback_random=True):
        yield


def network(backend, dropout=0.2):
    torch.manual_seed(1)
    return resnet1d.ResNet1D(N_CLASSES, "paper", dropout, backend=backend).to(DEVICE).train()


def course(model, n_steps, run=None):
    """Train for some steps; return the losses and the weights at the end."""
    generator = torch.Generator().manual_seed(2)
    x_SB1L = torch.rand(n_steps, N_PATTERNS, 1, N_POINTS, generator=generator).to(DEVICE)
    labels_SB = torch.randint(N_CLASSES, (n_steps, N_PATTERNS), generator=generator).to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, eps=1e-5)
    torch.manual_seed(3)
    losses = []
    for x_B1L, labels_B in zip(x_SB1L, labels_SB, strict=True):
        optimizer.zero_grad(set_to_none=True)
        loss = functional.cross_entropy((model if run is None else run)(x_B1L), labels_B)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses), weights_of(model)


def weights_of(model):
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


def require_equal_courses(n_steps, compiler):
    reference, ours = network("reference"), network("triton")
    before = weights_of(reference)
    assert torch.equal(before, weights_of(ours))
    expected_losses, expected = course(reference, n_steps)
    run = torch.compile(ours, backend=compiler, fullgraph=True)
    losses, found = course(ours, n_steps, run)
    assert torch.allclose(losses, expected_losses, rtol=1e-4, atol=0)
    moved = (expected - before).norm()
    assert moved > 0.05 * n_steps**0.5  # something was learnt
    assert (found - expected).norm() <= 1e-3 * moved


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_twenty_steps_equal_those_of_the_reference(monkeypatch, compiler):
    if not ON_GPU:
        monkeypatch.setattr(resnet1d, "STAGES", SHORT_STAGES)
    require_equal_courses(20, compiler)


@pytest.mark.slow
def test_steps_of_the_whole_network():
    require_equal_courses(20 if ON_GPU else 2, "aot_eager")


def test_another_mask_is_another_course(monkeypatch):
    """So the comparisons above would notice masks that differ."""
    monkeypatch.setattr(resnet1d, "STAGES", SHORT_STAGES)
    losses, _ = course(network("reference"), 5)
    others, _ = course(network("reference", dropout=0.21), 5)
    assert not torch.allclose(losses, others, rtol=1e-3, atol=0)
