"""Writes headers that declare TensorRT-RTX's additions to TensorRT, for the stand-in and the plug-in under test.

NVIDIA's own headers of TensorRT-RTX are only in its archive. These are TensorRT's headers with the names from NVIDIA's
documentation. The positions in the tables are made up, so they can't be used to call NVIDIA's library.

    python make_rtx_headers.py DIRECTORY_OF_TENSORRT'S_HEADERS OUTPUT_DIRECTORY
"""

import pathlib
import re
import sys

DECLARATIONS = """
enum class DynamicShapesKernelSpecializationStrategy : int32_t { kLAZY = 0, kEAGER = 1, kNONE = 2 };
enum class CudaGraphStrategy : int32_t { kDISABLED = 0, kWHOLE_GRAPH_CAPTURE = 1 };
class IHostMemory;
class IRuntimeCache
{
public:
    virtual ~IRuntimeCache() noexcept = default;
    virtual IHostMemory* serialize() const noexcept = 0;
    virtual bool deserialize(void const* blob, std::size_t size) noexcept = 0;
};
"""

VIRTUALS = """
    virtual void setDynamicShapesKernelSpecializationStrategy(DynamicShapesKernelSpecializationStrategy) noexcept = 0;
    virtual bool setCudaGraphStrategy(CudaGraphStrategy) noexcept = 0;
    virtual IRuntimeCache* createRuntimeCache() const noexcept = 0;
    virtual bool setRuntimeCache(IRuntimeCache const&) noexcept = 0;
"""

METHODS = """
    void setDynamicShapesKernelSpecializationStrategy(DynamicShapesKernelSpecializationStrategy strategy) noexcept
    {
        mImpl->setDynamicShapesKernelSpecializationStrategy(strategy);
    }
    bool setCudaGraphStrategy(CudaGraphStrategy strategy) noexcept { return mImpl->setCudaGraphStrategy(strategy); }
    IRuntimeCache* createRuntimeCache() const noexcept { return mImpl->createRuntimeCache(); }
    bool setRuntimeCache(IRuntimeCache const& cache) noexcept { return mImpl->setRuntimeCache(cache); }
"""


def put_in(text: str, before: str, what: str) -> str:
    """Returns the text with an insertion before the only match of a pattern."""
    found = list(re.finditer(before, text))
    if len(found) != 1:
        raise SystemExit(f"{before}: expected one place in the headers, got {len(found)}")
    return text[: found[0].start()] + what + text[found[0].start() :]


def main() -> None:
    source, output = map(pathlib.Path, sys.argv[1:])
    output.mkdir(parents=True, exist_ok=True)
    for header in source.glob("*.h"):
        text = header.read_text()
        if header.name == "NvInferVersion.h":
            text = re.sub(r"(define TRT_\w+)_ENTERPRISE \d+", r"\1_ENTERPRISE", text).replace("ENTERPRISE", "RTX")
            for name, number in (("MAJOR", 1), ("MINOR", 7), ("PATCH", 1), ("BUILD", 0)):
                text = text.replace(f"define TRT_{name}_RTX\n", f"define TRT_{name}_RTX {number}\n")
        elif header.name == "NvInferImpl.h":
            text = put_in(text, r"namespace apiv\n\{", DECLARATIONS)
            end = r"\n\};\n(?=\s*(class |\} // namespace apiv))"
            start = text.index("class VRuntimeConfig : public VRoot")
            text = text[:start] + re.sub(end, VIRTUALS + "};\n", text[start:], count=1)
        elif header.name == "NvInferRuntime.h":
            text = put_in(text, r"protected:\n    apiv::VRuntimeConfig\* mImpl;", "public:" + METHODS)
        (output / header.name).write_text(text)


main()
