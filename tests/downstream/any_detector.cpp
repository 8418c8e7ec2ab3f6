#include <hybrid_rt/hybrid_rt.h>

#include <cstring>
#include <iostream>

#include "detections.h"

namespace {

/// Prints one line per tensor in a nested value: its path (keys and indices, joined by dots), then its values.
void print_all(const std::string& place, const c10::IValue& value) {
  const std::string prefix = place.empty() ? "" : place + ".";
  if (value.isTensor()) {
    std::printf("%s", place.empty() ? "result" : place.c_str());
    print_values(value.toTensor());
    std::printf("\n");
  } else if (value.isTuple()) {
    const auto& elements = value.toTupleRef().elements();
    for (size_t i = 0; i < elements.size(); ++i) print_all(prefix + std::to_string(i), elements[i]);
  } else if (value.isList()) {
    const auto elements = value.toListRef();
    for (size_t i = 0; i < elements.size(); ++i) print_all(prefix + std::to_string(i), elements[i]);
  } else if (value.isGenericDict()) {
    for (const auto& entry : value.toGenericDict()) print_all(prefix + entry.key().toStringRef(), entry.value());
  } else {
    throw std::runtime_error("a " + value.tagKind() + " at '" + place + "'");
  }
}

}  // namespace

/// Runs a detector that takes a list of images, or batches of one image each as separate arguments.
int main(int argc, char** argv) {
  if (argc < 7 || (argc - 3) % 4 != 0) {
    std::cerr << "usage: any_detector BUNDLE list|batches RAW CHANNELS HEIGHT WIDTH [RAW CHANNELS HEIGHT WIDTH ...]\n";
    return 2;
  }
  try {
    torch::jit::Module detector = hybrid_rt::load(argv[1], {.device = torch::kCPU});
    c10::List<at::Tensor> images;
    std::vector<c10::IValue> batches;
    for (int i = 3; i < argc; i += 4) {
      images.push_back(read_raw(argv[i], std::stoll(argv[i + 2]), std::stoll(argv[i + 3]), std::stoll(argv[i + 1])));
      batches.emplace_back(images.get(images.size() - 1).unsqueeze(0));
    }
    print_all("", std::strcmp(argv[2], "list") == 0 ? detector.forward({images}) : detector.forward(batches));
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
  return 0;
}
