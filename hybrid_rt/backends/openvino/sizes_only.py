"""Replaces outputs whose sizes alone are needed: OpenVINO returns the shape instead of writing the values.

A dense head inside the engine reads the feature maps in OpenVINO's own layout. As outputs they must also be converted
to torch's layout and to float32 in every call, although a head outside the engine uses only their sizes, to place its
anchors.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from xml.etree import ElementTree

from ...common.specs import TensorSpec

MODEL_FOR_HEAD = "head_xml"
"""Name of the blob with the modified model. A program that brings its own head gets the unmodified model."""

POSITIONS = "head_sizes_only"
"""Name of the blob with the positions of these outputs, separated by spaces."""


def return_sizes(xml: bytes, outputs: Collection[int], specs: Sequence[TensorSpec]) -> tuple[bytes, list[int]]:
    """Makes outputs of an intermediate representation return their shapes as int32, one number per dimension.

    Args:
        xml: The representation without its weights.
        outputs: Positions of the outputs to change.
        specs: Specs of all outputs.

    Returns:
        The modified representation, and the positions that were changed. Scalars, and outputs whose rank differs from
        the spec's, are left as they are.
    """
    root = ElementTree.fromstring(xml)
    layers, edges = root.find("layers"), root.find("edges")
    if layers is None or edges is None:
        return xml, []
    results = [layer for layer in layers if layer.get("type") == "Result"]
    if len(results) != len(specs):
        return xml, []
    next_id = 1 + max(int(layer.get("id", "0")) for layer in layers)
    changed = []
    for i in sorted(outputs):
        port = results[i].find("input/port")
        rank = 0 if port is None else len(port.findall("dim"))
        edge = next((edge for edge in edges if edge.get("to-layer") == results[i].get("id")), None)
        if port is None or edge is None or rank == 0 or rank != len(specs[i].min):
            continue
        layers.insert(list(layers).index(results[i]), _shape_of(next_id, port, rank))
        edges.append(
            ElementTree.Element(
                "edge",
                {
                    "from-layer": edge.get("from-layer", ""),
                    "from-port": edge.get("from-port", ""),
                    "to-layer": str(next_id),
                    "to-port": "0",
                },
            )
        )
        edge.set("from-layer", str(next_id))
        edge.set("from-port", "1")
        for size in port.findall("dim"):
            port.remove(size)
        ElementTree.SubElement(port, "dim").text = str(rank)
        port.set("precision", "I32")
        next_id += 1
        changed.append(i)
    return (ElementTree.tostring(root, encoding="utf-8", xml_declaration=True), changed) if changed else (xml, [])


def _shape_of(number: int, taken: ElementTree.Element, rank: int) -> ElementTree.Element:
    """Returns a ShapeOf layer for the value that the port of a result takes."""
    layer = ElementTree.Element(
        "layer", {"id": str(number), "name": f"sizes_only_{number}", "type": "ShapeOf", "version": "opset3"}
    )
    ElementTree.SubElement(layer, "data", {"output_type": "i32"})
    port = ElementTree.SubElement(
        ElementTree.SubElement(layer, "input"), "port", {"id": "0", "precision": taken.get("precision", "FP32")}
    )
    for size in taken.findall("dim"):
        ElementTree.SubElement(port, "dim").text = size.text
    returned = ElementTree.SubElement(ElementTree.SubElement(layer, "output"), "port", {"id": "1", "precision": "I32"})
    ElementTree.SubElement(returned, "dim").text = str(rank)
    return layer
