#include "detections.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <iomanip>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string_view>

namespace hybrid_rt::detect {
namespace {

// Keys in the order of insertion; float, so that 0.91f is printed as 0.91 and still read back as the same float.
using Json =
    nlohmann::basic_json<nlohmann::ordered_map, std::vector, std::string, bool, std::int64_t, std::uint64_t, float>;

Error wrong_output(std::string_view subject, std::string_view expected, std::string_view got) {
  return Error(
      ErrorKind::kInput, "detect", subject, expected, got,
      "hybrid-rt-detect shows detectors that return what torchvision's do; call hybrid_rt::load() for others.");
}

std::string shape_text(const at::Tensor& tensor) {
  std::ostringstream text;
  text << at::toString(tensor.scalar_type()) << " " << tensor.sizes();
  return text.str();
}

at::Tensor field(const c10::Dict<c10::IValue, c10::IValue>& picture, const char* key) {
  const auto found = picture.find(key);
  if (found == picture.end())
    throw wrong_output("forward's output", "a dict with the key '" + std::string(key) + "'", "none");
  if (!found->value().isTensor()) {
    throw wrong_output("'" + std::string(key) + "' of forward's output", "a tensor", found->value().tagKind());
  }
  return found->value().toTensor();
}

double percentile(std::vector<double> values, double fraction) {
  // Linear between the neighbours, as numpy.percentile.
  std::sort(values.begin(), values.end());
  const double position = fraction * static_cast<double>(values.size() - 1);
  const auto below = static_cast<std::size_t>(position);
  const std::size_t above = std::min(below + 1, values.size() - 1);
  return values[below] + (values[above] - values[below]) * (position - static_cast<double>(below));
}

float to_microseconds(double milliseconds) { return static_cast<float>(std::round(milliseconds * 1000) / 1000); }

}  // namespace

void require_picture_input(const torch::jit::Module& module) {
  static constexpr const char* kRemedy =
      "hybrid-rt-detect feeds one picture as a list of CHW float tensors; call hybrid_rt::load() for other detectors.";
  const auto method = module.find_method("forward");
  if (!method) {
    throw Error(ErrorKind::kInput, "detect", "the bundle's module", "a method forward", "none", kRemedy);
  }
  const c10::FunctionSchema& schema = method->function().getSchema();
  const std::vector<c10::Argument>& arguments = schema.arguments();  // the first one is self
  const bool takes_pictures = arguments.size() >= 2 && *arguments[1].type() == *c10::ListType::ofTensors();
  const bool takes_no_more =
      std::all_of(arguments.begin() + std::min<std::ptrdiff_t>(2, std::ssize(arguments)), arguments.end(),
                  [](const c10::Argument& argument) { return argument.default_value().has_value(); });
  if (takes_pictures && takes_no_more) return;

  std::string signature;
  for (const c10::Argument& argument : c10::ArrayRef<c10::Argument>(arguments).slice(1)) {
    if (!signature.empty()) signature += ", ";
    signature += argument.name() + ": " + argument.type()->repr_str();
  }
  throw Error(ErrorKind::kInput, "detect", "forward's arguments", "one List[Tensor] of pictures", "(" + signature + ")",
              kRemedy);
}

std::vector<Detection> detections_from(const torch::jit::IValue& output) {
  if (!output.isList() || output.toListRef().size() != 1 || !output.toListRef()[0].isGenericDict()) {
    throw wrong_output("forward's output", "a list of one dict for one picture", output.type()->repr_str());
  }
  const auto picture = output.toListRef()[0].toGenericDict();
  const at::Tensor boxes = field(picture, "boxes");
  const at::Tensor labels = field(picture, "labels");
  const at::Tensor scores = field(picture, "scores");
  if (boxes.dim() != 2 || boxes.size(1) != 4 || labels.dim() != 1 || scores.dim() != 1 ||
      labels.size(0) != boxes.size(0) || scores.size(0) != boxes.size(0)) {
    throw wrong_output(
        "forward's output", "boxes [n, 4], labels [n], scores [n]",
        "boxes " + shape_text(boxes) + ", labels " + shape_text(labels) + ", scores " + shape_text(scores));
  }

  const at::Tensor cpu_boxes = boxes.to(at::kCPU, at::kFloat).contiguous();
  const at::Tensor cpu_labels = labels.to(at::kCPU, at::kLong).contiguous();
  const at::Tensor cpu_scores = scores.to(at::kCPU, at::kFloat).contiguous();
  std::vector<Detection> detections(static_cast<std::size_t>(cpu_boxes.size(0)));
  for (std::size_t i = 0; i < detections.size(); ++i) {
    std::copy_n(cpu_boxes.const_data_ptr<float>() + i * 4, 4, detections[i].box.begin());
    detections[i].label = cpu_labels.const_data_ptr<std::int64_t>()[i];
    detections[i].score = cpu_scores.const_data_ptr<float>()[i];
  }
  return detections;
}

std::string to_json(const Result& result) {
  Json detections = Json::array();
  for (const Detection& detection : result.detections) {
    Json item = Json::object();
    item["box"] = detection.box;
    item["label"] = detection.label;
    item["score"] = detection.score;
    detections.push_back(std::move(item));
  }
  Json engines = Json::object();
  for (const auto& [segment, backend] : result.engines) engines[segment] = backend;
  Json timing = Json::object();
  timing["load"] = to_microseconds(result.timing.load);
  timing["decode"] = to_microseconds(result.timing.decode);
  timing["first"] = to_microseconds(result.timing.first);
  timing["median"] = to_microseconds(percentile(result.timing.runs, 0.5));
  timing["p95"] = to_microseconds(percentile(result.timing.runs, 0.95));
  timing["repeat"] = static_cast<std::uint64_t>(result.timing.runs.size());

  Json document = Json::object();
  document["detections"] = std::move(detections);
  document["engines"] = std::move(engines);
  document["timing_ms"] = std::move(timing);
  return document.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string to_table(const Result& result, const std::vector<std::string>& label_names) {
  std::size_t label_width = 5;
  for (const Detection& detection : result.detections) {
    label_width = std::max(label_width, label_text(detection.label, label_names).size());
  }
  std::ostringstream text;
  text << std::fixed << std::left << std::setw(static_cast<int>(label_width)) << "label" << std::right
       << "   score        x1        y1        x2        y2\n";
  for (const Detection& detection : result.detections) {
    text << std::left << std::setw(static_cast<int>(label_width)) << label_text(detection.label, label_names)
         << std::right << std::setprecision(4) << std::setw(8) << detection.score << std::setprecision(1);
    for (const float coordinate : detection.box) text << std::setw(10) << coordinate;
    text << "\n";
  }
  text << "detections: " << result.detections.size() << "\n" << "engines:";
  for (const auto& [segment, backend] : result.engines) text << " " << segment << "=" << backend;
  if (result.engines.empty()) text << " none";
  const Timing& timing = result.timing;
  text << "\n"
       << "time in ms: load " << timing.load << ", decode " << timing.decode << ", first " << timing.first
       << ", median " << percentile(timing.runs, 0.5) << ", p95 " << percentile(timing.runs, 0.95) << " ("
       << timing.runs.size() << (timing.runs.size() == 1 ? " run)" : " runs)") << "\n";
  return text.str();
}

std::string label_text(std::int64_t label, const std::vector<std::string>& label_names) {
  const bool has_name = label >= 0 && label < std::ssize(label_names);
  return has_name ? label_names[static_cast<std::size_t>(label)] : std::to_string(label);
}

}  // namespace hybrid_rt::detect
