"""Outputs of which only the sizes are wanted: OpenVINO returns the shape instead of writing the values.

A dense head in the engine reads the feature maps as they lie in OpenVINO's memory. As outputs they are also converted
to torch's layout and to float32, each time, although a head outside uses them only to place its anchors.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from xml.etree import ElementTree

from ...common.specs import TensorSpec

MODEL_FOR_HEAD = "head_xml"
"""The blob with the changed representation. A program with its own head gets the unchanged one."""

POSITIONS = "head_sizes_only"
"""The blob with the positions of these outputs, separated by spaces."""


def return_sizes(xml: bytes, outputs: Collection[int], specs: Sequence[TensorSpec]) -> tuple[bytes, list[int]]:
    """Makes outputs of an intermediate representation return their shapes: int32, one number per dimension.

    Args:
        xml: the representation without its weights.
        outputs: the positions of the outputs.
        specs: of all outputs.

    Returns:
        The changed representation, and the positions that were changed: scalars, and what is not a tensor of the
        spec's rank, stay.
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
    """Returns a layer that takes what the port of a result takes."""
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
