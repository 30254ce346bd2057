"""Marks in a graph's file which layers stay in f32 when the graph is compiled for bf16 or f16: see ``depthwise.py``.

OpenVINO reads the mark from the file, and has no call in Python that sets it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import openvino

from ipfs_accelerate_node.inference.depthwise import exact_blocks

_DENSE = frozenset({"Convolution", "MatMul"})
_WITHOUT_NUMBERS = frozenset({"Parameter", "Constant", "Result"})


@dataclass(frozen=True, slots=True)
class Layers:
    """exact: names of the layers that stay in f32. narrow, products: how many dense products do not, and how many there
    are."""

    exact: frozenset[str]
    narrow: int
    products: int


def layers_of(model: openvino.Model) -> Layers | None:
    """None for a graph without depthwise convolutions: all of it may be narrow."""
    nodes = [node for node in model.get_ordered_ops() if node.get_type_name() not in _WITHOUT_NUMBERS]
    depthwise = sum(map(_is_depthwise, nodes))
    if not depthwise:
        return None
    exact: set[str] = set()
    met = narrow = 0
    for node in nodes:
        met += _is_depthwise(node)
        if node.get_type_name() in _DENSE and met >= exact_blocks(depthwise):
            narrow += 1
        else:
            exact.add(node.get_friendly_name())
    return Layers(frozenset(exact), narrow, sum(node.get_type_name() in _DENSE for node in nodes))


def _is_depthwise(node: openvino.Node) -> bool:
    """A convolution of a picture, one channel at a time. Its weights: (groups, outputs, inputs, height, width)."""
    if node.get_type_name() != "GroupConvolution":
        return False
    shape = node.input_value(1).get_partial_shape()
    return len(shape) == 5 and shape[2].is_static and shape[2].get_length() == 1


def mark(xml: Path, exact: frozenset[str]) -> None:
    """Rewrites the file of a graph that was just written. Raises OSError."""
    tree = ElementTree.parse(xml)
    for layer in tree.getroot().iterfind("layers/layer"):
        if layer.get("name") not in exact:
            continue
        data = layer.find("data")
        info = layer.find("rt_info")
        if info is None:
            info = ElementTree.Element("rt_info")
            layer.insert(0 if data is None else 1, info)
        ElementTree.SubElement(info, "attribute", {"name": "precise", "version": "0"})
    tree.write(xml, encoding="utf-8", xml_declaration=True)
