"""Which kernels run, and why."""

import sys

import pytest
import torch

from hxrd.kernels import conv_norm_gelu as conv
from hxrd.kernels import dispatch

needs_triton = pytest.mark.skipif(bool(conv.TRITON_MISSING), reason=conv.TRITON_MISSING or "triton is here")
WEIGHTS = torch.ones(32, 16, 3), torch.ones(32), torch.zeros(32)


def test_each_device_has_its_kernels() -> None:
    assert dispatch.choose("cpu") == dispatch.Choice("compiled", "CPU tensors, vector code by LLVM")
    assert dispatch.choose("meta").backend == "reference"
    assert dispatch.choose("cpu", "reference") == dispatch.Choice("reference", "asked for")
    assert dispatch.choose("cpu", "compiled") == dispatch.Choice("compiled", "asked for")
    assert dispatch.describe("cpu") == "compiled (CPU tensors, vector code by LLVM)"


def test_an_unknown_backend_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'cuda': choose one of auto, triton, compiled, reference"):
        dispatch.choose("cpu", "cuda")


def test_cuda_takes_triton_where_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch.conv, "unavailable", lambda device: "")
    assert dispatch.choose("cuda").backend == "triton"
    monkeypatch.setattr(dispatch.conv, "unavailable", lambda device: "triton cannot be imported (none)")
    assert dispatch.describe("cuda") == "reference (triton cannot be imported (none))"
    with pytest.raises(RuntimeError, match="cannot be imported"):
        dispatch.choose("cuda", "triton")
    with pytest.raises(RuntimeError, match="cuda tensor"):
        dispatch.choose("cuda", "compiled")


def test_without_a_compiler_the_reference_runs_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from numba import config

    monkeypatch.setattr(config, "DISABLE_JIT", 1)
    assert dispatch.describe("cpu") == "reference (NUMBA_DISABLE_JIT is set)"
    monkeypatch.delattr("hxrd.kernels.cpu_layers")
    monkeypatch.setitem(sys.modules, "hxrd.kernels.cpu_layers", None)
    assert dispatch.choose("cpu").backend == "reference"
    assert dispatch.choose("cpu").reason.startswith("numba cannot be imported")


def test_channels_that_fill_no_panel_are_left_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(dispatch.conv, "reference", lambda x, *others: called.append("reference") or x)
    dispatch.conv_norm_gelu(torch.ones(1, 9, 24), torch.ones(24, 24, 3), torch.ones(24), torch.zeros(24))
    assert called == ["reference"]


@pytest.mark.parametrize("backend", ["reference", "compiled"])
def test_dropout_wants_a_seed_and_a_probability(backend: str) -> None:
    x_BLC = torch.ones(1, 9, 16)
    with pytest.raises(ValueError, match="needs a seed"):
        dispatch.conv_norm_gelu(x_BLC, *WEIGHTS, dropout=0.5, backend=backend)
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        dispatch.conv_norm_gelu(x_BLC, *WEIGHTS, dropout=1.0, seed=torch.tensor([1]), backend=backend)


def test_autocast_casts_for_the_reference_and_not_for_compiled_code() -> None:
    x_BLC, weights = torch.rand(2, 9, 32), (torch.rand(32, 32, 3), torch.ones(32), torch.zeros(32))
    with torch.autocast("cpu", torch.bfloat16):
        assert dispatch.conv_norm_gelu(x_BLC, *weights, backend="reference").dtype == torch.bfloat16
        assert dispatch.conv_norm_gelu(x_BLC, *weights, backend="compiled").dtype == torch.float32


@pytest.mark.parametrize("backend", ["aot_eager", "eager"])
def test_torch_compile_sees_one_graph(backend: str) -> None:
    x_BLC, weights = torch.rand(2, 9, 32), (torch.rand(32, 32, 3), torch.ones(32), torch.zeros(32))
    compiled = torch.compile(dispatch.conv_norm_gelu, backend=backend, fullgraph=True)
    assert torch.equal(compiled(x_BLC, *weights), dispatch.conv_norm_gelu(x_BLC, *weights))


@needs_triton
def test_triton_insisted_on_says_what_is_missing() -> None:
    from hxrd.kernels.triton_tiles import interpreted

    if interpreted():
        assert dispatch.choose("cpu", "triton") == dispatch.Choice("triton", "asked for")
    else:
        with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"):
            dispatch.choose("cpu", "triton")


UNFIT = {
    "residual of another batch": {"residual": torch.ones(1, 20, 32)},
    "short norm": {"norm_weight": torch.ones(16)},
    "no stride": {"stride": 0},
    "negative padding": {"padding": -1},
    "other channels": {"x_BLC": torch.ones(4, 20, 64)},
    "seed of floats": {"dropout": 0.1, "seed": torch.tensor([1.7])},
}


@pytest.mark.parametrize("backend", ["compiled", "reference"])
@pytest.mark.parametrize("unfit", UNFIT)
def test_tensors_that_do_not_fit_are_refused(unfit: str, backend: str) -> None:
    fitting = {
        "x_BLC": torch.ones(4, 20, 32),
        "weight": torch.ones(32, 32, 3),
        "norm_weight": torch.ones(32),
        "norm_bias": torch.ones(32),
        "padding": 1,
    }
    assert dispatch.conv_norm_gelu(**fitting, backend=backend).shape == (4, 20, 32)
    with pytest.raises(ValueError, match="conv_norm_gelu: "):
        dispatch.conv_norm_gelu(**fitting | UNFIT[unfit], backend=backend)


@pytest.mark.parametrize("backend", ["compiled", "reference"])
@pytest.mark.parametrize(
    ("weight", "norm", "pool"), [((32, 2, 13), 32, 7), ((32, 1, 13), 8, 7), ((32, 1, 13), 32, -1)]
)
def test_a_stem_that_does_not_fit_is_refused(weight: tuple, norm: int, pool: int, backend: str) -> None:
    with pytest.raises(ValueError, match="stem_norm_pool: "):
        dispatch.stem_norm_pool(
            torch.ones(2, 50),
            torch.ones(weight),
            torch.ones(norm),
            torch.ones(norm),
            pool=pool,
            backend=backend,
        )


@pytest.mark.parametrize("backend", ["compiled", "reference"])
def test_a_shortcut_of_another_length_is_refused(backend: str) -> None:
    x_BLC, norm = torch.ones(2, 20, 32), (torch.ones(32), torch.zeros(32))
    weights = torch.ones(32, 32, 5), *norm, torch.ones(32, 32, 1), *norm
    with pytest.raises(ValueError, match="another length"):
        dispatch.conv_norm_pair(x_BLC, *weights, stride=1, padding=1, backend=backend)
