#include "graph_cache.h"

#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <limits>
#include <string_view>

#include "hybrid_rt/error.h"
#include "hybrid_rt/log.h"

namespace hybrid_rt::tensorrt {
namespace {

constexpr char kVariable[] = "HYBRID_RT_TENSORRT_CUDA_GRAPHS";
constexpr char kMemoryVariable[] = "HYBRID_RT_TENSORRT_GRAPH_MEMORY";

/// Reads a size such as "512M", or a number of bytes.
size_t memory_from_environment() {
  const char* const given = std::getenv(kMemoryVariable);
  const std::string_view text = given != nullptr && *given != '\0' ? given : "1G";
  size_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  const std::string_view unit = text.substr(static_cast<size_t>(end - text.data()));
  const size_t place = unit.empty() ? 0 : std::string_view(" KMGT").find(unit);
  const bool is_number = error == std::errc() && number > 0 && unit.size() <= 1 && place != std::string_view::npos;
  if (is_number && number <= std::numeric_limits<size_t>::max() >> (10 * place)) return number << (10 * place);
  throw Error(ErrorKind::kOption, "tensorrt", kMemoryVariable, "a number of bytes, or one with K, M, G or T: 512M",
              "'" + std::string(text) + "'", "Set such a number, or unset it: 1G.");
}

size_t size_of(const std::vector<at::Tensor>& tensors) {
  size_t bytes = 0;
  for (const at::Tensor& tensor : tensors) bytes += tensor.defined() ? tensor.nbytes() : 0;
  return bytes;
}

std::string mebibytes(size_t bytes) { return std::to_string(bytes >> 20) + " MiB"; }

/// Records an event at the end of the scope, also if a call fails in between.
class RecordAtEnd {
 public:
  RecordAtEnd(c10::Event& event, const c10::Stream& stream) : event_(event), stream_(stream) {}
  RecordAtEnd(const RecordAtEnd&) = delete;
  RecordAtEnd& operator=(const RecordAtEnd&) = delete;
  ~RecordAtEnd() {
    try {
      event_.record(stream_);
    } catch (...) {  // the device is lost; there is nothing to wait for
    }
  }

 private:
  c10::Event& event_;
  c10::Stream stream_;
};

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

GraphOptions GraphOptions::from_environment() { return {graph_mode(), memory_from_environment()}; }

std::string to_string(const GraphOptions& options) {
  const std::string mode = to_string(options.mode);
  return options.mode == GraphMode::kOff ? mode : mode + ", " + mebibytes(options.memory);
}

size_t GraphCache::Entry::size() const {
  const size_t scratch = memory.scratch.defined() ? memory.scratch.nbytes() : 0;
  return kBytesOfGraph + size_of(inputs) + size_of(memory.outputs) + size_of(memory.copies) + scratch;
}

void GraphCache::Entry::clear() {
  try {
    done.synchronize();
  } catch (...) {  // the device is lost; there is nothing to wait for
  }
  graph.reset();
  context.reset();
  inputs.clear();
  memory = {};
  is_tried = false;
}

GraphCache::~GraphCache() = default;

std::shared_ptr<GraphCache::Entry> GraphCache::entry_of(const Key& key) {
  Entries dropped;  // destroyed without the lock, as they may have to wait
  const std::lock_guard lock(mutex_);
  const auto found =
      std::find_if(entries_.begin(), entries_.end(), [&](const auto& entry) { return entry->key == key; });
  if (found != entries_.end()) {
    entries_.splice(entries_.begin(), entries_, found);
    return entries_.front();
  }
  auto entry = std::make_shared<Entry>(device_);
  entry->key = key;
  entries_.push_front(entry);
  bytes_ += entry->bytes;
  dropped = take_surplus();
  return entry;
}

void GraphCache::count(const std::shared_ptr<Entry>& entry) {
  const size_t bytes = entry->size();
  Entries dropped;  // as above
  const std::lock_guard lock(mutex_);
  if (std::find(entries_.begin(), entries_.end(), entry) == entries_.end()) return;  // it was dropped meanwhile
  bytes_ += bytes - entry->bytes;
  entry->bytes = bytes;
  dropped = take_surplus();
}

GraphCache::Entries GraphCache::take_surplus() {
  Entries surplus;
  while (bytes_ > options_.memory && entries_.size() > 1) {
    bytes_ -= entries_.back()->bytes;
    surplus.splice(surplus.begin(), entries_, std::prev(entries_.end()));
  }
  return surplus;
}

bool GraphCache::is_read_in_place(size_t input, const at::Tensor& tensor) const {
  return options_.mode == GraphMode::kStatic && !bindings_.inputs[input].empty() && is_aligned(tensor);
}

void GraphCache::set_up(Entry& entry, size_t profile, at::ArrayRef<at::Tensor> inputs, const c10::Stream& stream) {
  const RecordAtEnd at_end(entry.done, stream);
  entry.context = contexts_.make(profile, stream);
  std::vector<at::Tensor> read;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const bool is_copied = !bindings_.inputs[i].empty() && !is_read_in_place(i, inputs[i]);
    entry.inputs.push_back(is_copied ? at::empty_like(inputs[i]).copy_(inputs[i], /*non_blocking=*/true)
                                     : at::Tensor());
    read.push_back(is_copied ? entry.inputs.back() : inputs[i]);
  }
  entry.memory = prepare_call(library_, bindings_, *entry.context, read, output_dtypes_);
  // TensorRT initialises itself in the first run of a shape, which must not be recorded.
  library_.require(entry.context->context->enqueue(handle_of(stream)), "run");
}

void GraphCache::record(Entry& entry, size_t profile, at::ArrayRef<at::Tensor> inputs, const c10::Stream& stream) {
  try {
    set_up(entry, profile, inputs, stream);
    // A context is used in one stream at a time, and recording uses another one.
    entry.done.synchronize();
  } catch (...) {
    entry.clear();  // so that the next call tries again
    throw;
  }
  std::string reason;
  if (const size_t bytes = entry.size(); bytes > options_.memory) {
    reason = "it takes " + mebibytes(bytes) + ", " + kMemoryVariable + " allows " + mebibytes(options_.memory);
  } else {
    entry.graph = CudaGraph::record([&](void* own) { return entry.context->context->enqueue(own); }, reason);
    if (!entry.graph && reason.empty()) reason = Library::take_last_error();
  }
  if (!entry.graph) {
    log(LogLevel::kWarning, "tensorrt: a call can't be recorded as a CUDA graph (" + reason + "); it runs without");
    entry.clear();
  }
  entry.is_tried = true;
}

std::optional<std::vector<at::Tensor>> GraphCache::run(size_t profile, at::ArrayRef<at::Tensor> inputs,
                                                       const c10::Stream& stream) {
  Key key{shapes_of(inputs), {}};
  for (size_t i = 0; i < inputs.size(); ++i) {
    key.addresses.push_back(is_read_in_place(i, inputs[i]) ? inputs[i].const_data_ptr() : nullptr);
  }
  const std::shared_ptr<Entry> entry = entry_of(key);
  const std::lock_guard lock(entry->mutex);
  if (!entry->is_tried) {
    record(*entry, profile, inputs, stream);
    count(entry);
  }
  if (!entry->graph) return std::nullopt;
  entry->done.block(stream);
  const RecordAtEnd at_end(entry->done, stream);
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!entry->inputs[i].defined()) continue;
    if (options_.mode == GraphMode::kStatic) {
      copy_aligned(inputs[i], entry->inputs[i]);
    } else {
      entry->inputs[i].copy_(inputs[i], /*non_blocking=*/true);
    }
  }
  entry->graph->launch(stream);
  std::vector<at::Tensor> outputs;
  for (const at::Tensor& output : entry->memory.outputs) outputs.push_back(output.clone());
  return outputs;
}

}  // namespace hybrid_rt::tensorrt
