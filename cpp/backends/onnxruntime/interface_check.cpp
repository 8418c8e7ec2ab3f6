#include <onnxruntime_c_api.h>

#include <cstddef>

#include "interface.h"

// Checks at compile time that interface.h agrees with ONNX Runtime's header, if the header is found.

namespace hybrid_rt::onnxruntime {

#define HYBRID_RT_COMPARE(name, place, result, ...) \
  static_assert(offsetof(::OrtApi, name) == (place) * sizeof(void*), #name " has another place in the table");
HYBRID_RT_ONNXRUNTIME_FUNCTIONS(HYBRID_RT_COMPARE)
#undef HYBRID_RT_COMPARE

static_assert(ORT_API_VERSION >= kApiVersion, "the header is older than the requested version");
static_assert(offsetof(::OrtApiBase, GetApi) == offsetof(ApiBase, get_api));
static_assert(offsetof(::OrtApiBase, GetVersionString) == offsetof(ApiBase, version));
static_assert(sizeof(::ONNXTensorElementDataType) == sizeof(ElementType));
static_assert(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT == static_cast<int>(ElementType::kFloat));
static_assert(ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 == static_cast<int>(ElementType::kUint8));
static_assert(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8 == static_cast<int>(ElementType::kInt8));
static_assert(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32 == static_cast<int>(ElementType::kInt32));
static_assert(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 == static_cast<int>(ElementType::kInt64));
static_assert(ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL == static_cast<int>(ElementType::kBool));
static_assert(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 == static_cast<int>(ElementType::kFloat16));
static_assert(ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE == static_cast<int>(ElementType::kDouble));
static_assert(ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16 == static_cast<int>(ElementType::kBfloat16));
static_assert(sizeof(::OrtLoggingLevel) == sizeof(LogSeverity));
static_assert(ORT_LOGGING_LEVEL_FATAL == static_cast<int>(LogSeverity::kFatal));
static_assert(OrtDeviceAllocator == kDeviceAllocator);
static_assert(OrtMemTypeDefault == kDefaultMemory);

}  // namespace hybrid_rt::onnxruntime
