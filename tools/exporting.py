"""What is exported of each kind of network, and a graph of torch as an ONNX file.

A kind has a graph, an example of its input, and the names of its outputs; what stands before and
behind it is NumPy's. The file can be run fast by ONNX Runtime: small, plain, of no machine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.inliner import inline_local_functions
from torch import Tensor, nn

from classify.ensemble import load_single, member_of
from classify.preprocess import PreprocessConfig, to_input
from classify.saliency.hooks import (
    backbone_layers,
    logits_and_maps,
    pooled_layers,
    run_recorded,
    saliency_layer,
    watching,
)
from cxr.bundle import bundle_kind, load_bundle
from cxr.rules import require
from detect.lungfield.net import build_field_net
from detect.model import build_detector
from detect.predict import load_net
from detect.settings import DetectorConfig, FieldNetConfig
from detect.view.net import ViewHead

Graph = tuple[nn.Module, Tensor, list[str]]


def _pixels(films: Tensor) -> Tensor:
    """uint8 letterboxes (N, side, side) to (N, 3, side, side) in [0, 1]."""
    return films.float().unsqueeze(1).div(255.0).expand(-1, 3, -1, -1)


class _Dense(nn.Module):
    """A detector's pyramid, and what the RPN says of the levels that propose."""

    def __init__(self, net: Any, config: DetectorConfig) -> None:
        super().__init__()
        self.net, self.coarse = net, config.coarse_rpn
        self.mean, self.std = (torch.tensor(v).view(1, 3, 1, 1) for v in (config.mean, config.std))

    def forward(self, films: Tensor) -> tuple[Tensor, ...]:
        levels = list(self.net.backbone((_pixels(films) - self.mean) / self.std).values())
        scores, steps = self.net.rpn.head(levels[-1:] if self.coarse else levels)
        return (*levels, *scores, *steps)


def detector_graph(bundle: Path) -> Graph:
    """uint8 letterboxes to the dense parts of a detector of torchvision's kind: `detect.decode`
    goes on from there. Raises ValueError for another kind."""
    net, config, _, _ = load_net(bundle, "thorax", DetectorConfig, build_detector, fold=False)
    rule = "an exported detector must be of the backend torchvision, its side a multiple of 32 px"
    fits = config.backend == "torchvision" and config.side % 32 == 0
    require(fits, rule, f"{config.backend}, {config.side} px")
    graph, example = _Dense(net, config), torch.zeros(2, config.side, config.side).byte()
    with torch.no_grad():
        count = len(graph(example))
    proposing = 1 if config.coarse_rpn else count // 3
    names = [f"level{k}" for k in range(count - 2 * proposing)]
    names += [f"{what}{k}" for what in ("score", "step") for k in range(proposing)]
    return graph, example, names


class _Field(nn.Module):
    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, films: Tensor) -> tuple[Tensor, Tensor]:
        logits, seen = self.net.look(_pixels(films))
        return logits[:, 0].sigmoid(), seen


def field_graph(bundle: Path) -> Graph:
    """uint8 letterboxes to the field (N, side, side) and what `detect.view` judges (N, C, G, G)."""
    net, config, _, _ = load_net(bundle, "lungfield", FieldNetConfig, build_field_net, fold=False)
    return _Field(net), torch.zeros(2, config.side, config.side).byte(), ["field", "seen"]


def view_graph(bundle: Path) -> Graph:
    """What the lung field's network sees (N, C, G, G) to logits (N, classes + 1)."""
    found = load_bundle(bundle, "view")
    head = ViewHead(**found.meta["model"])
    head.load_state_dict(found.tensors)
    return head, torch.zeros(2, found.meta["model"]["channels"], 8, 8), ["logits"]


class _Members(nn.Module):
    """A classifier from pixels on; `head` (K, C) weighs the maps that it pools, where
    its head is linear."""

    def __init__(self, net: Any, settings: PreprocessConfig, head: Tensor | None) -> None:
        super().__init__()
        self.net, self.settings = net, settings
        self.register_buffer("head", head)

    def forward(self, films: Tensor) -> tuple[Tensor, ...]:
        layers = [saliency_layer(self.net)] if self.head is not None else []
        with watching(self.net) as seen:
            logits, maps = run_recorded(self.net, layers, to_input(films, self.settings))
        planes = [torch.einsum("nchw,kc->nkhw", maps[0], self.head)] if maps else []
        return (logits, *planes, *([torch.cat(seen, 1)] if seen else []))


def member_graph(bundle: Path) -> Graph:
    """Prepared films (N, 1, side, side) in [0, 1] to logits (N, K), the plane of each logit where
    its head has a closed form (N, K, h, w), and what a guard knows films by (N, F)."""
    if bundle_kind(bundle) == "single":
        single = load_single(bundle)
        net, settings = single.net, single.settings
    else:
        found = load_bundle(bundle, "member")
        net, settings = member_of(found), PreprocessConfig.from_dict(found.meta["preprocessing"])
    net = net.eval().to(memory_format=torch.contiguous_format)
    example = torch.rand(2, 1, settings.side, settings.side)
    layers = pooled_layers(net)
    closed = bool(layers) and not backbone_layers(net)
    head = logits_and_maps(net, to_input(example, settings)).head if closed else None
    names = ["logits", *["planes"] * (head is not None), *["seen"] * bool(layers)]
    return _Members(net, settings, head.weight.clone() if head else None), example, names


GRAPHS: dict[str, Callable[[Path], Graph]] = {
    "thorax": detector_graph,
    "lungfield": field_graph,
    "view": view_graph,
    "member": member_graph,
    "single": member_graph,
}


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
