#include "graph_cache.h"

#include <ATen/ops/empty_like.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <cstdlib>
#include <string_view>

#include "hybrid_rt/error.h"
#include "hybrid_rt/log.h"

namespace hybrid_rt::tensorrt {
namespace {

constexpr char kVariable[] = "HYBRID_RT_TENSORRT_CUDA_GRAPHS";

}  // namespace

GraphMode graph_mode() {
  const char* const text = std::getenv(kVariable);
  const std::string_view mode = text != nullptr ? text : "off";
  if (mode == "off" || mode.empty()) return GraphMode::kOff;
  if (mode == "copy") return GraphMode::kCopy;
  if (mode == "static") return GraphMode::kStatic;
  throw Error(ErrorKind::kOption, "tensorrt", kVariable, "off, copy or static", "'" + std::string(mode) + "'",
              "Set one of these, or unset it.");
}

std::string to_string(GraphMode mode) {
  return mode == GraphMode::kCopy ? "copy" : mode == GraphMode::kStatic ? "static" : "off";
}

GraphCache::Entry::~Entry() {
  try {
    if (graph) done.synchronize();
  } catch (...) {  // the device is lost; there is nothing to wait for
  }
}

GraphCache::~GraphCache() = default;

std::shared_ptr<GraphCache::Entry> GraphCache::entry_of(const Key& key) {
  std::shared_ptr<Entry> dropped;  // destroyed without the lock: it may have to wait
  const std::lock_guard lock(mutex_);
  const auto found =
      std::find_if(entries_.begin(), entries_.end(), [&](const auto& entry) { return entry->key == key; });
  if (found != entries_.end()) {
    entries_.splice(entries_.begin(), entries_, found);
    return entries_.front();
  }
  if (entries_.size() >= kMaxGraphs) {
    dropped = std::move(entries_.back());
    entries_.pop_back();
  }
  auto entry = std::make_shared<Entry>(device_);
  entry->key = key;
  entries_.push_front(entry);
  return entry;
}

void GraphCache::record(Entry& entry, size_t profile, at::ArrayRef<at::Tensor> inputs, const c10::Stream& stream) {
  entry.is_tried = true;
  // Not the caller's stream: that may be the default one, which can't be recorded from.
  const c10::impl::VirtualGuardImpl streams(device_.type());
  const c10::Stream own = streams.getStreamFromGlobalPool(device_);
  c10::Event ready(device_.type());
  ready.record(stream);
  ready.block(own);
  std::string reason;
  {
    const c10::StreamGuard guard(own);
    entry.context = contexts_.make(profile, own);
    std::vector<at::Tensor> read;
    for (const at::Tensor& input : inputs) {
      const bool is_copied = mode_ == GraphMode::kCopy || !is_aligned(input);
      entry.inputs.push_back(is_copied ? at::empty_like(input).copy_(input, /*non_blocking=*/true) : at::Tensor());
      read.push_back(is_copied ? entry.inputs.back() : input);
    }
    entry.memory = prepare_call(library_, bindings_, *entry.context, read, output_dtypes_);
    // TensorRT sets itself up in the first run of a shape, which must not be recorded.
    library_.require(entry.context->context->enqueue(handle_of(own)), "run");
    entry.graph = CudaGraph::record(own, [&] { return entry.context->context->enqueue(handle_of(own)); }, reason);
    entry.done.record(own);
  }
  if (entry.graph) return;
  if (reason.empty()) reason = Library::take_last_error();
  log(LogLevel::kWarning, "tensorrt: a call can't be recorded as a CUDA graph (" + reason + "); it runs without");
  entry.done.synchronize();
  entry.inputs.clear();
  entry.memory = {};
  entry.context.reset();
}

std::optional<std::vector<at::Tensor>> GraphCache::run(size_t profile, at::ArrayRef<at::Tensor> inputs,
                                                       const c10::Stream& stream) {
  Key key{shapes_of(inputs), {}};
  if (mode_ == GraphMode::kStatic) {
    for (const at::Tensor& input : inputs) key.addresses.push_back(input.const_data_ptr());
  }
  const std::shared_ptr<Entry> entry = entry_of(key);
  const std::lock_guard lock(entry->mutex);
  if (!entry->is_tried) record(*entry, profile, inputs, stream);
  if (!entry->graph) return std::nullopt;
  entry->done.block(stream);
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (entry->inputs[i].defined()) entry->inputs[i].copy_(inputs[i], /*non_blocking=*/true);
  }
  entry->graph->launch(stream);
  std::vector<at::Tensor> outputs;
  for (const at::Tensor& output : entry->memory.outputs) outputs.push_back(output.clone());
  entry->done.record(stream);
  return outputs;
}

}  // namespace hybrid_rt::tensorrt
