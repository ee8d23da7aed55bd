"""The fused stem, interpreted on the CPU (TRITON_INTERPRET=1) or run on a GPU."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from compiled_kernels import run_python
from conv_norm_gelu_cases import BOUNDS, DEVICE, OBSTACLE, double, relative_error, with_gradients
from stem_norm_pool_cases import (
    EPS,
    OTHERS,
    RESNET,
    Stem,
    fused,
    plain,
    require_gradients,
    seed_of,
    shared_arguments,
)

from hxrd.kernels import dropout as masks
from hxrd.kernels import stem_norm_pool as op
from hxrd.kernels import stem_norm_pool_launch as launch

needs_kernel = pytest.mark.skipif(bool(OBSTACLE), reason=f"the Triton kernel cannot run here: {OBSTACLE}")
PAPER, RELEASED = RESNET


@pytest.fixture(autouse=True)
def exact_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep cuDNN from rounding float32 convolutions of the reference to TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def memory_of_nan() -> Iterator[None]:
    """Fill all memory that torch allocates with NaN, and bytes with 255."""
    torch.use_deterministic_algorithms(True)
    assert torch.zeros(1).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@needs_kernel
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("stem", RESNET + OTHERS, ids=str)
def test_agrees_with_float64(stem: Stem, dtype: torch.dtype, memory_of_nan: None) -> None:
    require_gradients(stem, batch=3, length=61, dtype=dtype)


@needs_kernel
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("length", [3041, 3042])
@pytest.mark.parametrize("stem", RESNET, ids=str)
def test_patterns_of_the_network(stem: Stem, length: int, dtype: torch.dtype, memory_of_nan: None) -> None:
    require_gradients(stem, 1, length, dtype)


@needs_kernel
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("length", [13, 17, 1023])
@pytest.mark.parametrize("stem", RESNET, ids=str)
def test_awkward_lengths(
    stem: Stem, length: int, batch: int, dtype: torch.dtype, memory_of_nan: None
) -> None:
    require_gradients(stem, batch, length, dtype)


@needs_kernel
@pytest.mark.parametrize("batch", [1, 7])
def test_one_point(batch: int, memory_of_nan: None) -> None:
    require_gradients(Stem("one point", 3, taps=1, dropout=0.2), batch, 1, torch.float32)


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("stem", RESNET, ids=str)
def test_reference_in_low_precision(stem: Stem, dtype: torch.dtype) -> None:
    tensors = stem.tensors(3, 61, dtype)
    found = plain(tensors, stem)
    assert found.dtype == dtype
    assert relative_error(found, plain(double(tensors), stem)) <= BOUNDS[dtype]


def test_reference_is_the_formula() -> None:
    """Two windows by hand: sums over taps, mean, variance, erf, maximum."""
    x_BL, weight, scale, shift = double(Stem("by hand", 3, channels=4, taps=2).tensors(1, 6))
    rows = torch.stack([weight[:, 0] @ x_BL[0, l : l + 2] for l in range(5)])
    centred = rows - rows.mean(dim=1, keepdim=True)
    rows = centred / (centred.square().mean(dim=1, keepdim=True) + EPS).sqrt() * scale + shift
    rows = rows * 0.5 * (1 + torch.erf(rows / 2**0.5))
    expected = torch.stack([rows[:2].amax(dim=0), rows[2:].amax(dim=0)])
    found = op.reference(x_BL, weight, scale, shift, pool=3)
    assert torch.allclose(found[0], expected, rtol=0, atol=1e-12)


@needs_kernel
@pytest.mark.parametrize("dropout", [0.1, 0.6])
def test_dropout_mask_is_the_one_of_the_hash(dropout: float) -> None:
    """With one tap and weights of one, what is kept lies above the mean, and what is lost below."""
    stem = Stem("mask", 0, taps=1, dropout=dropout)
    x_BL, weight, scale, shift = stem.tensors(7, 501)
    ones = torch.ones_like(x_BL), torch.ones_like(weight), torch.ones_like(scale), torch.zeros_like(shift)
    found = fused(list(ones), stem) > 0
    expected = masks.keep_mask(torch.tensor([-20775]), (7, 501, 32), dropout)
    mixed = expected.any(dim=2) & ~expected.all(dim=2)
    assert torch.equal(found.cpu()[mixed], expected[mixed])
    rate = (~found.cpu()[mixed]).sum().item() / expected.numel()  # other rows are kept as a whole
    assert abs(rate - dropout) < 5 * (dropout * (1 - dropout) / expected.numel()) ** 0.5


@needs_kernel
def test_backward_pass_drops_the_same_elements() -> None:
    """With one point and one tap, a channel's weight has a gradient exactly where it was kept."""
    stem = Stem("mask", 0, taps=1, dropout=0.4)
    tensors = with_gradients(stem.tensors(1, 1))
    fused(tensors, stem).square().sum().backward()
    expected = masks.keep_mask(torch.tensor([-20775]), (1, 1, 32), 0.4).flatten()
    assert torch.equal(tensors[1].grad.flatten().cpu() != 0, expected)


def chosen_points(tensors: list[torch.Tensor], stem: Stem) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = *tensors, seed_of(stem), stem.pool, EPS, stem.dropout
    return op.stem_norm_pool_forward(*inputs, True, True)


@needs_kernel
def test_first_of_equals_is_chosen() -> None:
    stem = OTHERS[0]
    tensors = stem.tensors(2, 61)
    tensors[0] = torch.ones_like(tensors[0])
    _, chosen_BPC = chosen_points(tensors, stem)
    assert (chosen_BPC[:, 0] == 3).all()  # before it lies padding
    assert (chosen_BPC[:, 1:] == 0).all()


@needs_kernel
def test_not_a_number_goes_through() -> None:
    stem = OTHERS[0]
    tensors = stem.tensors(2, 61)
    tensors[0][1, 30] = torch.nan
    found = fused(tensors, stem)
    assert torch.equal(found.isnan(), plain(tensors, stem).isnan())
    assert found.isnan().any()
    assert not found[0].isnan().any()


def amid_nan(tensor: torch.Tensor, margin: int) -> torch.Tensor:
    """Copy the tensor into the middle of NaN: before, after, and between its rows."""
    shape = *tensor.shape[:-1], tensor.shape[-1] + 2 * margin
    framed = torch.full(shape, torch.nan, device=tensor.device, dtype=tensor.dtype)
    return framed.narrow(-1, margin, tensor.shape[-1]).copy_(tensor)


def framed(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Allocate memory with a guard before and after; return all of it and the middle."""
    value = 255 if dtype == torch.uint8 else torch.nan
    frame = torch.full((shape[0] + 2, *shape[1:]), value, dtype=dtype, device=DEVICE)
    return frame, frame[1:-1]


def untouched(frame: torch.Tensor) -> bool:
    edges = frame[[0, -1]]
    return bool((edges == 255).all() if frame.dtype == torch.uint8 else edges.isnan().all())


@needs_kernel
@pytest.mark.parametrize("stem", [PAPER, RELEASED, OTHERS[7]], ids=str)
def test_no_read_and_no_write_out_of_bounds(stem: Stem) -> None:
    tensors = with_gradients(stem.tensors(3, 45))
    expected = fused(tensors, stem)
    expected.sum().backward()
    surrounded = [amid_nan(tensor.detach(), 40) for tensor in tensors]
    arguments = shared_arguments(surrounded, stem)
    out_frame, out_BPC = framed(expected.shape)
    chosen_frame, chosen_BPC = framed(expected.shape, torch.uint8)
    launch.run_forward(launch.forward_arguments(arguments, out_BPC, chosen_BPC), True)
    assert relative_error(out_BPC, expected.double().cpu()) <= 1e-6
    assert untouched(out_frame)
    assert untouched(chosen_frame)

    padded = launch.padded(stem.taps), launch.padded(stem.channels)
    partial_frame, partial = framed((5, padded[0] + 2, padded[1]))
    spread_frame, spread_BLT = framed((3, 45 - stem.taps + 1, stem.taps))
    x_frame, grad_x = framed((3, 45))
    slope = torch.ones_like(expected)
    arguments = launch.backward_arguments(arguments, slope, chosen_BPC, partial, spread_BLT)
    launch.run_backward(arguments, True)
    launch.run_gather(launch.gather_arguments(spread_BLT, grad_x))
    assert untouched(partial_frame)
    assert untouched(spread_frame)
    assert untouched(x_frame)
    assert relative_error(grad_x, tensors[0].grad.double().cpu()) <= 1e-5
    weight = partial.sum(dim=0)[: stem.taps, : stem.channels].t()
    assert relative_error(weight, tensors[1].grad.squeeze(1).double().cpu()) <= 1e-5


@needs_kernel
@pytest.mark.skipif(DEVICE.type == "cuda", reason="the sparse file lies in the memory of the CPU")
@pytest.mark.parametrize("axis", ["batch", "length"])
def test_addresses_beyond_32_bits(tmp_path: Path, axis: str) -> None:
    stem = Stem("far apart", 2, taps=2)
    tensors = stem.tensors(3 if axis == "batch" else 1, 3, torch.float16)
    # the third slice lies 2**31 elements on, where a 32-bit offset wraps to the (empty) start of the file
    sparse = torch.from_file(str(tmp_path / "sparse"), shared=True, size=2**32 + 64, dtype=torch.float16)
    strides = (2**30, 1) if axis == "batch" else (0, 2**30)
    tensors[0] = sparse.as_strided(tensors[0].shape, strides, storage_offset=2**31).copy_(tensors[0])
    exact = with_gradients(double(tensors))
    tensors[1:] = with_gradients(tensors[1:])
    found, expected = fused(tensors, stem), plain(exact, stem)
    assert relative_error(found, expected) <= BOUNDS[torch.float16]
    found.sum().backward()
    expected.sum().backward()
    assert relative_error(tensors[1].grad, exact[1].grad) <= BOUNDS[torch.float16]


@needs_kernel
@pytest.mark.parametrize("wanted", range(4))
def test_one_gradient_alone(wanted: int) -> None:
    tensors = with_gradients(PAPER.tensors(2, 61))
    fused(tensors, PAPER).square().sum().backward()
    alone = PAPER.tensors(2, 61)
    alone[wanted].requires_grad_()
    fused(alone, PAPER).square().sum().backward()
    assert torch.equal(alone[wanted].grad, tensors[wanted].grad)
    assert [tensor.grad is None for tensor in alone] == [number != wanted for number in range(4)]


@needs_kernel
def test_gradients_are_the_same_bits_each_time() -> None:
    once, again = with_gradients(PAPER.tensors(3, 301)), with_gradients(PAPER.tensors(3, 301))
    for tensors in (once, again):
        fused(tensors, PAPER).square().sum().backward()
    assert all(torch.equal(one.grad, other.grad) for one, other in zip(once, again, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type != "cuda", reason="only a GPU chooses between configurations")
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("stem", RESNET, ids=str)
def test_tuned_configuration_agrees_with_the_first(stem: Stem, dtype: torch.dtype) -> None:
    tuned, first = (with_gradients(stem.tensors(64, 3041, dtype)) for _ in range(2))
    for tensors, deterministic in ((tuned, False), (first, True)):
        fused(tensors, stem, deterministic).square().mean().backward()
    for one, other in zip(tuned, first, strict=True):
        assert relative_error(one.grad, other.grad.double().cpu()) <= BOUNDS[dtype]


@needs_kernel
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_input_with_gaps(dtype: torch.dtype) -> None:
    stem = OTHERS[0]
    tensors = stem.tensors(3, 122, dtype)
    tensors[0] = tensors[0][:, ::2]
    assert relative_error(fused(tensors, stem), plain(double(tensors), stem)) <= BOUNDS[dtype]


@needs_kernel
def test_points_of_the_windows_are_kept_only_for_a_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    run = op.launch.run_forward

    def spy(arguments: dict, deterministic: bool) -> None:
        kept.append(arguments["chosen_ptr"] is not None)
        run(arguments, deterministic)

    monkeypatch.setattr(op.launch, "run_forward", spy)
    tensors = with_gradients(PAPER.tensors(1, 61))
    fused(tensors, PAPER)
    with torch.no_grad():
        fused(tensors, PAPER)
    fused(PAPER.tensors(1, 61), PAPER)
    assert kept == [True, False, False]


@needs_kernel
def test_second_derivatives_are_refused() -> None:
    tensors = PAPER.tensors(1, 61)
    tensors[1].requires_grad_()
    out = fused(tensors, PAPER).square().sum()
    (slope,) = torch.autograd.grad(out, tensors[1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@needs_kernel
@pytest.mark.parametrize("stem", RESNET, ids=str)
def test_opcheck(stem: Stem) -> None:
    tensors = with_gradients(stem.tensors(2, 41))
    options = stem.pool, EPS, stem.dropout, True
    inputs = *tensors, seed_of(stem), *options
    torch.library.opcheck(op.stem_norm_pool_forward, (*inputs, stem.pool > 1))
    out, chosen = op.stem_norm_pool_forward(*inputs, stem.pool > 1)
    detached = [tensor.detach() for tensor in tensors]
    for wanted in (True, False):
        saved = *detached, seed_of(stem), chosen
        inputs = torch.ones_like(out), *saved, *options, wanted
        torch.library.opcheck(op.stem_norm_pool_backward, inputs)


@needs_kernel
@pytest.mark.parametrize("stem", RESNET, ids=str)
def test_torch_compile_sees_one_graph(stem: Stem) -> None:
    tensors, again = with_gradients(stem.tensors(2, 61)), with_gradients(stem.tensors(2, 61))
    compiled = torch.compile(op.stem_norm_pool, backend="aot_eager", fullgraph=True)
    options = seed_of(stem), stem.pool, EPS, stem.dropout, True
    found, expected = compiled(*tensors, *options), fused(again, stem)
    assert torch.equal(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    assert all(torch.equal(one.grad, other.grad) for one, other in zip(tensors, again, strict=True))


@needs_kernel
def test_no_patterns() -> None:
    tensors = with_gradients(PAPER.tensors(0, 61))
    found = fused(tensors, PAPER)
    assert found.shape == (0, 7, 32)
    found.sum().backward()
    assert not any(tensor.grad.any() for tensor in tensors)


@needs_kernel
@pytest.mark.parametrize(
    ("stem", "length", "dtype", "message"),
    [
        (Stem("too wide", channels=257), 61, torch.float32, "at most 256"),
        (Stem("too short"), 12, torch.float32, "13 taps do not fit 12 points"),
        (Stem("pool too wide", 256), 61, torch.float32, "at most 255"),
        (Stem("no pool that is", -1), 61, torch.float32, "not -1"),
        (Stem("double"), 61, torch.float64, "float64"),
        (Stem("all lost", dropout=1.0), 61, torch.float32, "in \\[0, 1\\)"),
    ],
    ids=str,
)
def test_refuses_what_it_cannot_compute(stem: Stem, length: int, dtype: torch.dtype, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fused(stem.tensors(2, length, dtype), stem)


@needs_kernel
def test_refuses_tensors_that_do_not_fit() -> None:
    x_BL, weight, scale, shift = PAPER.tensors(2, 61)
    options = 7, EPS, 0.0, True
    with pytest.raises(ValueError, match="norm_bias must be"):
        op.stem_norm_pool(x_BL, weight, scale, shift[1:], None, *options)
    with pytest.raises(ValueError, match="do not fit"):
        op.stem_norm_pool(x_BL[None], weight, scale, shift, None, *options)
    with pytest.raises(ValueError, match="dtypes must be one"):
        op.stem_norm_pool(x_BL, weight.half(), scale, shift, None, *options)
    with pytest.raises(ValueError, match="needs a seed"):
        op.stem_norm_pool(x_BL, weight, scale, shift, None, 7, EPS, 0.1, True)


def test_reference_works_without_triton() -> None:
    script = """
import sys
sys.modules["triton"] = None
import torch
from hxrd.kernels import stem_norm_pool as op
tensors = torch.ones(2, 61), torch.ones(4, 1, 13), torch.ones(4), torch.zeros(4)
print(tuple(op.reference(*tensors, pool=7).shape))
try:
    op.stem_norm_pool(*tensors, None, 7, 1e-5, 0.0, True)
except ValueError as error:
    print(error)
"""
    printed = run_python("-c", script)
    assert printed.startswith("(2, 7, 4)\nstem_norm_pool: triton cannot be imported")
