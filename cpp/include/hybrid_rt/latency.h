#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

// The latency contract of a bundle: the times that were measured on one machine, and their check on another.

namespace hybrid_rt {

/// The properties of a machine that its times depend on.
struct MachineDescription {
  std::string processor;     ///< as the kernel names it: "AMD EPYC 9R14"
  std::string architecture;  ///< "x86_64"
  int64_t cpus = 0;          ///< CPUs that this process may use
  std::string gpu{};         ///< name of the GPU that was measured; empty for the CPU

  /// Describes the machine that this process runs on; with the GPU of that index if it is 0 or more.
  static MachineDescription here(int64_t gpu = -1);

  bool operator==(const MachineDescription&) const = default;  ///< Compares every field.
};

/// Returns one line: "AMD EPYC 9R14, x86_64, 2 CPUs".
std::string to_string(const MachineDescription& machine);

/// Percentiles of the milliseconds that a call takes on images of one size: the smallest time that at least 50 % (95 %,
/// 99 %) of the calls do not exceed.
struct SizeLatency {
  int64_t height = 0;           ///< height of the images, in pixels
  int64_t width = 0;            ///< width of the images, in pixels
  int64_t count = 0;            ///< timed calls
  double p50 = 0;               ///< milliseconds
  double p95 = 0;               ///< milliseconds
  std::optional<double> p99{};  ///< absent if fewer than 100 calls were timed

  /// Computes the percentiles of the timed calls. Throws Error(kOption) if there are fewer than 20.
  static SizeLatency of(int64_t height, int64_t width, std::vector<double> milliseconds);
};

/// Contents of the field `latency_contract` of a manifest, see docs/format.md.
struct LatencyContract {
  MachineDescription machine;                  ///< where the times were measured
  std::string device;                          ///< "cpu" or "cuda"
  int64_t threads = 0;                         ///< threads of torch and of each engine
  std::map<std::string, std::string> engines;  ///< variant that ran each engine, e.g. "openvino:bf16"
  std::string input;                           ///< "golden sample" or "own inputs"
  std::string measured;                        ///< date and time, UTC
  std::vector<SizeLatency> sizes;              ///< the times, by image size

  /// Reads it from the manifest of the file at `path`. Throws Error(kBundle) if there is none, or one with values that
  /// no measurement has: times that are negative, not finite or not in order, too few calls.
  static LatencyContract from_manifest(const std::string& manifest, const std::string& path);
};

/// Options of the check of a latency contract.
struct LatencyOptions {
  /// Fraction by which a percentile may exceed the contract's.
  double tolerance = 0.25;
  /// Timed calls per size, at least 20; 0: as many as for the contract.
  int64_t repeat = 0;
  /// Sizes (height, width) to check; empty: all of the contract.
  std::vector<std::pair<int64_t, int64_t>> sizes{};
};

/// The contract's times of one size, and those measured here.
struct SizeComparison {
  SizeLatency promised;  ///< the contract's
  SizeLatency found;     ///< those of this machine
};

/// Result of checking a latency contract. `failures` lists the percentiles that are too high, `notes` what differs from
/// the contract's conditions: another machine, variant of an engine, number of threads, device or input.
struct LatencyCheck {
  MachineDescription machine{};         ///< this machine
  MachineDescription measured_on{};     ///< machine that the contract was measured on
  double tolerance = 0;                 ///< see LatencyOptions
  std::vector<SizeComparison> sizes{};  ///< by image size
  std::vector<std::string> failures{};  ///< percentiles that are too high
  std::vector<std::string> notes{};     ///< conditions that differ

  bool holds() const { return failures.empty(); }  ///< Returns true if no percentile is too high.
};

/// Converts to JSON: {"holds", "tolerance", "machine", "measured_on", "sizes", "failures", "notes"}. The field
/// `latency` of `hybrid-rt verify --latency --json`.
std::string to_json(const LatencyCheck& check);

}  // namespace hybrid_rt
