#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "detect_request.h"
#include "http.h"
#include "metrics.h"
#include "models.h"
#include "watchdog.h"

namespace hybrid_rt::serve {

struct ServiceOptions {
  std::vector<std::string> models;  ///< bundles or directories
  DetectorOptions detector{};
  ImageRules rules{};
  std::int64_t deadline_ms = 0;  ///< for requests that name none; 0: no deadline
  std::string token;             ///< empty: no token is required
  ClassNames class_names;        ///< replace the bundles' names unless empty
  /// Time that a worker may spend on one image; 0: unlimited.
  std::chrono::milliseconds stuck{0};
  /// Called from another thread when all workers of a model exceed it: the model will answer no more images.
  std::function<void(const std::string& model)> on_stuck{};
  std::vector<std::string> allowed_hosts;  ///< host names of the page for browsers, besides localhost and addresses
};

/// Handles the HTTP server's requests: the routes, and the way from a request to its answer.
class Service {
 public:
  explicit Service(const ServiceOptions& options);
  Service(const Service&) = delete;
  Service& operator=(const Service&) = delete;
  /// Calls finish().
  ~Service();

  /// Loads the models. Afterwards the service is ready. Throws Error.
  void load();
  /// Accepts no more requests for detections. Accepted ones continue.
  void stop_taking();
  /// Returns when every accepted request is answered. Call it once the HTTP loop has stopped or accepts nothing more.
  void finish();
  /// Reloads the bundles and logs the result.
  Models::Reloaded reload();

  /// Refuses a request by its head alone: missing permission, or an unknown path.
  std::optional<HttpAnswer> admit(const HttpRequest& request) const;
  /// Counts and logs a request whose body the server refused.
  void refused(const HttpRequest& request, int status) const;
  /// Does not block: detections and reloads are answered from other threads.
  void handle(HttpRequest request, HttpServer::Reply reply);

 private:
  struct Route;
  struct Work;

  static const Route* route_of(const std::string& path);
  /// Returns a refusal if a browser sends the request for a page that is not the service's own.
  std::optional<HttpAnswer> foreign_page(const HttpRequest& request) const;
  HttpAnswer readiness() const;
  HttpAnswer models_list() const;
  HttpAnswer metrics_text() const;
  void detect(HttpRequest request, HttpServer::Reply reply);
  void submit(const std::shared_ptr<Work>& work, Detector& detector);
  DetectRequest request_for(const std::shared_ptr<Work>& work, std::size_t image) const;
  HttpAnswer answer_of(Work& work) const;
  void give_up(Work& work) const;
  void reply(Work& work, const HttpAnswer& answer) const;
  void reload_aside(const HttpRequest& request, HttpServer::Reply reply);

  const ServiceOptions options_;
  Models models_;
  mutable Metrics metrics_;
  std::atomic<bool> is_ready_{false};
  std::atomic<bool> is_stopping_{false};
  std::atomic<bool> is_reloading_{false};
  std::atomic<bool> is_stuck_{false};
  mutable Watchdog watchdog_;
  std::thread reloader_;  ///< used by the HTTP loop, and afterwards by finish()
};

}  // namespace hybrid_rt::serve
