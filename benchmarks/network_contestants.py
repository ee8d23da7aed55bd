"""Ways to run the same network, forward and in training: ours, and torch's own, eager and compiled.

Shape suffixes: B batch, L positions along the pattern, K classes.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from plain_network import PlainNetwork
from torch import Tensor, nn
from torch.nn import functional

import hxrd.models
from hxrd.models.layout import Variant
from hxrd.models.resnet1d import ResNet1D

BUNDLED = "neutron-clean.safetensors"
LAYOUTS = ("channels-first", "channels-last")
DISTINCT = 4096  # patterns; a larger batch repeats them
BOUNDS = {torch.bfloat16: 5e-2, torch.float32: 1e-3}  # relative Frobenius, of logits and of gradients
Step = Callable[[], Tensor]


@dataclass(frozen=True)
class Setting:
    """What all contestants share.

    Parameters
    ----------
    device : torch.device
    dtype : torch.dtype
        Of weights and activations in the forward pass, of autocast in training.
    variant : {"paper", "released"}
    n_points : int
    backend : str
        Of our kernels.
    compile_options : dict
        Of `torch.compile`, for ours and the others alike.
    """

    device: torch.device
    dtype: torch.dtype
    variant: Variant
    n_points: int
    backend: str
    compile_options: dict[str, Any]

    def model(self, dropout: float = 0.0) -> ResNet1D:
        """Return the network on the device in float32, with the bundled weights: both variants have them."""
        from safetensors.torch import load_file

        weights = load_file(Path(hxrd.models.__file__).parent / "weights" / BUNDLED)
        n_classes = len(weights["classifier.weight"])
        model = ResNet1D(n_classes, self.variant, dropout, backend=self.backend)
        model.load_state_dict(weights)
        return model.float().to(self.device)

    def classifier(self) -> ResNet1D:
        """Return the network for inference: in its dtype on a GPU, for autocast on a CPU."""
        model = self.model().eval()
        return model.to(self.dtype) if self.device.type == "cuda" else model

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Run without gradients; on a CPU under autocast, which is how low precision is asked for there."""
        low = self.device.type == "cpu" and self.dtype != torch.float32
        with torch.inference_mode(), torch.autocast("cpu", self.dtype, enabled=low):
            yield

    def patterns(self, n: int) -> Tensor:
        """Return n patterns of Gaussian peaks, largest intensity 1, float32, shape (n, 1, n_points)."""
        generator = torch.Generator().manual_seed(5)
        distinct = min(n, DISTINCT)
        peaks = torch.rand(distinct, 1, self.n_points, generator=generator)
        heights = torch.rand(distinct, 1, self.n_points, generator=generator) ** 4
        sticks = torch.where(peaks < 0.02, heights, 0).to(self.device)
        offsets = torch.arange(-15, 16, device=self.device)
        profile = torch.exp(-0.5 * (offsets / 5.0) ** 2)[None, None]
        x_B1L = functional.conv1d(sticks, profile, padding=15)
        x_B1L = x_B1L / x_B1L.amax(dim=2, keepdim=True).clamp_min(1e-6)
        return x_B1L.repeat(-(-n // distinct), 1, 1)[:n]


@contextmanager
def exact_float32() -> Iterator[None]:
    """Keep CUDA libraries from rounding float32 to TF32."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def forward_calls(setting: Setting, x_B1L: Tensor, compiled: bool) -> dict[str, Step]:
    """Return calls that give logits of `x_B1L`, by name; some compile at their first call."""
    ours = setting.classifier()
    x_B1L = x_B1L.to(ours.classifier.weight.dtype)
    networks: dict[str, nn.Module] = {f"eager {layout}": PlainNetwork(ours, layout) for layout in LAYOUTS}
    networks["ours"] = ours
    calls: dict[str, Step] = {name: _inference(setting, network, x_B1L) for name, network in networks.items()}
    if setting.device.type == "cuda":
        calls["ours, CUDA graph"] = replayed(calls["ours"])
    if compiled:
        for name, network in networks.items():
            fast = torch.compile(network, **setting.compile_options)
            calls[_compiled_name(name)] = _inference(setting, fast, x_B1L)
    return calls


def _compiled_name(name: str) -> str:
    return name.replace("eager", "compiled") if "eager" in name else f"{name}, compiled"


def _inference(setting: Setting, network: Callable[[Tensor], Tensor], x_B1L: Tensor) -> Step:
    def call() -> Tensor:
        with setting.inference():
            return network(x_B1L)

    return call


def replayed(call: Callable[[], Any], repeats: int = 1) -> Callable[[], Any]:
    """Capture calls in a CUDA graph, after a warm-up on another stream; return what replays it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            captured = call()

    def replay() -> Any:
        graph.replay()
        return captured

    return replay


def training_steps(
    setting: Setting, x_B1L: Tensor, labels_B: Tensor, dropout: float, compiled: bool
) -> dict[str, Step]:
    """Return calls that do one step of AdamW, by name; each has a model of its own."""
    start = setting.model(dropout).train()

    def network(kind: str) -> nn.Module:
        model = copy.deepcopy(start)
        return model if kind == "ours" else PlainNetwork(model, kind.removeprefix("eager "))  # type: ignore[arg-type]

    kinds = [*(f"eager {layout}" for layout in LAYOUTS), "ours"]
    steps = {kind: _training_step(setting, network(kind), x_B1L, labels_B) for kind in kinds}
    if setting.device.type == "cuda":
        steps["ours, CUDA graph"] = replayed(
            _training_step(setting, network("ours"), x_B1L, labels_B, for_graph=True)
        )
    if compiled:
        for kind in kinds:
            fast = torch.compile(network(kind), **setting.compile_options)
            steps[_compiled_name(kind)] = _training_step(setting, fast, x_B1L, labels_B)
    return steps


def _training_step(
    setting: Setting, network: Any, x_B1L: Tensor, labels_B: Tensor, for_graph: bool = False
) -> Step:
    on_gpu = setting.device.type == "cuda"
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4, fused=on_gpu, capturable=for_graph)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(setting, network, x_B1L, labels_B)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def loss_of(setting: Setting, network: Any, x_B1L: Tensor, labels_B: Tensor) -> Tensor:
    """Return the cross entropy, the network under autocast where the dtype is not float32."""
    low = setting.dtype != torch.float32
    with torch.autocast(setting.device.type, setting.dtype, enabled=low):
        logits_BK = network(x_B1L)
    return functional.cross_entropy(logits_BK.float(), labels_B)


def gradient_error(setting: Setting, x_B1L: Tensor, labels_B: Tensor) -> float:
    """Return how far our gradients, without dropout, are from torch's own in float32 (`relative_error`)."""
    ours = setting.model().train()
    plain = PlainNetwork(copy.deepcopy(ours), "channels-first")
    loss_of(setting, ours, x_B1L, labels_B).backward()
    with exact_float32():
        functional.cross_entropy(plain(x_B1L), labels_B).backward()
    found, expected = (
        torch.cat([parameter.grad.double().flatten() for parameter in network.parameters()])
        for network in (ours, plain.model)
    )
    return relative_error(found, expected)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return ‖found − expected‖/‖expected‖ in float64."""
    expected = expected.double()
    return float((found.double() - expected).norm() / expected.norm())
