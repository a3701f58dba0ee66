"""Check that an ONNX file holds only what TensorRT's parser reads. TensorRT itself is not needed.

Sources: the operator table of onnx-tensorrt (docs/operators.md), and "Explicit Quantization" in
TensorRT's documentation: symmetric INT8 only, and weights dequantised from a scale for each channel
right before the operator that takes them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from backbones.errors import InputError

# Those of the table that PyTorch's exporter writes for inference, and what quantisers add.
OPERATORS = frozenset(
    "Abs Add And ArgMax ArgMin AveragePool BatchNormalization Cast Ceil Clip Concat Constant "
    "ConstantOfShape Conv ConvTranspose Cos CumSum DequantizeLinear Div Einsum Elu Equal Erf "
    "Exp Expand Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool "
    "Greater GreaterOrEqual GridSample GroupNormalization HardSigmoid HardSwish Identity If "
    "InstanceNormalization LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop "
    "MatMul Max MaxPool Min Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or Pad Pow "
    "QuantizeLinear Range Reciprocal ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin "
    "ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize RoiAlign Round ScatterElements "
    "ScatterND Shape Sigmoid Sign Sin Size Slice Softmax Softplus Split Sqrt Squeeze Sub Sum "
    "Tanh Tile TopK Transpose Trilu Unsqueeze Where Xor".split()
)
# Inputs that the parser needs as constants, by operator.
CONSTANTS = {"Slice": 3, "Squeeze": 1, "Unsqueeze": 1, "CumSum": 1} | {
    name: 1 for name in OPERATORS if name.startswith("Reduce")
}
QUANTISING = ("QuantizeLinear", "DequantizeLinear")


def check_for_tensorrt(path: Path) -> None:
    """Check a file's operators and the inputs that have to be constant, and that INT8 is symmetric.

    Raises:
        InputError: names the first node that TensorRT would refuse.
    """
    import onnx

    for node, constants in _nodes(onnx.load(path, load_external_data=False).graph, {}):
        if problem := _problem(node, constants):
            raise InputError(
                f"{path.name}: TensorRT does not take {node.op_type} ({node.name}): {problem}",
                code="unsupported",
                where=path.name,
            )


def _problem(node: Any, constants: dict[str, Any]) -> str:
    """Return what TensorRT would refuse in a node; empty if nothing."""
    import numpy as np
    from onnx import TensorProto, numpy_helper

    if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
        return "its parser has no such operator"
    index = CONSTANTS.get(node.op_type)
    if index is not None and len(node.input) > index and node.input[index] not in constants:
        return f"its input {index} has to be a constant"
    if node.op_type in QUANTISING:
        zero = constants.get(node.input[2]) if len(node.input) > 2 else None
        if zero is None or zero.data_type != TensorProto.INT8:
            return "it is not from or to INT8"
        if np.any(numpy_helper.to_array(zero)):
            return "its zero point is not 0"
    return ""


def _nodes(graph: Any, outer: dict[str, Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield every node of a graph and of those inside it, with the constants that it sees."""
    from onnx import AttributeProto

    constants = {**outer, **{tensor.name: tensor for tensor in graph.initializer}}
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.type == AttributeProto.TENSOR:
                constants[node.output[0]] = attribute.t
            elif node.op_type == "Constant":
                constants[node.output[0]] = attribute
            if attribute.type == AttributeProto.GRAPH:
                yield from _nodes(attribute.g, constants)
        yield node, constants
