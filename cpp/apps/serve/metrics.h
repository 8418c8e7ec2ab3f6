#pragma once

#include <hybrid_rt/engine_choice.h>
#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <cstddef>
#include <string>
#include <vector>

namespace hybrid_rt::serve {

/// Contents of /metrics, through prometheus-cpp. All methods may be called from several threads.
class Metrics {
 public:
  /// Current state of a model.
  struct Model {
    std::string name;
    std::size_t queued = 0;
    std::size_t queue_capacity = 0;
    int workers = 0;
    std::vector<EngineChoice> engines{};
  };

  Metrics();

  /// Counts an answered request. `model` is empty if the request named no known model.
  void request(const std::string& model, int status);
  /// Adds the time of an image in a stage ("queue", "decode", "run"), or of a request ("total").
  void stage(const std::string& model, const std::string& stage, double seconds);
  void batch(const std::string& model, std::size_t images);
  void reload(bool succeeded);

  /// Returns the metrics in Prometheus's text format.
  std::string text(const std::vector<Model>& models, bool is_ready);

 private:
  prometheus::Registry registry_;
  prometheus::Family<prometheus::Counter>& requests_;
  prometheus::Family<prometheus::Histogram>& stages_;
  prometheus::Family<prometheus::Histogram>& batches_;
  prometheus::Family<prometheus::Counter>& reloads_;
};

}  // namespace hybrid_rt::serve
