"""Quantise the layers of an ONNX file to INT8, and measure what each of them loses by it.

onnxruntime's static quantiser writes QuantizeLinear and DequantizeLinear around the chosen layers.
Weights have a scale for each output channel, activations one for the tensor.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np

from backbones.openmmlab.export.files import module_of
from backbones.openmmlab.prediction.exported import as_texts

from .layers import Layer, Quantizer, has_narrow_weights, quantisable

KINDS = {"MatMul": "linear", "Gemm": "linear", "Conv": "convolution"}


class OnnxQuantizer(Quantizer):
    """Quantise an ONNX file that `convnext export` wrote.

    Args:
        path: the file, in float32.
        kept, backbone: as of `quantisable`.
        tensorrt: follow TensorRT's rules: activations and weights symmetric, in pairs of
            QuantizeLinear and DequantizeLinear of their own, biases in float.
    """

    def __init__(self, path: Path, kept: re.Pattern[str], backbone: str, *, tensorrt: bool = False):
        import onnx

        self.path = path
        self.model: Any = onnx.shape_inference.infer_shapes(onnx.load(path))
        self.layers = quantisable(_weighted(self.model.graph), kept, backbone)
        self.tensorrt = tensorrt
        self.narrow = has_narrow_weights() and not tensorrt
        self._ranges: Any = None

    def calibrate(self, inputs: Iterable[np.ndarray], folder: Path) -> None:
        from onnxruntime import quantization

        class Reader(quantization.CalibrationDataReader):
            def __init__(self, name: str):
                self.given = ({name: image} for image in inputs)

            def get_next(self) -> Any:
                return next(self.given, None)

        calibrator: Any = quantization.create_calibrator(
            self.path, list(KINDS), str(folder / "calibrated.onnx")
        )
        calibrator.collect_data(Reader(self.model.graph.input[0].name))
        self._ranges = calibrator.compute_data()

    def write(self, layers: Sequence[Layer], path: Path, metadata: Mapping[str, object]) -> None:
        import onnx

        model = self._quantized(layers)
        kept = {entry.key: entry.value for entry in self.model.metadata_props}
        onnx.helper.set_model_props(model, {**kept, **as_texts(metadata)})
        onnx.save(model, path)

    def sensitivities(self, inputs: Iterable[np.ndarray]) -> dict[Layer, float]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(
            self._with_twins().SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        wanted = [f"{layer.node}/{part}" for layer in self.layers for part in ("error", "norm")]
        total = np.zeros(len(wanted))
        for image in inputs:
            total += np.array(session.run(wanted, {self.model.graph.input[0].name: image}))
        errors = np.sqrt(total[::2] / np.maximum(total[1::2], 1e-30))
        return dict(zip(self.layers, errors.tolist(), strict=True))

    def _quantized(self, layers: Sequence[Layer]) -> Any:
        from onnxruntime.quantization import QDQQuantizer, QuantType

        # A convolution without an INT8 output is computed in float on a CPU.
        options: dict[str, Any] = {"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]}
        if self.tensorrt:
            options = {
                "OpTypesToExcludeOutputQuantization": list(KINDS),
                "ActivationSymmetric": True,
                "AddQDQPairToWeight": True,
                "DedicatedQDQPair": True,
                "QuantizeBias": False,
            }
        quantizer = QDQQuantizer(
            deepcopy(self.model),
            per_channel=True,
            reduce_range=self.narrow,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QInt8 if self.tensorrt else QuantType.QUInt8,
            tensors_range=self._ranges,
            nodes_to_quantize=[layer.node for layer in layers],
            nodes_to_exclude=[],
            op_types_to_quantize=list(KINDS),
            extra_options=options,
        )
        quantizer.quantize_model()
        return quantizer.model.model

    def _with_twins(self) -> Any:
        """Return the float graph with an INT8 twin beside every layer, and both sums of squares."""
        from onnx import TensorProto, helper

        model = self._quantized(self.layers)
        graph, originals = model.graph, {node.name: node for node in self.model.graph.node}
        chosen = {layer.node for layer in self.layers}
        added = []
        for node in graph.node:
            if node.name not in originals:
                continue
            if node.name in chosen:
                twin = deepcopy(node)
                twin.name, twin.output[0] = f"{node.name}/int8", f"{node.name}/int8"
                exact, change = originals[node.name].output[0], f"{node.name}/change"
                added += [
                    twin,
                    helper.make_node("Sub", [exact, twin.output[0]], [change]),
                    helper.make_node(
                        "ReduceSumSquare", [change], [f"{node.name}/error"], keepdims=0
                    ),
                    helper.make_node("ReduceSumSquare", [exact], [f"{node.name}/norm"], keepdims=0),
                ]
                graph.output.extend(
                    helper.make_tensor_value_info(f"{node.name}/{part}", TensorProto.FLOAT, [])
                    for part in ("error", "norm")
                )
            node.CopyFrom(originals[node.name])
        graph.node.extend(added)
        # Biases are dequantised under their own name, from 32 bits.
        there = {tensor.name for tensor in graph.initializer}
        there |= {name for node in graph.node for name in node.output}
        graph.initializer.extend(t for t in self.model.graph.initializer if t.name not in there)
        return model


def _weighted(graph: Any) -> list[Layer]:
    """Return the linears and the dense convolutions of a graph: products with constant weights."""
    from onnx import helper

    weights = {tensor.name for tensor in graph.initializer}
    found = []
    for node in graph.node:
        if node.op_type not in KINDS or node.input[1] not in weights:
            continue
        groups = [helper.get_attribute_value(a) for a in node.attribute if a.name == "group"]
        if not groups or groups == [1]:
            found.append(Layer(node.name, module_of(node), KINDS[node.op_type]))
    return found
