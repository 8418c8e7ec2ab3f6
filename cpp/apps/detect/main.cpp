// hybrid-rt-detect: runs a bundle on an image and prints the boxes.

#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>
#include <hybrid_rt/detections.h>
#include <hybrid_rt/hybrid_rt.h>
#include <hybrid_rt/message.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iostream>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "annotate.h"
#include "detections.h"
#include "image.h"
#include "verdict.h"

namespace {

using namespace hybrid_rt::apps;
using namespace hybrid_rt::detect_app;

enum ExitCode {
  kOk = 0,
  kUnexpected = 1,
  kUsage = 2,
  kImageUnreadable = 3,
  kBundleUnloadable = 4,
  kRunFailed = 5,
  kOutputUnwritable = 6,
  kDiffers = 7,
  kTooSlow = 8,
};

constexpr const char* kDescription =
    "Detects objects in an image with a bundle (.pt) from hybrid_rt.convert.\n"
    "stdout contains only the result; messages go to stderr.";

constexpr const char* kFooter =
    R"(Image: JPEG or PNG, detected from the content, at most 16384 pixels per side and 100 megapixels. EXIF orientation is
applied only with --exif. Boxes are in pixels of the stored image, or of the rotated image with --exif. An alpha channel
is dropped.

JSON: {"detections": [{"box": [x1, y1, x2, y2], "label": 3, "score": 0.91}], "engines": {"backbone": "openvino"},
"timing_ms": {"load", "decode", "first", "median", "p95", "repeat"}}. A number that is not finite is null. A detection
also has its "class_name" if the bundle, or the file of --class-names, has one for its label.

--verify: runs the bundle's golden sample (an input and the detector's result) on this machine, with --backend,
--threads and --device, and compares the results. JSON: {"passed", "precision", "engines", "pictures",
"tensors", "failures", "thresholds"}. With --latency, it also times calls at each size of the bundle's latency contract
(hybrid-rt measure), with the contract's number of threads unless --threads names one. The contract holds if no
percentile is more than --tolerance above it. JSON: also "latency".

Times: "first" is the first forward, "median" and "p95" are of --repeat later ones. None includes reading the image.
With --repeat 2 or more, the second forward, in which TorchScript still optimizes, is not counted.

Exit codes:
  0  detections printed (possibly none)
  1  unexpected error
  2  wrong usage: an option, a number, the file of --class-names
  3  the image can't be read or decoded
  4  the bundle can't be loaded on this machine
  5  the detector failed, or does not take images and return detections
  6  the result can't be written
  7  --verify: the bundle's result on this machine differs from its detector's
  8  --latency: the bundle is slower on this machine than its latency contract)";

struct Options {
  std::string model;
  std::string image;
  bool verify = false;
  bool latency = false;
  double tolerance = hybrid_rt::LatencyOptions{}.tolerance;
  bool json = false;
  bool exif = false;
  std::string output;
  std::string class_names;
  std::string device = "cpu";
  std::vector<std::string> trusted_keys;
  std::vector<std::string> allow;
  std::string backend;
  bool strict = false;
  int threads = 0;
  int repeat = 1;
  float min_score = 0;
};

/// The failure of a step, with that step's exit code.
class Failure : public std::runtime_error {
 public:
  Failure(ExitCode code, const std::string& message) : std::runtime_error(message), code_(code) {}

  ExitCode code() const noexcept { return code_; }

 private:
  ExitCode code_;
};

std::string formatted(const std::string& subject, const std::string& expected, const std::string& got,
                      const std::string& remedy) {
  return hybrid_rt::Error(hybrid_rt::ErrorKind::kOption, "detect", subject, expected, got, remedy).what();
}

template <class Step>
auto in_step(ExitCode code, const std::string& subject, Step&& step) {
  try {
    return step();
  } catch (const Failure&) {
    throw;
  } catch (const std::exception& error) {
    throw Failure(code, hybrid_rt::message_of(error, "detect", subject));
  }
}

class Stopwatch {
 public:
  double milliseconds() const {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// Accepts numbers from 0 on. CLI::Range lets NaN through.
template <typename Number>
CLI::Validator up_to(int greatest) {
  const std::string last = std::to_string(greatest);
  return CLI::Validator(
      [greatest, last](const std::string& text) -> std::string {
        Number value = 0;
        const bool is_number = CLI::detail::lexical_cast(text, value);
        const bool is_within = is_number && value >= 0 && value <= static_cast<Number>(greatest);
        return is_within ? "" : "'" + text + "' is not a number from 0 to " + last;
      },
      "0.." + last);
}

void define(CLI::App& app, Options& options) {
  const CLI::Validator is_device(
      [](const std::string& text) -> std::string {
        const std::string index = text.rfind("cuda:", 0) == 0 ? text.substr(5) : "";
        const bool is_index =
            (index.size() == 1 || index.size() == 2) &&
            std::all_of(index.begin(), index.end(), [](unsigned char c) { return std::isdigit(c) != 0; });
        return text == "cpu" || text == "cuda" || is_index ? "" : "'" + text + "' is not cpu, cuda or cuda:INDEX";
      },
      "cpu|cuda[:INDEX]");
  app.footer(kFooter);
  app.add_option("MODEL", options.model, "path of the bundle")->required();
  CLI::Option* image = app.add_option("IMAGE", options.image, "JPEG or PNG file; omit it with --verify");
  CLI::Option* verify =
      app.add_flag("--verify", options.verify, "run the bundle's golden sample and compare the results")
          ->excludes(image);
  CLI::Option* latency =
      app.add_flag("--latency", options.latency, "check the bundle's latency contract too")->needs(verify);
  app.add_option("--tolerance", options.tolerance, "fraction by which a percentile may exceed the contract's")
      ->check(up_to<double>(1000))
      ->needs(latency)
      ->capture_default_str();
  app.add_flag("--exif", options.exif, "apply the EXIF orientation of the image")->excludes(verify);
  app.add_flag("--json", options.json, "print one line of JSON instead of a table");
  app.add_option("--output", options.output, "write the image with its boxes to this PNG")->excludes(verify);
  app.add_option("--repeat", options.repeat, "time this many forwards after the first one")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  app.add_option(
      "--backend", options.backend,
      "use only these backends, best first, e.g. openvino:bf16,torchscript (default: all, in the bundle's order)");
  app.add_option("--allow", options.allow,
                 "allow only these backends, whatever the bundle asks for (default: HYBRID_RT_ALLOW, or all)")
      ->delimiter(',');
  app.add_option("--trusted-keys", options.trusted_keys,
                 "accept only bundles signed by one of these keys: PEM files (default: HYBRID_RT_TRUSTED_KEYS)");
  app.add_flag("--strict", options.strict, "fail if the first variant can't run, instead of falling back");
  app.add_option("--threads", options.threads, "CPU threads of torch and of the engines (default: torch's choice)")
      ->check(CLI::Range(1, 1024));
  app.add_option("--device", options.device, "device to run on")->check(is_device)->capture_default_str();
  app.add_option("--min-score", options.min_score,
                 "omit detections with lower scores; 0 keeps all that the detector returns")
      ->check(up_to<float>(1))
      ->capture_default_str();
  app.add_option("--class-names,--labels", options.class_names,
                 "a file of class names in place of the bundle's, one per line, the first line for label 0");
}

hybrid_rt::ClassNames read_class_names(const std::string& path) {
  hybrid_rt::ClassNames names;
  if (path.empty()) return names;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    names.push_back(line);
  }
  if (names.empty()) {
    throw Failure(kUsage, formatted("--class-names " + path, "a text file with one class name per line",
                                    "a file that can't be read", "Check the path."));
  }
  return names;
}

double time_forward(torch::jit::Module& module, const at::Tensor& image, torch::jit::IValue& output) {
  const Stopwatch stopwatch;
  output = module.forward({c10::List<at::Tensor>({image})});
  hybrid_rt::wait_for(image.device());
  return stopwatch.milliseconds();
}

torch::jit::IValue run(torch::jit::Module& module, const at::Tensor& image, int repeat, Timing& timing) {
  torch::jit::IValue first;
  torch::jit::IValue later;
  timing.first = time_forward(module, image, first);
  if (repeat > 1) time_forward(module, image, later);
  for (int i = 0; i < repeat; ++i) timing.runs.push_back(time_forward(module, image, later));
  return first;
}

void write_annotated(const Options& options, Image& image, const Result& result) {
  std::vector<Annotation> annotations;
  for (const hybrid_rt::Detection& detection : result.detections) {
    char score[16];
    std::snprintf(score, sizeof score, "%.2f", static_cast<double>(detection.score));
    annotations.push_back(
        {detection.box, detection.label, hybrid_rt::class_text(detection.label, result.class_names), score});
  }
  annotate(image, annotations);
  write_png(image, options.output);
}

void print(const std::string& text) {
  std::cout << text << std::flush;
  if (!std::cout) {
    throw Failure(kOutputUnwritable, formatted("stdout", "a stream that accepts the result", "a failed write",
                                               "Check the free disk space."));
  }
}

hybrid_rt::Verification verified(const Options& options) {
  const hybrid_rt::LoadOptions load_options{.device = c10::Device(options.device),
                                            .backend = options.backend,
                                            .threads = options.threads,
                                            .strict = options.strict,
                                            .trusted_keys = options.trusted_keys,
                                            .allow = options.allow};
  if (options.latency) {  // with the contract's number of threads, which verify() reads
    return in_step(kBundleUnloadable, options.model, [&] {
      return hybrid_rt::verify(options.model, load_options, std::nullopt,
                               hybrid_rt::LatencyOptions{.tolerance = options.tolerance});
    });
  }
  torch::jit::Module module =
      in_step(kBundleUnloadable, options.model, [&] { return hybrid_rt::load(options.model, load_options); });
  return in_step(kRunFailed, "the golden sample", [&] {
    try {
      return hybrid_rt::verify(options.model, module, load_options.device);
    } catch (const hybrid_rt::Error& error) {
      if (error.kind() != hybrid_rt::ErrorKind::kBundle) throw;
      throw Failure(kBundleUnloadable, error.what());
    }
  });
}

void verify(const Options& options) {
  if (options.threads > 0) at::set_num_threads(options.threads);
  const hybrid_rt::Verification verification = verified(options);
  print(options.json ? hybrid_rt::to_json(verification) + "\n" : to_text(verification, options.model));
  if (!verification.matches()) {
    throw Failure(kDiffers,
                  formatted(options.model, "the detector's result", verification.failures[0] + " on this machine",
                            "Try another --backend; hybrid-rt check shows which ones can run."));
  }
  if (verification.passed()) return;
  throw Failure(kTooSlow,
                formatted(options.model, "the times of its latency contract", verification.latency->failures[0],
                          "End other programs, or measure a contract on this machine: hybrid-rt measure."));
}

void detect(const Options& options) {
  if (options.threads > 0) at::set_num_threads(options.threads);
  const c10::Device device(options.device);
  Result result;
  result.class_names = read_class_names(options.class_names);

  const Stopwatch decode_stopwatch;
  Image image = in_step(kImageUnreadable, options.image, [&] {
    return read_image(options.image, options.exif ? Orientation::kExif : Orientation::kAsStored);
  });
  result.timing.decode = decode_stopwatch.milliseconds();
  if (!image.warning.empty()) {
    std::cerr << "hybrid-rt-detect: warning: " << options.image << ": " << image.warning << '\n';
  }

  const Stopwatch load_stopwatch;
  torch::jit::Module module = in_step(kBundleUnloadable, options.model, [&] {
    return hybrid_rt::load(options.model, {.device = device,
                                           .backend = options.backend,
                                           .threads = options.threads,
                                           .strict = options.strict,
                                           .trusted_keys = options.trusted_keys,
                                           .allow = options.allow,
                                           .pin_threads = true});
  });
  result.timing.load = load_stopwatch.milliseconds();
  if (options.class_names.empty()) result.class_names = hybrid_rt::class_names(module);

  in_step(kRunFailed, "forward", [&] {
    const c10::InferenceMode inference_mode;
    hybrid_rt::require_picture_input(module);
    const Stopwatch tensor_stopwatch;
    const at::Tensor pixels = at::from_blob(image.rgb.data(), {image.height, image.width, 3}, at::kByte);
    const at::Tensor input = hybrid_rt::to_image(pixels, device);
    hybrid_rt::wait_for(device);  // otherwise the copy would count as part of the first forward
    result.timing.decode += tensor_stopwatch.milliseconds();
    const torch::jit::IValue output = run(module, input, options.repeat, result.timing);
    result.detections = hybrid_rt::detections_from(output, /*images=*/1)[0].objects;
    result.engines = hybrid_rt::engines(module);
  });
  if (options.min_score > 0) {
    std::erase_if(result.detections,
                  [&](const hybrid_rt::Detection& found) { return found.score < options.min_score; });
  }

  if (!options.output.empty()) {
    in_step(kOutputUnwritable, options.output, [&] { write_annotated(options, image, result); });
  }
  print(options.json ? to_json(result) + "\n" : to_table(result));
}

int report(ExitCode code, const std::string& message) {
  std::cerr << "hybrid-rt-detect: error: " << hybrid_rt::on_one_line(message) << std::endl;
  return code;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    Options options;
    CLI::App app(kDescription, "hybrid-rt-detect");
    define(app, options);
    try {
      app.parse(argc, argv);
    } catch (const CLI::CallForHelp&) {
      print(app.help());
      return kOk;
    } catch (const CLI::ParseError& error) {
      return report(kUsage, formatted("command line", "MODEL IMAGE and options",
                                      "\"" + std::string(error.what()) + "\"", "hybrid-rt-detect --help shows them."));
    }
    if (!options.verify && options.image.empty()) {
      return report(kUsage, formatted("command line", "MODEL IMAGE and options", "\"IMAGE is required\"",
                                      "hybrid-rt-detect --help shows them."));
    }
    options.verify ? verify(options) : detect(options);
    return kOk;
  } catch (const Failure& failure) {
    return report(failure.code(), failure.what());
  } catch (const std::exception& error) {
    return report(kUnexpected, hybrid_rt::message_of(error, "detect", "the program"));
  } catch (...) {
    return report(kUnexpected, formatted("the program", "no failure", "an unknown exception", "Please report it."));
  }
}
