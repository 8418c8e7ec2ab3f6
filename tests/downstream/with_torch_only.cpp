#include <torch/script.h>

#include <iostream>

#include "detections.h"

int main(int argc, char** argv) {
  if (argc != 5) {
    std::cerr << "usage: with_torch_only BUNDLE RAW HEIGHT WIDTH\n";
    return 2;
  }
  try {
    torch::jit::Module detector = torch::jit::load(argv[1]);
    detect_and_print(detector, read_raw(argv[2], std::stoll(argv[3]), std::stoll(argv[4])));
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
  return 0;
}
