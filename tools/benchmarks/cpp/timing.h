#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

/// Returns the milliseconds of one call.
inline double timed(const std::function<void()>& call) {
  const auto start = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

/// Returns the nearest-rank percentile.
inline double percentile(std::vector<double> values, double percent) {
  std::sort(values.begin(), values.end());
  const auto rank = static_cast<size_t>(std::ceil(values.size() * percent / 100.0));
  return values[std::max<size_t>(rank, 1) - 1];
}

/// Runs the cases alternately, so that fluctuations of the machine affect all of them. `warm_up` rounds are not
/// counted.
inline nlohmann::json interleaved(const std::vector<std::pair<std::string, std::function<void()>>>& cases, int warm_up,
                                  int rounds) {
  std::vector<std::vector<double>> times(cases.size());
  std::vector<double> first(cases.size());
  for (int round = -warm_up; round < rounds; ++round) {
    for (size_t i = 0; i < cases.size(); ++i) {
      const double time = timed(cases[i].second);
      if (round == -warm_up) first[i] = time;
      if (round >= 0) times[i].push_back(time);
    }
  }
  nlohmann::json result = nlohmann::json::object();
  for (size_t i = 0; i < cases.size(); ++i) {
    result[cases[i].first] = {{"median_ms", percentile(times[i], 50)},
                              {"p95_ms", percentile(times[i], 95)},
                              {"first_ms", first[i]},
                              {"rounds", rounds}};
  }
  return result;
}
