"""A model as an ONNX graph, written node by node from its weights: no torch, no tracing.

Input ``patterns`` (batch, 1, n_points), float32: what the network itself sees, that is patterns on the
model's grid, prepared as `hxrd.models.preprocess` does and after the model's transform and offset
(`hxrd.models.registry.network_input`). Output ``logits`` (batch, n_classes), before the temperature. The
batch is dynamic.
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from hxrd import __version__
from hxrd.errors import HxrdError
from hxrd.models.layout import STAGES, pool_of
from hxrd.models.registry import METADATA_KEY

if TYPE_CHECKING:
    from onnx import ModelProto

    from hxrd.models.registry import LoadedModel, ModelMetadata

INPUT, OUTPUT = "patterns", "logits"
OPSET = 20  # the first with Gelu
IR_VERSION = 9  # the one that came with that opset
EPSILON = 1e-5  # of the LayerNorms


def export_onnx(loaded: "LoadedModel", path: str | Path, *, force: bool = False) -> None:
    """Write a model as an ONNX file, first as ``NAME.part``, then renamed.

    Parameters
    ----------
    loaded : LoadedModel
        The model.
    path : str or Path
        The file.
    force : bool
        Overwrite an existing file.

    Raises
    ------
    HxrdError
        The file exists and `force` is False, or the package onnx is not installed.
    """
    path = Path(path)
    if path.exists() and not force:
        raise HxrdError(f"{path} exists; give another name, or --force to overwrite it")
    content = onnx_model(loaded).SerializeToString()
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(content)
    os.replace(part, path)


def onnx_model(loaded: "LoadedModel", *, planar: bool = True) -> "ModelProto":
    """Return a model as a checked ONNX graph.

    Parameters
    ----------
    loaded : LoadedModel
        The model.
    planar : bool
        Convolve in two dimensions of which one has length 1. onnxruntime's blocked convolutions know two
        dimensions only and run this half as quick again; OpenVINO is quicker by as much without.

    Returns
    -------
    ModelProto
        With the model's metadata under ``hxrd``, as in its own file, and its sha256.

    Raises
    ------
    HxrdError
        The package onnx is not installed.
    """
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise HxrdError(
            "an ONNX graph needs the package onnx, which is not installed: pip install 'hxrd[onnx]'"
        ) from error
    metadata = loaded.metadata
    nodes = _Nodes(planar)
    _network(nodes, loaded)
    graph = onnx.helper.make_graph(
        nodes.made,
        metadata.name,
        [_value(INPUT, ["batch", 1, metadata.n_points], _input_in_words(metadata))],
        [_value(OUTPUT, ["batch", metadata.n_classes], f"before division by {metadata.temperature:g}")],
        list(nodes.constants.values()),
    )
    model = onnx.helper.make_model(
        graph,
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="hxrd",
        producer_version=__version__,
        doc_string=f"{_input_in_words(metadata)} Classes and all else: metadata entry {METADATA_KEY!r}.",
    )
    properties = {
        METADATA_KEY: json.dumps(msgspec.to_builtins(metadata), ensure_ascii=False),
        "model_sha256": loaded.sha256,
    }
    onnx.helper.set_model_props(model, properties)
    onnx.checker.check_model(model, full_check=True)
    return model


def _value(name: str, shape: list[str | int], words: str) -> Any:
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape, doc_string=words)


def _input_in_words(metadata: "ModelMetadata") -> str:
    start, stop, step = metadata.grid
    prepared = "background removed, " if metadata.preprocessing == "background" else ""
    transform = "square root taken, " if metadata.input_transform == "sqrt" else ""
    offset = f"{metadata.input_offset:g} added, " if metadata.input_offset else ""
    return (
        f"{metadata.probe} powder patterns at {metadata.wavelength:.6g} Å, 2θ {start:g} to {stop:g} by "
        f"{step:g} degrees: {prepared}divided by the maximum, {transform}{offset}float32."
    )


def _network(nodes: "_Nodes", loaded: "LoadedModel") -> None:
    """Add all nodes: convolutions want their channels first, LayerNorms last, and the rest takes either."""
    weights = loaded.weights
    x = nodes.opened(INPUT)
    x = nodes.channels_first(nodes.add("Gelu", [nodes.conv_norm("resnet.conv", weights, x)]))
    if (pool := pool_of(loaded.metadata.variant)) is not None:
        x = nodes.add("MaxPool", [x], **nodes.window(pool, pool, pool // 2))
    for number, (_, kernel, stride) in enumerate(STAGES, start=1):
        for block in range(2):
            name = f"resnet.layer{number}.{block}"
            step = stride if block == 0 else 1
            y = nodes.conv_norm(f"{name}.conv1", weights, x, step, kernel // 2)
            y = nodes.channels_first(nodes.add("Gelu", [y]))
            y = nodes.conv_norm(f"{name}.conv2", weights, y, 1, kernel // 2)
            shortcut = nodes.conv_norm(f"{name}.downsample", weights, x, step)
            x = nodes.channels_first(nodes.add("Gelu", [nodes.add("Add", [y, shortcut])]))
    nodes.head(x, weights)


class _Nodes:
    """Nodes and constants of a graph in the making."""

    def __init__(self, planar: bool):
        self.planar = planar
        self.made: list[Any] = []
        self.constants: dict[str, Any] = {}

    def add(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        from onnx import helper

        name = f"{kind}_{len(self.made)}"
        self.made.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, values: NDArray[Any]) -> str:
        from onnx import numpy_helper

        self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)
        return name

    def opened(self, x: str) -> str:
        """Give the input the dimensions that the convolutions want."""
        return self.add("Unsqueeze", [x, self.constant("height", np.array([2]))]) if self.planar else x

    def channels_first(self, x: str) -> str:
        return self.add("Transpose", [x], perm=[0, 3, 1, 2] if self.planar else [0, 2, 1])

    def channels_last(self, x: str) -> str:
        return self.add("Transpose", [x], perm=[0, 2, 3, 1] if self.planar else [0, 2, 1])

    def window(self, size: int, stride: int, padding: int) -> dict[str, list[int]]:
        if self.planar:
            return {"kernel_shape": [1, size], "strides": [1, stride], "pads": [0, padding, 0, padding]}
        return {"kernel_shape": [size], "strides": [stride], "pads": [padding, padding]}

    def conv_norm(self, name: str, weights: Any, x: str, stride: int = 1, padding: int = 0) -> str:
        """Convolution, then LayerNorm over the channels, which stay last."""
        kernel = weights[f"{name}.conv.weight"]
        shaped = kernel[:, :, None] if self.planar else kernel
        window = self.window(kernel.shape[2], stride, padding)
        y = self.add("Conv", [x, self.constant(f"{name}.conv.weight", shaped)], **window)
        affine = [f"{name}.layer_norm.weight", f"{name}.layer_norm.bias"]
        norm = [self.channels_last(y), *(self.constant(key, weights[key]) for key in affine)]
        return self.add("LayerNormalization", norm, axis=-1, epsilon=EPSILON)

    def head(self, x: str, weights: Any) -> None:
        """Maximum over the positions, then the linear layer."""
        from onnx import helper

        positions = self.constant("positions", np.array([2, 3] if self.planar else [2]))
        features = self.add("ReduceMax", [x, positions], keepdims=0)
        linear = [self.constant(key, weights[key]) for key in ("classifier.weight", "classifier.bias")]
        self.made.append(helper.make_node("Gemm", [features, *linear], [OUTPUT], name=OUTPUT, transB=1))
