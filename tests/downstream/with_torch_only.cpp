#include <torch/script.h>

#include <iostream>

#include "detections.h"

int main(int argc, char** argv) {
  if (argc < 5) {
    std::cerr << "usage: with_torch_only BUNDLE RAW HEIGHT WIDTH [RAW HEIGHT WIDTH ...]\n";
    return 2;
  }
  try {
    torch::jit::Module detector = torch::jit::load(argv[1]);
    detect_and_print(detector, read_all(argc - 2, argv + 2));
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
  return 0;
}
