"""Quantise the layers of an OpenVINO file to INT8 with NNCF, and measure what each loses by it.

NNCF writes a FakeQuantize before the chosen layers and their weights in 8 bits. Weights have a
scale for each output channel, activations one for the tensor.
"""

import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from backbones.errors import InputError
from backbones.openmmlab.export.files import LAYERS
from backbones.openmmlab.prediction.exported import RT_INFO, as_texts

from .layers import Layer, Quantizer, has_narrow_weights, quantisable

KINDS = {"MatMul": "linear", "Convolution": "convolution"}  # a depthwise one has another type
WITHOUT_BIAS = "/WithoutBiases"  # what OpenVINO adds to the name of an ONNX node with a bias


class OpenvinoQuantizer(Quantizer):
    """Quantise OpenVINO's IR that `convnext export` wrote.

    Args:
        path: the file, in float32.
        kept, backbone: as of `quantisable`.

    Raises:
        InputError: the file does not name its layers.
    """

    def __init__(self, path: Path, kept: re.Pattern[str], backbone: str):
        import openvino

        self.path = path
        self.model: Any = openvino.Core().read_model(path)
        if not self.model.has_rt_info([RT_INFO, LAYERS]):
            raise InputError(
                f"{path}: was not written by this version of `convnext export`; export it",
                code="broken-file",
                where=path,
            )
        self.layers = quantisable(_weighted(self.model), kept, backbone)
        self.narrow = has_narrow_weights()
        self._inputs: list[np.ndarray] = []

    def calibrate(self, inputs: Iterable[np.ndarray], folder: Path) -> None:
        self._inputs = list(inputs)  # NNCF measures on them for every file

    def write(self, layers: Sequence[Layer], path: Path, metadata: Mapping[str, object]) -> None:
        import openvino

        model = self._quantized(layers)
        for key, text in as_texts(metadata).items():
            model.set_rt_info(text, [RT_INFO, key])
        openvino.save_model(model, path, compress_to_fp16=False)

    def sensitivities(self, inputs: Iterable[np.ndarray]) -> dict[Layer, float]:
        import openvino

        precise = {"INFERENCE_PRECISION_HINT": "f32"}
        run = openvino.Core().compile_model(self._with_twins(), "CPU", precise)
        total = np.zeros(2 * len(self.layers))
        for image in inputs:
            found = run([image])
            total += np.array([float(found[i]) for i in range(len(total))])
        errors = np.sqrt(total[::2] / np.maximum(total[1::2], 1e-30))
        return dict(zip(self.layers, errors.tolist(), strict=True))

    def _quantized(self, layers: Sequence[Layer]) -> Any:
        nncf: Any = import_module("nncf")
        fix: Any = import_module("nncf.quantization.advanced_parameters").OverflowFix
        chosen = {layer.node for layer in layers}
        names = [op.get_friendly_name() for op in self.model.get_ops()]
        nncf.set_log_level("ERROR")
        with redirect_stdout(io.StringIO()):  # bars of progress
            return nncf.quantize(
                self.model.clone(),
                nncf.Dataset(self._inputs),
                preset=nncf.QuantizationPreset.MIXED,
                target_device=nncf.TargetDevice.CPU,
                subset_size=len(self._inputs),
                ignored_scope=nncf.IgnoredScope(
                    names=[name for name in names if name not in chosen], validate=False
                ),
                advanced_parameters=nncf.AdvancedQuantizationParameters(
                    overflow_fix=fix.ENABLE if self.narrow else fix.DISABLE
                ),
            )

    def _with_twins(self) -> Any:
        """Return the float graph with an INT8 twin beside every layer: its results are both sums
        of squares of each layer.
        """
        from openvino import opset13 as ops
        from openvino.utils.node_factory import NodeFactory

        factory, results = NodeFactory("opset13"), []
        quantized, exact = self._quantized(self.layers), self.model.clone()
        nodes, twins = (
            {op.get_friendly_name(): op for op in model.get_ops()} for model in (exact, quantized)
        )
        weights = _values([twins[layer.node].input_value(1) for layer in self.layers])
        for layer, weight in zip(self.layers, weights, strict=True):
            node, rounding = nodes[layer.node], twins[layer.node].input_value(0).get_node()
            ranges = [ops.constant(rounding.input_value(i).get_node().data) for i in range(1, 5)]
            levels = rounding.get_attributes()["levels"]
            given = ops.fake_quantize(node.input_value(0), *ranges, levels)
            inputs = [given.output(0), ops.constant(weight).output(0)]
            twin = factory.create(node.get_type_name(), inputs, node.get_attributes())
            for outputs in (ops.subtract(node, twin), node):
                squares = ops.multiply(outputs, outputs)
                axes = list(range(squares.get_output_partial_shape(0).rank.get_length()))
                results.append(ops.result(ops.reduce_sum(squares, axes, keep_dims=False)))
        return _model(results, exact.get_parameters())


def _weighted(model: Any) -> list[Layer]:
    """Return the linears and the dense convolutions of a model: products with constant weights."""
    modules = json.loads(str(model.get_rt_info([RT_INFO, LAYERS]).value))
    found = []
    for op in model.get_ordered_ops():
        kind = KINDS.get(op.get_type_name())
        if kind is None or not _is_constant(op.input_value(1).get_node()):
            continue
        if set(op.input_value(1).get_shape()[2:]) == {1}:
            kind = "linear"  # as `use_convolutions` writes those of blocks
        node = op.get_friendly_name()
        known = node.removesuffix(WITHOUT_BIAS)
        found.append(Layer(node, modules.get(known, known), kind))
    return found


def _is_constant(node: Any) -> bool:
    """Return whether a node's value is stored in the file, as it is or in half precision."""
    if node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    return node.get_type_name() == "Constant"


def _values(outputs: Sequence[Any]) -> list[np.ndarray]:
    """Return the values of outputs that depend on no input."""
    import openvino
    from openvino import opset13 as ops

    model = _model([ops.result(output) for output in outputs], [])
    found = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([])
    return [np.array(found[i]) for i in range(len(outputs))]


def _model(results: Sequence[Any], parameters: Sequence[Any]) -> Any:
    """Return a model of these results and parameters."""
    import openvino

    model: Any = openvino.Model  # its type does not name the constructor
    return model(results, parameters, "model")
