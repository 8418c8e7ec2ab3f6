#include "hybrid_rt/detections.h"

#include <algorithm>
#include <sstream>
#include <string>
#include <string_view>

#include "hybrid_rt/error.h"

namespace hybrid_rt {
namespace {

constexpr const char* kOthers =
    "Use this only for detectors with torchvision's interface, and call hybrid_rt::load() for others.";

Error wrong_output(std::string_view subject, std::string_view expected, std::string_view got) {
  return Error(ErrorKind::kInput, "detections", subject, expected, got, kOthers);
}

std::string shape_text(const at::Tensor& tensor) {
  std::ostringstream text;
  text << at::toString(tensor.scalar_type()) << " " << tensor.sizes();
  return text.str();
}

using Fields = c10::Dict<c10::IValue, c10::IValue>;

at::Tensor optional_field(const Fields& image, const char* key) {
  const auto found = image.find(key);
  if (found == image.end()) return {};
  if (!found->value().isTensor()) {
    throw wrong_output("'" + std::string(key) + "' of forward's output", "a tensor", found->value().tagKind());
  }
  return found->value().toTensor();
}

at::Tensor field(const Fields& image, const char* key) {
  at::Tensor tensor = optional_field(image, key);
  if (!tensor.defined()) {
    throw wrong_output("forward's output", "a dict with the key '" + std::string(key) + "'", "none");
  }
  return tensor;
}

at::Tensor on_cpu(const at::Tensor& tensor, at::ScalarType type) { return tensor.to(at::kCPU, type).contiguous(); }

/// Returns a field with one row per object and this number of dimensions, as floats on the CPU.
at::Tensor per_object(const Fields& image, const char* key, std::int64_t objects, std::int64_t dimensions) {
  const at::Tensor tensor = optional_field(image, key);
  if (!tensor.defined()) return tensor;
  if (tensor.dim() != dimensions || tensor.size(0) != objects) {
    throw wrong_output("'" + std::string(key) + "' of forward's output",
                       std::to_string(dimensions) + " dimensions, " + std::to_string(objects) + " in the first",
                       shape_text(tensor));
  }
  return on_cpu(tensor, at::kFloat);
}

Detections detections_of(const Fields& image) {
  const at::Tensor boxes = field(image, "boxes");
  const at::Tensor labels = field(image, "labels");
  const at::Tensor scores = field(image, "scores");
  if (boxes.dim() != 2 || boxes.size(1) != 4 || labels.dim() != 1 || scores.dim() != 1 ||
      labels.size(0) != boxes.size(0) || scores.size(0) != boxes.size(0)) {
    throw wrong_output(
        "forward's output", "boxes [n, 4], labels [n], scores [n]",
        "boxes " + shape_text(boxes) + ", labels " + shape_text(labels) + ", scores " + shape_text(scores));
  }
  const std::int64_t count = boxes.size(0);
  const at::Tensor cpu_boxes = on_cpu(boxes, at::kFloat);
  const at::Tensor cpu_labels = on_cpu(labels, at::kLong);
  const at::Tensor cpu_scores = on_cpu(scores, at::kFloat);
  Detections found;
  found.objects.resize(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < found.objects.size(); ++i) {
    std::copy_n(cpu_boxes.const_data_ptr<float>() + i * 4, 4, found.objects[i].box.begin());
    found.objects[i].label = cpu_labels.const_data_ptr<std::int64_t>()[i];
    found.objects[i].score = cpu_scores.const_data_ptr<float>()[i];
  }
  found.masks = per_object(image, "masks", count, 4);
  if (found.masks.defined()) found.masks = found.masks.select(1, 0).contiguous();
  found.keypoints = per_object(image, "keypoints", count, 3);
  found.keypoint_scores = per_object(image, "keypoints_scores", count, 2);
  return found;
}

/// Returns floats in 0..1, channels first.
at::Tensor to_floats(const at::Tensor& pixels) {
  // A plain number would become a multiplication on a GPU, whose last digits differ from the CPU's division.
  const at::Tensor largest = at::scalar_tensor(255.0F, pixels.options().dtype(at::kFloat));
  return pixels.permute({2, 0, 1})
      .to(at::kFloat, /*non_blocking=*/false, /*copy=*/true, at::MemoryFormat::Contiguous)
      .div_(largest);
}

/// Copies from pinned memory, which the GPU reads directly. torch keeps it until then.
at::Tensor moved(const at::Tensor& tensor, c10::Device device) {
  if (device.is_cpu()) return tensor;
  return at::empty(tensor.sizes(), tensor.options().pinned_memory(true))
      .copy_(tensor)
      .to(device, /*non_blocking=*/true);
}

}  // namespace

void require_picture_input(const torch::jit::Module& module) {
  const auto method = module.find_method("forward");
  if (!method) {
    throw Error(ErrorKind::kInput, "detections", "the bundle's module", "a method forward", "none", kOthers);
  }
  const c10::FunctionSchema& schema = method->function().getSchema();
  const std::vector<c10::Argument>& arguments = schema.arguments();  // the first one is self
  const bool takes_images = arguments.size() >= 2 && *arguments[1].type() == *c10::ListType::ofTensors();
  const bool takes_no_more =
      std::all_of(arguments.begin() + std::min<std::ptrdiff_t>(2, std::ssize(arguments)), arguments.end(),
                  [](const c10::Argument& argument) { return argument.default_value().has_value(); });
  if (takes_images && takes_no_more) return;

  std::string signature;
  for (const c10::Argument& argument : c10::ArrayRef<c10::Argument>(arguments).slice(1)) {
    if (!signature.empty()) signature += ", ";
    signature += argument.name() + ": " + argument.type()->repr_str();
  }
  throw Error(ErrorKind::kInput, "detections", "forward's arguments", "one List[Tensor] of images",
              "(" + signature + ")", kOthers);
}

std::vector<Detections> detections_from(const c10::IValue& output, std::size_t images) {
  const bool is_list = output.isList() && output.toListRef().size() == images;
  const auto is_dict = [](const c10::IValue& each) { return each.isGenericDict(); };
  if (!is_list || !std::all_of(output.toListRef().begin(), output.toListRef().end(), is_dict)) {
    throw wrong_output("forward's output", "a list of a dict for each of " + std::to_string(images) + " images",
                       output.isList() ? std::to_string(output.toListRef().size()) + " of " + output.type()->repr_str()
                                       : output.type()->repr_str());
  }
  std::vector<Detections> found;
  for (const c10::IValue& image : output.toListRef()) found.push_back(detections_of(image.toGenericDict()));
  return found;
}

at::Tensor to_image(const at::Tensor& pixels, c10::Device device) {
  const bool is_cpu = pixels.defined() && pixels.device().is_cpu() && pixels.dim() == 3 && pixels.numel() > 0;
  if (is_cpu && pixels.scalar_type() == at::kByte && pixels.size(2) == 3) return to_floats(moved(pixels, device));
  if (is_cpu && pixels.scalar_type() == at::kFloat && pixels.size(0) == 3) return moved(pixels, device);
  throw Error(ErrorKind::kInput, "detections", "image",
              "uint8 [H, W, 3] or float32 [3, H, W] on the CPU, of at least one pixel",
              pixels.defined() ? shape_text(pixels) + " on " + pixels.device().str() : "an undefined tensor",
              "Convert it before the call.");
}

}  // namespace hybrid_rt
