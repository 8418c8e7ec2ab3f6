#include <hybrid_rt/hybrid_rt.h>

#include <iostream>

#include "detections.h"

int main(int argc, char** argv) {
  if (argc < 5) {
    std::cerr << "usage: with_hybrid_rt BUNDLE RAW HEIGHT WIDTH [RAW HEIGHT WIDTH ...]\n";
    return 2;
  }
  try {
    torch::jit::Module detector = hybrid_rt::load(argv[1], {.device = torch::kCPU});
    for (const hybrid_rt::EngineChoice& engine : hybrid_rt::engines(detector)) {
      std::cerr << engine.name << ": " << engine.backend << "\n";
    }
    detect_and_print(detector, read_all(argc - 2, argv + 2));
  } catch (const hybrid_rt::Error& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
  return 0;
}
