"""What only a CUDA device can show: graphs, compilation, addresses beyond 32 bits, mixed precision."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from hxrd.kernels import dispatch
from hxrd.kernels.dropout import keep_mask
from hxrd.models.generator import LATENT_POINTS, Generator
from hxrd.models.resnet1d import ResNet1D

DEVICE = torch.device("cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 5e-2}  # of a whole network


@pytest.fixture(autouse=True)
def exact_float32():
    """Keep the reference's float32 from being rounded to TF32 (monkeypatch cannot put this back)."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    yield
    cudnn.allow_tf32, matmul.allow_tf32 = before


def network(variant="paper", backend="triton", dropout=0.0):
    torch.manual_seed(0)
    return ResNet1D(14, variant, dropout, backend=backend).to(DEVICE)


def patterns(n, n_points=3041):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, 1, n_points, generator=generator).to(DEVICE)


def relative_error(found, expected):
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def gradients(model):
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def backward(model, x_B1L, dtype=torch.float32):
    model.zero_grad(set_to_none=True)
    labels = torch.arange(len(x_B1L), device=DEVICE) % 14
    with torch.autocast(DEVICE.type, dtype, enabled=dtype != torch.float32):
        logits = model(x_B1L)
    loss = functional.cross_entropy(logits.float(), labels)
    loss.backward()
    return loss.detach()


def test_cuda_tensors_take_triton():
    assert dispatch.choose(DEVICE).backend == "triton"


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("n_points", [3041, 3042])
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_network_equals_the_reference(variant, n_points, dtype):
    x_B1L = patterns(7, n_points)
    with torch.no_grad():
        expected = network(variant, "reference").eval().double()(x_B1L.double())
        found = network(variant).eval().to(dtype)(x_B1L.to(dtype))
    assert found.dtype == dtype
    assert relative_error(found, expected) <= BOUNDS[dtype]


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_gradients_equal_the_reference(variant, dtype):
    ours, reference = network(variant).train(), network(variant, "reference").train()
    backward(ours, patterns(7), dtype)
    backward(reference, patterns(7))
    assert relative_error(gradients(ours), gradients(reference)) <= BOUNDS[dtype]


def test_half_precision_with_a_scaled_loss():
    ours, reference = network().train(), network(backend="reference").train()
    scaler = torch.amp.GradScaler(DEVICE.type, init_scale=2.0**8)
    optimizer = torch.optim.SGD(ours.parameters(), 0.0)
    with torch.autocast(DEVICE.type, torch.float16):
        logits = ours(patterns(7))
    scaler.scale(functional.cross_entropy(logits.float(), torch.arange(7, device=DEVICE))).backward()
    scaler.unscale_(optimizer)
    backward(reference, patterns(7))
    assert relative_error(gradients(ours), gradients(reference)) <= 5e-2


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_compiled_network_is_one_graph_and_equal(dtype, mode):
    model = network().train()
    x_B1L = patterns(5)
    expected_loss = backward(model, x_B1L, dtype)
    expected = gradients(model)
    compiled = torch.compile(model, fullgraph=True, mode=mode)
    for _ in range(3):  # reduce-overhead records a CUDA graph at the second call and replays it at the third
        loss = backward(compiled, x_B1L, dtype)
    assert relative_error(loss, expected_loss) <= BOUNDS[dtype] / 10
    assert relative_error(gradients(model), expected) <= BOUNDS[dtype]


def captured(call):
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()
    return graph, result


def test_cuda_graph_of_the_forward_pass():
    model = network().eval()
    x_B1L = patterns(5)

    def call():
        with torch.inference_mode():
            return model(x_B1L)

    graph, logits = captured(call)
    x_B1L.copy_(x_B1L.flip(0))
    graph.replay()
    assert torch.equal(logits, call())


def test_cuda_graph_of_a_training_step_draws_new_masks():
    model = network(dropout=0.3).train()
    graph, loss = captured(lambda: backward(model, patterns(5)))
    found = []
    for _ in range(4):
        graph.replay()
        found.append(float(loss))
    assert len(set(found)) == 4


@pytest.mark.parametrize("dropout", [0.05, 0.1, 0.5])
def test_masks_are_those_of_the_definition(dropout):
    """A weight that copies one channel shows the mask where LayerNorm maps zero to its own value."""
    seed = torch.tensor([12345], device=DEVICE)
    x_BLC = torch.rand(3, 50, 32, device=DEVICE) + 1
    weight = torch.eye(32, device=DEVICE)[:, :, None].contiguous()
    tensors = x_BLC, weight, torch.ones(32, device=DEVICE), torch.zeros(32, device=DEVICE)
    y_BLC = dispatch.conv_norm_gelu(*tensors, gelu=False, dropout=dropout, seed=seed, backend="triton")
    kept = keep_mask(seed, (3, 50, 32), dropout)
    some_lost = ~kept.all(dim=2, keepdim=True) & (kept.sum(dim=2, keepdim=True) > 0)
    lowest = y_BLC == y_BLC.amin(dim=2, keepdim=True)  # inputs are above zero, so a lost one is the least
    assert torch.equal((lowest & some_lost), (~kept & some_lost))
    assert abs(float((~kept).float().mean()) - dropout) < 0.03


def test_deterministic_on_request():
    model = network(dropout=0.1).train()
    found = []
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        for _ in range(3):
            torch.manual_seed(4)
            backward(model, patterns(64))
            found.append(gradients(model).clone())
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def need_memory(n_bytes):
    if torch.cuda.mem_get_info()[0] < n_bytes:
        pytest.skip(f"needs {n_bytes / 2**30:.0f} GiB of free memory on the device")


def test_convolution_beyond_32_bit_addresses():
    need_memory(12 * 2**30)
    batch = 2**31 // (433 * 32) + 8  # more than 2**31 numbers in
    x_BLC = torch.empty(batch, 433, 32, dtype=torch.bfloat16, device=DEVICE)
    x_BLC.copy_(torch.randn(433, 32, device=DEVICE))
    x_BLC[-1].normal_()
    weight = torch.randn(32, 32, 5, device=DEVICE).bfloat16() / 13
    affine = torch.rand(32, device=DEVICE), torch.rand(32, device=DEVICE)
    options = {"stride": 4, "padding": 2}
    found = dispatch.conv_norm_gelu(x_BLC, weight, *affine, **options, backend="triton")
    for place in (0, batch // 2, batch - 1):
        some = (tensor.double() for tensor in (x_BLC[place : place + 1], weight, *affine))
        expected = dispatch.conv_norm_gelu(*some, **options, backend="reference")
        assert relative_error(found[place], expected[0]) <= 1e-2


def test_stem_beyond_32_bit_addresses():
    need_memory(12 * 2**30)
    batch = 2**31 // (3029 * 32) + 8  # more than 2**31 numbers out
    x_BL = torch.rand(batch, 3041, device=DEVICE).bfloat16()
    weight = torch.randn(32, 1, 13, device=DEVICE).bfloat16() / 4
    affine = torch.rand(32, device=DEVICE), torch.rand(32, device=DEVICE)
    found = dispatch.stem_norm_pool(x_BL, weight, *affine, pool=None, backend="triton")
    for place in (0, batch // 2, batch - 1):
        some = (tensor.double() for tensor in (x_BL[place : place + 1], weight, *affine))
        expected = dispatch.stem_norm_pool(*some, pool=None, backend="reference")
        assert relative_error(found[place], expected[0]) <= 1e-2


def test_distributed_training_averages_our_gradients(tmp_path):
    """One process suffices to see that the hooks of DistributedDataParallel meet our operators."""
    torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        alone = network().train()
        wrapped = nn.parallel.DistributedDataParallel(copy.deepcopy(alone), device_ids=[0])
        backward(alone, patterns(5))
        backward(wrapped, patterns(5))
        assert relative_error(gradients(wrapped), gradients(alone)) <= 1e-5
    finally:
        torch.distributed.destroy_process_group()


def test_memory_of_a_training_step_is_less_than_the_references():
    def peak(backend):
        model = network(backend=backend, dropout=0.1).train()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        backward(model, patterns(256), torch.bfloat16)
        return torch.cuda.max_memory_allocated() - before

    peak("triton")  # the tuning of the first call
    assert peak("triton") < 0.7 * peak("reference")


def test_folded_generator_on_the_device():
    torch.manual_seed(0)
    generator = Generator().to(DEVICE)
    generator(torch.randn(8, 1, LATENT_POINTS, device=DEVICE))
    generator.eval()
    z_B1Z = torch.randn(4, 1, LATENT_POINTS, device=DEVICE)
    with torch.no_grad():
        assert torch.allclose(generator.folded()(z_B1Z), generator(z_B1Z), atol=1e-5)


def test_classifying_gives_the_ranks_of_the_cpu(request, tmp_path):
    """The whole command, on both devices."""
    for package in ("zarr", "gemmi", "msgspec", "pyarrow"):
        pytest.importorskip(package, reason=f"archives and the command line need {package}")
    request.getfixturevalue("bundled")
    import numpy as np
    import pyarrow.parquet as pq
    from classified import make_archive, make_patterns

    from hxrd.cli.main import main

    archive = make_archive(tmp_path / "some.zarr", make_patterns(40))
    tables = {}
    for device in ("cpu", "cuda"):
        output = tmp_path / f"{device}.parquet"
        command = ["classify", str(archive), "-o", str(output), "-q", "--device", device]
        assert main([*command, "--precision", "fp32"]) == 0
        tables[device] = pq.read_table(output)
    for column in ("space_group_1", "bravais_lattice"):
        assert tables["cuda"][column].to_pylist() == tables["cpu"][column].to_pylist()
    probabilities = [tables[device]["probability_1"].to_numpy() for device in ("cpu", "cuda")]
    assert np.allclose(*probabilities, atol=1e-3)
