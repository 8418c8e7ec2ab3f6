#pragma once

#include <cstddef>
#include <cstdint>

// The part of ONNX Runtime's C interface that this backend uses. The interface is a table of function pointers that
// only grows: a function keeps its position and arguments in every later release, and GetApi(version) refuses a version
// that the library does not have. So any release from 1.18 on can be opened at run time, and building needs no headers,
// which neither the wheel nor Debian 12 includes. interface_check.cpp compares this file with a header if one is found.

namespace hybrid_rt::onnxruntime {

/// The requested version of the table: that of ONNX Runtime 1.18, the first that reads weights from memory.
inline constexpr uint32_t kApiVersion = 18;

struct Env;
struct Status;
struct MemoryInfo;
struct Session;
struct Value;
struct RunOptions;
struct TypeAndShape;
struct SessionOptions;
struct Allocator;
struct CudaOptions;
struct TensorRtOptions;

struct ApiBase {
  void* const* (*get_api)(uint32_t version) noexcept;
  const char* (*version)() noexcept;
};

enum class LogSeverity : int { kVerbose, kInfo, kWarning, kError, kFatal };

enum class ElementType : int {
  kFloat = 1,
  kUint8 = 2,
  kInt8 = 3,
  kInt32 = 6,
  kInt64 = 7,
  kBool = 9,
  kFloat16 = 10,
  kDouble = 11,
  kBfloat16 = 16,
};

inline constexpr int kDeviceAllocator = 0;
inline constexpr int kDefaultMemory = 0;

using LogFunction = void (*)(void* parameter, LogSeverity severity, const char* category, const char* log_id,
                             const char* location, const char* message);

// X(name, position in the table, result, arguments...)
// clang-format off
#define HYBRID_RT_ONNXRUNTIME_FUNCTIONS(X)                                                                             \
  X(GetErrorMessage, 2, const char*, const Status*)                                                                    \
  X(CreateEnvWithCustomLogger, 4, Status*, LogFunction, void*, LogSeverity, const char*, Env**)                        \
  X(DisableTelemetryEvents, 6, Status*, const Env*)                                                                    \
  X(CreateSessionFromArray, 8, Status*, const Env*, const void*, size_t, const SessionOptions*, Session**)             \
  X(Run, 9, Status*, Session*, const RunOptions*, const char* const*, const Value* const*, size_t, const char* const*, \
    size_t, Value**)                                                                                                   \
  X(CreateSessionOptions, 10, Status*, SessionOptions**)                                                               \
  X(SetIntraOpNumThreads, 24, Status*, SessionOptions*, int)                                                           \
  X(SetInterOpNumThreads, 25, Status*, SessionOptions*, int)                                                           \
  X(SessionGetInputCount, 30, Status*, const Session*, size_t*)                                                        \
  X(SessionGetOutputCount, 31, Status*, const Session*, size_t*)                                                       \
  X(SessionGetInputName, 36, Status*, const Session*, size_t, Allocator*, char**)                                      \
  X(SessionGetOutputName, 37, Status*, const Session*, size_t, Allocator*, char**)                                     \
  X(CreateTensorWithDataAsOrtValue, 49, Status*, const MemoryInfo*, void*, size_t, const int64_t*, size_t,             \
    ElementType, Value**)                                                                                              \
  X(GetTensorMutableData, 51, Status*, Value*, void**)                                                                 \
  X(GetTensorElementType, 60, Status*, const TypeAndShape*, ElementType*)                                              \
  X(GetDimensionsCount, 61, Status*, const TypeAndShape*, size_t*)                                                     \
  X(GetDimensions, 62, Status*, const TypeAndShape*, int64_t*, size_t)                                                 \
  X(GetTensorTypeAndShape, 65, Status*, const Value*, TypeAndShape**)                                                  \
  X(CreateMemoryInfo, 68, Status*, const char*, int, int, int, MemoryInfo**)                                           \
  X(AllocatorFree, 76, Status*, Allocator*, void*)                                                                     \
  X(GetAllocatorWithDefaultOptions, 78, Status*, Allocator**)                                                          \
  X(ReleaseStatus, 93, void, Status*)                                                                                  \
  X(ReleaseMemoryInfo, 94, void, MemoryInfo*)                                                                          \
  X(ReleaseSession, 95, void, Session*)                                                                                \
  X(ReleaseValue, 96, void, Value*)                                                                                    \
  X(ReleaseTensorTypeAndShapeInfo, 99, void, TypeAndShape*)                                                            \
  X(ReleaseSessionOptions, 100, void, SessionOptions*)                                                                 \
  X(GetAvailableProviders, 125, Status*, char***, int*)                                                                \
  X(ReleaseAvailableProviders, 126, Status*, char**, int)                                                              \
  X(AddSessionConfigEntry, 130, Status*, SessionOptions*, const char*, const char*)                                    \
  X(SessionOptionsAppendExecutionProvider_TensorRT_V2, 170, Status*, SessionOptions*, const TensorRtOptions*)          \
  X(CreateTensorRTProviderOptions, 171, Status*, TensorRtOptions**)                                                    \
  X(UpdateTensorRTProviderOptions, 172, Status*, TensorRtOptions*, const char* const*, const char* const*, size_t)     \
  X(ReleaseTensorRTProviderOptions, 174, void, TensorRtOptions*)                                                       \
  X(SessionOptionsAppendExecutionProvider_CUDA_V2, 204, Status*, SessionOptions*, const CudaOptions*)                  \
  X(CreateCUDAProviderOptions, 205, Status*, CudaOptions**)                                                            \
  X(UpdateCUDAProviderOptions, 206, Status*, CudaOptions*, const char* const*, const char* const*, size_t)             \
  X(ReleaseCUDAProviderOptions, 208, void, CudaOptions*)                                                               \
  X(SessionOptionsAppendExecutionProvider, 216, Status*, SessionOptions*, const char*, const char* const*,             \
    const char* const*, size_t)                                                                                        \
  X(AddExternalInitializersFromFilesInMemory, 279, Status*, SessionOptions*, const char* const*, char* const*,         \
    const size_t*, size_t)
// clang-format on

struct Functions {
#define HYBRID_RT_DECLARE(name, place, result, ...) result (*name)(__VA_ARGS__) = nullptr;
  HYBRID_RT_ONNXRUNTIME_FUNCTIONS(HYBRID_RT_DECLARE)
#undef HYBRID_RT_DECLARE
};

}  // namespace hybrid_rt::onnxruntime
