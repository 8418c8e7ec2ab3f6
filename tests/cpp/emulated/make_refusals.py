"""Writes a C++ header with a class per interface of TensorRT that refuses each call.

TensorRT's classes have dozens of methods that change with its version. The stand-in implements those that the plug-in
calls, and any other call must be noticed. So the remaining methods are generated from the vendor's own header.

    python make_refusals.py DIRECTORY_OF_THE_HEADERS OUTPUT.h VRuntime VCudaEngine ...
"""

import pathlib
import re
import sys

METHOD = re.compile(
    r"virtual\s+(?P<result>[^;{}]*?)\b(?P<name>\w+)\((?P<arguments>[^;{}]*)\)\s*(?P<const>const)?\s*noexcept\s*=\s*0;"
)


def methods_of(text: str, interface: str) -> list[re.Match[str]]:
    """Returns the pure virtual methods of one class, in the header's order."""
    found = re.search(rf"^class {interface} : public VRoot\n{{(.*?)^}};", text, re.DOTALL | re.MULTILINE)
    if found is None:
        raise SystemExit(f"{interface}: expected a class of NvInferImpl.h, got none")
    # Parts that require a feature switch are not in the tables of programs that do not set it.
    body = re.sub(r"^#if ENABLE_FEATURE.*?^#endif[^\n]*\n", "", found[1], flags=re.DOTALL | re.MULTILINE)
    body = re.sub(r"//[^\n]*", "", body)
    methods = list(METHOD.finditer(body))
    if len(methods) != body.count("= 0;"):
        raise SystemExit(f"{interface}: expected {body.count('= 0;')} methods, read {len(methods)}")
    return methods


def refusal(interface: str, method: re.Match[str]) -> str:
    """Returns the C++ of a method that reports that it was called."""
    result = " ".join(method["result"].split())
    const = " const" if method["const"] else ""
    arguments = " ".join(method["arguments"].split())
    call = f'return emulated::refused<{result}>("{interface[1:]}::{method["name"]}");'
    return f"  {result} {method['name']}({arguments}){const} noexcept override {{ {call} }}"


def main() -> None:
    directory, output, *interfaces = sys.argv[1:]
    text = (pathlib.Path(directory) / "NvInferImpl.h").read_text()
    lines = ["// Made by make_refusals.py.", "namespace nvinfer1 {", "using namespace apiv;"]
    for interface in interfaces:
        lines += [f"class Refusing{interface[1:]} : public {interface} {{", " public:"]
        lines += [refusal(interface, method) for method in methods_of(text, interface)]
        lines += ["};"]
    lines += ["}  // namespace nvinfer1", ""]
    pathlib.Path(output).write_text("\n".join(lines))


main()
