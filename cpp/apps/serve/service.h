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
  std::vector<std::string> models;  ///< bundles or folders
  DetectorOptions detector{};
  PictureRules rules{};
  std::int64_t deadline_ms = 0;  ///< of requests that name none; 0: none
  std::string token;             ///< empty: none is asked for
  ClassNames class_names;        ///< in place of the bundles', unless empty
  /// For which a worker may be at one picture; 0: any time.
  std::chrono::milliseconds stuck{0};
  /// All workers of a model are beyond it: no picture of it will be answered any more. From another thread.
  std::function<void(const std::string& model)> on_stuck{};
  std::vector<std::string> allowed_hosts;  ///< by which browsers reach the page, besides localhost and addresses
};

/// What the HTTP server does with requests: the routes, and from a request to its answer.
class Service {
 public:
  explicit Service(const ServiceOptions& options);
  Service(const Service&) = delete;
  Service& operator=(const Service&) = delete;
  /// finish().
  ~Service();

  /// Loads the models; the service is ready then. Throws Error.
  void load();
  /// Takes no more requests for detections. What was taken goes on.
  void stop_taking();
  /// Returns when all that was taken is answered. To be called once the HTTP loop has stopped, or takes nothing more.
  void finish();
  /// Reads the bundles anew; logs what came of it.
  Models::Reloaded reload();

  /// By the head alone: who may not, what is not there.
  std::optional<HttpAnswer> admit(const HttpRequest& request) const;
  /// Counts and logs a request whose body the server refused.
  void refused(const HttpRequest& request, int status) const;
  /// Does not wait: detections and reloads are answered from other threads.
  void handle(HttpRequest request, HttpServer::Reply reply);

 private:
  struct Route;
  struct Work;

  static const Route* route_of(const std::string& path);
  /// A refusal, if a browser asks on behalf of a page that is not the service's own.
  std::optional<HttpAnswer> foreign_page(const HttpRequest& request) const;
  HttpAnswer readiness() const;
  HttpAnswer models_list() const;
  HttpAnswer metrics_text() const;
  void detect(HttpRequest request, HttpServer::Reply reply);
  void submit(const std::shared_ptr<Work>& work, Detector& detector);
  DetectRequest request_for(const std::shared_ptr<Work>& work, std::size_t picture) const;
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
  std::thread reloader_;  ///< of the HTTP loop, and of finish() after it
};

}  // namespace hybrid_rt::serve
