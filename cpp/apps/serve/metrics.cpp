#include "metrics.h"

#include <prometheus/text_serializer.h>
#include <unistd.h>

#include <fstream>
#include <functional>

namespace hybrid_rt::serve {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

const prometheus::Histogram::BucketBoundaries kSeconds{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,
                                                       0.25,  0.5,    1,     2.5,  5,     10,   30};
const prometheus::Histogram::BucketBoundaries kImages{1, 2, 4, 8, 16, 32, 64};

/// Creates a gauge whose value is read at the time of a request.
MetricFamily gauge(const std::string& name, const std::string& help) { return {name, help, MetricType::Gauge, {}}; }

void add(MetricFamily& family, const std::vector<std::pair<std::string, std::string>>& labels, double value) {
  ClientMetric metric;
  for (const auto& [name, text] : labels) metric.label.push_back({name, text});
  metric.gauge.value = value;
  family.metric.push_back(std::move(metric));
}

double resident_bytes() {
  std::ifstream file("/proc/self/statm");
  long pages = 0;
  long resident = 0;
  file >> pages >> resident;
  return static_cast<double>(resident) * static_cast<double>(sysconf(_SC_PAGESIZE));
}

}  // namespace

Metrics::Metrics()
    : requests_(prometheus::BuildCounter()
                    .Name("hybrid_rt_requests_total")
                    .Help("Requests for detections that were answered, by status code.")
                    .Register(registry_)),
      stages_(prometheus::BuildHistogram()
                  .Name("hybrid_rt_stage_seconds")
                  .Help("Time of an image in each stage, and of a whole request (stage=\"total\").")
                  .Register(registry_)),
      batches_(prometheus::BuildHistogram()
                   .Name("hybrid_rt_batch_size")
                   .Help("Number of images in the call in which an image ran.")
                   .Register(registry_)),
      reloads_(prometheus::BuildCounter()
                   .Name("hybrid_rt_reloads_total")
                   .Help("Reloads of all bundles, by result.")
                   .Register(registry_)) {}

void Metrics::request(const std::string& model, int status) {
  requests_.Add({{"model", model}, {"code", std::to_string(status)}}).Increment();
}

void Metrics::stage(const std::string& model, const std::string& stage, double seconds) {
  stages_.Add({{"model", model}, {"stage", stage}}, kSeconds).Observe(seconds);
}

void Metrics::batch(const std::string& model, std::size_t images) {
  batches_.Add({{"model", model}}, kImages).Observe(static_cast<double>(images));
}

void Metrics::reload(bool succeeded) { reloads_.Add({{"result", succeeded ? "success" : "failure"}}).Increment(); }

std::string Metrics::text(const std::vector<Model>& models, bool is_ready) {
  MetricFamily queued = gauge("hybrid_rt_queue_length", "Number of images that wait for a worker.");
  MetricFamily capacity = gauge("hybrid_rt_queue_capacity", "Maximum number of images that may wait.");
  MetricFamily workers = gauge("hybrid_rt_workers", "Worker threads.");
  MetricFamily engines = gauge("hybrid_rt_engine_info", "The backend that runs a segment.");
  for (const Model& model : models) {
    add(queued, {{"model", model.name}}, static_cast<double>(model.queued));
    add(capacity, {{"model", model.name}}, static_cast<double>(model.queue_capacity));
    add(workers, {{"model", model.name}}, model.workers);
    for (const EngineChoice& engine : model.engines) {
      for (const std::string& segment : engine.segments) {
        add(engines, {{"model", model.name}, {"segment", segment}, {"backend", engine.backend}}, 1);
      }
    }
  }
  MetricFamily ready = gauge("hybrid_rt_ready", "1 if the service takes requests.");
  add(ready, {}, is_ready ? 1 : 0);
  MetricFamily memory = gauge("process_resident_memory_bytes", "Resident memory.");
  add(memory, {}, resident_bytes());

  std::vector<MetricFamily> families = registry_.Collect();
  for (MetricFamily& each : {std::ref(queued), std::ref(capacity), std::ref(workers), std::ref(engines),
                             std::ref(ready), std::ref(memory)}) {
    families.push_back(std::move(each));
  }
  return prometheus::TextSerializer().Serialize(families);
}

}  // namespace hybrid_rt::serve
