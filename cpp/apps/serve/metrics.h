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

/// What /metrics tells, by prometheus-cpp. All methods may be called from several threads.
class Metrics {
 public:
  /// What a model looks like at this moment.
  struct Model {
    std::string name;
    std::size_t queued = 0;
    std::size_t queue_capacity = 0;
    int workers = 0;
    std::vector<EngineChoice> engines{};
  };

  Metrics();

  /// A request was answered. `model` is empty if it named none that is here.
  void request(const std::string& model, int status);
  /// A picture's time in a stage: queue, decode, run; or a request's in "total".
  void stage(const std::string& model, const std::string& stage, double seconds);
  void batch(const std::string& model, std::size_t pictures);
  void reload(bool succeeded);

  /// Prometheus's text format.
  std::string text(const std::vector<Model>& models, bool is_ready);

 private:
  prometheus::Registry registry_;
  prometheus::Family<prometheus::Counter>& requests_;
  prometheus::Family<prometheus::Histogram>& stages_;
  prometheus::Family<prometheus::Histogram>& batches_;
  prometheus::Family<prometheus::Counter>& reloads_;
};

}  // namespace hybrid_rt::serve
