"""A graph of torch as an ONNX file that ONNX Runtime can run fast: small, plain, of no machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.inliner import inline_local_functions

OPSET = 18


def to_onnx(graph: Any, example: Any, names: Sequence[str], meta: dict[str, Any]) -> bytes:
    """The graph traced on `example` (2, …), for batches of any size, as an ONNX file."""
    given = "films"
    program = torch.onnx.export(
        graph.eval(),
        (example,),
        input_names=[given],
        output_names=list(names),
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        opset_version=OPSET,
        dynamo=True,
        optimize=False,  # BatchNorms stay: their weights are fp16 as the bundle's, folded ones not
        verbose=False,
    )
    assert program is not None, "only export to a file gives none"
    proto = inline_local_functions(program.model_proto)
    _strip(proto)
    _tidy(proto.graph)
    _halve(proto.graph)
    proto.producer_name, proto.producer_version, proto.doc_string = "lungfirst", "", ""
    del proto.metadata_props[:]
    proto.metadata_props.add(key="lungfirst", value=json.dumps(meta))
    return bytes(proto.SerializeToString())


def _strip(proto: Any) -> None:
    """Nothing of the machine that exported it: traces name files of it."""
    for part in (proto.graph, *proto.functions):
        part.doc_string = ""
        del part.metadata_props[:]
        for entry in (*part.node, *part.value_info):
            entry.doc_string = ""
            del entry.metadata_props[:]
    for entry in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        entry.doc_string = ""
        del entry.metadata_props[:]


def _tidy(graph: Any) -> None:
    """Out of the way of ONNX Runtime, which merges a BatchNorm, and what clips it, into the
    convolution before it only where that is plain: bounds of a Clip become constants, a bias of
    computed zeros, as the exporter writes it, goes, and a Pad of zeros before a convolution (timm's
    `Conv2dSame`) becomes its own."""
    known = _constants(graph)
    bounds = {name for n in graph.node if n.op_type == "Clip" for name in n.input[1:]}
    taken = {t.name for t in graph.initializer}
    for node in [n for n in graph.node if bounds & set(n.output) & set(known) - taken]:
        graph.node.remove(node)
        (name,) = node.output
        graph.initializer.append(numpy_helper.from_array(known[name], name))
    zero = {name for name, values in known.items() if not values.any()}
    for node in graph.node:
        if node.op_type == "Expand" and node.input[0] in zero:
            zero.add(node.output[0])
    pad_of = {n.output[0]: n for n in graph.node if n.op_type == "Pad" and n.input[2] in zero}
    for conv in [n for n in graph.node if n.op_type == "Conv"]:
        if len(conv.input) > 2 and conv.input[2] in zero:
            del conv.input[2:]
        pad = pad_of.get(conv.input[0])
        if pad and pad.input[1] in known:
            _take_over(conv, pad, known[pad.input[1]])
    used = {o.name for o in graph.output}
    for node in reversed(list(graph.node)):  # what nothing comes of any more
        if used.isdisjoint(node.output):
            graph.node.remove(node)
        else:
            used |= set(node.input)


def _constants(graph: Any) -> dict[str, np.ndarray]:
    """The values of a graph that do not depend on a film, by name."""
    known = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            value = helper.get_attribute_value(node.attribute[0])
            is_tensor = node.attribute[0].name == "value"
            known[node.output[0]] = numpy_helper.to_array(value) if is_tensor else np.array(value)
        elif node.op_type == "CastLike" and node.input[0] in known:  # what a picture is: float32
            known[node.output[0]] = known[node.input[0]].astype(np.float32)
    return known


def _take_over(conv: Any, pad: Any, pads: np.ndarray) -> None:
    """The Pad's padding (of each axis before, then after) into the convolution's, along h and w."""
    if pads[[0, 1, 4, 5]].any() or (pads < 0).any():
        return
    told = {a.name: helper.get_attribute_value(a) for a in conv.attribute}
    told["pads"] = [a + int(b) for a, b in zip(told["pads"], pads[[2, 3, 6, 7]], strict=True)]
    del conv.attribute[:]
    conv.attribute.extend(helper.make_attribute(k, v) for k, v in told.items())
    conv.input[0] = pad.input[0]


def _halve(graph: Any) -> None:
    """Weights that fp16 holds exactly, as a bundle's are, are stored so."""
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        full = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            half = full.astype(np.float16)
        if full.size > 64 and np.array_equal(half.astype(np.float32), full):
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
            cast = helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT)
            casts.append(cast)
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
