#include "service.h"

#include <arpa/inet.h>
#include <hybrid_rt/message.h>
#include <openssl/crypto.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cmath>
#include <mutex>
#include <string_view>

#include "answer.h"
#include "files.h"
#include "log.h"

namespace hybrid_rt::serve {
namespace {

using Clock = std::chrono::steady_clock;
using nlohmann::ordered_json;

constexpr const char* kJson = "application/json";
constexpr const char* kText = "text/plain; charset=utf-8";
/// Allows the page's own style and script, images that the user gives it, and this service; nothing from elsewhere.
constexpr const char* kPagePolicy =
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src blob: data:; connect-src "
    "'self'; "
    "form-action 'none'; frame-ancestors 'none'; base-uri 'none'";

/// Returns the host in lower case without port and brackets: "::1" for "[::1]:8080".
std::string host_name(const std::string& host) {
  const bool is_v6 = !host.empty() && host.front() == '[';
  std::string name = is_v6 ? host.substr(1, host.find(']') - 1) : host.substr(0, host.find(':'));
  std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
  return name;
}

bool is_address(const std::string& name) {
  in6_addr address{};
  return inet_pton(AF_INET, name.c_str(), &address) == 1 || inet_pton(AF_INET6, name.c_str(), &address) == 1;
}

/// The scheme is case-insensitive (RFC 9110). The token is compared in constant time, so that the time does not reveal
/// how much of it is right.
bool has_token(const std::string& authorization, const std::string& token) {
  constexpr std::string_view kScheme = "bearer ";
  if (authorization.size() != kScheme.size() + token.size()) return false;
  for (std::size_t i = 0; i < kScheme.size(); ++i) {
    if (std::tolower(static_cast<unsigned char>(authorization[i])) != kScheme[i]) return false;
  }
  return CRYPTO_memcmp(authorization.data() + kScheme.size(), token.data(), token.size()) == 0;
}

HttpAnswer refusal(int status, const std::string& subject, const std::string& expected, const std::string& got,
                   const std::string& remedy, const std::string& request_id) {
  return problem(status, RequestError(status, subject, expected, got, remedy).what(), request_id);
}

HttpAnswer not_found(const std::string& request_id) {
  return refusal(404, "path", "a path of GET /openapi.json", "an unknown one", "Open / for help.", request_id);
}

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

at::Tensor tensor_of(const ImageTensor& sent) {
  // Copied, because bytes in a body have any alignment and the detector may write into its input.
  const bool is_bytes = sent.type == ImageTensor::Type::kBytes;
  at::Tensor tensor = is_bytes ? at::empty({sent.height, sent.width, 3}, at::kByte)
                               : at::empty({3, sent.height, sent.width}, at::kFloat);
  std::copy(sent.data.begin(), sent.data.end(), static_cast<std::uint8_t*>(tensor.mutable_data_ptr()));
  return tensor;
}

HttpAnswer answer_of_error(const std::exception_ptr& error, const std::string& request_id) {
  const auto with_retry = [](HttpAnswer answer, std::chrono::seconds after) {
    answer.headers.emplace_back("Retry-After", std::to_string(after.count()));
    return answer;
  };
  try {
    std::rethrow_exception(error);
  } catch (const BusyError& busy) {
    return with_retry(problem(503, busy.what(), request_id), busy.retry_after());
  } catch (const RequestError& wrong) {
    return problem(wrong.status(), wrong.what(), request_id);
  } catch (const apps::ImageError& wrong) {
    return problem(422, wrong.what(), request_id);
  } catch (const Error& failed) {
    const int status = failed.kind() == ErrorKind::kInput ? 422 : failed.kind() == ErrorKind::kDeadline ? 504 : 500;
    return problem(status, failed.what(), request_id);
  } catch (const std::exception& failed) {
    return problem(500, message_of(failed, "serve", "request"), request_id);
  }
}

}  // namespace

/// A request for detections, shared by those of its images that are in progress.
struct Service::Work {
  HttpRequest request;
  HttpServer::Reply send;
  DetectQuery query;
  std::string model;
  std::vector<SentImage> images;
  ImageRules rules;
  std::vector<EngineChoice> engines;
  apps::Image decoded;  ///< the image of an annotated answer
  std::atomic<bool> is_answered{false};

  std::mutex mutex;  // guards the members below
  std::vector<DetectResult> results;
  std::exception_ptr error;  ///< the first error
  std::size_t left = 0;
  std::vector<std::uint64_t> tickets;  ///< the watchdog's tickets, by image
};

/// Everything about a route, in one place.
struct Service::Route {
  const char* path;
  const char* method;
  bool is_public = false;     ///< needs no token
  bool takes_images = false;  ///< requests are counted and logged, and their content type is checked
  /// Answers immediately, or later from another thread.
  void (*handle)(Service& service, HttpRequest request, HttpServer::Reply reply);
};

const Service::Route* Service::route_of(const std::string& path) {
  using Reply = HttpServer::Reply;
  static const Route routes[] = {
      {.path = "/",
       .method = "GET",
       .is_public = true,
       .handle =
           [](Service&, HttpRequest, Reply reply) {
             reply({200, "text/html; charset=utf-8", kPage, {{"Content-Security-Policy", kPagePolicy}}});
           }},
      {.path = "/openapi.json",
       .method = "GET",
       .is_public = true,
       .handle = [](Service&, HttpRequest, Reply reply) { reply({200, kJson, kOpenApi}); }},
      {.path = "/healthz",
       .method = "GET",
       .is_public = true,
       .handle = [](Service&, HttpRequest, Reply reply) { reply({200, kText, "ok\n"}); }},
      {.path = "/readyz",
       .method = "GET",
       .is_public = true,
       .handle = [](Service& service, HttpRequest, Reply reply) { reply(service.readiness()); }},
      {.path = "/metrics",
       .method = "GET",
       .handle = [](Service& service, HttpRequest, Reply reply) { reply(service.metrics_text()); }},
      {.path = "/v1/models",
       .method = "GET",
       .handle = [](Service& service, HttpRequest, Reply reply) { reply(service.models_list()); }},
      {.path = "/v1/detect",
       .method = "POST",
       .takes_images = true,
       .handle = [](Service& service, HttpRequest request,
                    Reply reply) { service.detect(std::move(request), std::move(reply)); }},
      {.path = "/v1/reload",
       .method = "POST",
       .handle = [](Service& service, HttpRequest request,
                    Reply reply) { service.reload_aside(request, std::move(reply)); }},
  };
  const auto* const found =
      std::find_if(std::begin(routes), std::end(routes), [&](const Route& route) { return path == route.path; });
  return found == std::end(routes) ? nullptr : found;
}

Service::Service(const ServiceOptions& options)
    : options_(options),
      models_(options.models, options.detector),
      watchdog_(
          {.limit = options.stuck, .workers = options.detector.workers, .all_stuck = [this](const std::string& model) {
             is_stuck_ = true;
             if (options_.on_stuck) options_.on_stuck(model);
           }}) {}

Service::~Service() { finish(); }

void Service::load() {
  models_.load();
  is_ready_ = true;
}

void Service::stop_taking() { is_stopping_ = true; }

void Service::finish() {
  models_.stop();
  if (reloader_.joinable()) reloader_.join();
}

Models::Reloaded Service::reload() {
  Models::Reloaded reloaded = models_.reload();
  metrics_.reload(reloaded.failures.empty());
  log_event(reloaded.failures.empty() ? "info" : "error", "reloaded",
            {{"models", reloaded.names}, {"failures", reloaded.failures}});
  return reloaded;
}

std::optional<HttpAnswer> Service::foreign_page(const HttpRequest& request) const {
  const std::string& id = request.request_id;
  const std::string& site = request.fetch_site;
  if (site == "cross-site" || site == "same-site") {
    return refusal(403, "Sec-Fetch-Site", "same-origin", site + ": a request from a page of another site",
                   "Use the service's own page, or a program.", id);
  }
  if (site.empty() && request.origin.empty()) return std::nullopt;  // not a browser
  const std::string::size_type scheme = request.origin.find("://");
  const bool is_own =
      request.origin.empty() || (scheme != std::string::npos && request.origin.substr(scheme + 3) == request.host);
  if (!is_own) {
    return refusal(403, "Origin", "the service's own page at " + shown(request.host), shown(request.origin),
                   "Use the service's own page, or a program.", id);
  }
  // If a foreign name server resolves a name to this machine, pages of that name have the same origin.
  const std::string name = host_name(request.host);
  const auto& allowed = options_.allowed_hosts;
  if (is_address(name) || name == "localhost" || std::find(allowed.begin(), allowed.end(), name) != allowed.end()) {
    return std::nullopt;
  }
  return refusal(403, "Host", "an address, localhost or a name of --allowed-host", shown(request.host),
                 "Start the service with --allowed-host NAME, if the name is yours.", id);
}

std::optional<HttpAnswer> Service::admit(const HttpRequest& request) const {
  const std::string& id = request.request_id;
  const Route* const route = route_of(request.path);
  if (route == nullptr || (!route->is_public && !options_.token.empty())) {
    // Checked before the answer reveals what exists.
    if (!options_.token.empty() && !has_token(request.authorization, options_.token)) {
      HttpAnswer answer = refusal(401, "Authorization", "Bearer and the service's token",
                                  request.authorization.empty() ? "none" : "another token", "Send the token.", id);
      answer.headers.emplace_back("WWW-Authenticate", "Bearer");
      return answer;
    }
  }
  if (route == nullptr) return not_found(id);
  const bool is_get = std::string_view(route->method) == "GET";
  if (request.method != route->method && !(is_get && request.method == "HEAD")) {
    const std::string allowed = is_get ? "GET, HEAD" : route->method;
    HttpAnswer answer = refusal(405, "method", allowed, "another method", "GET /openapi.json describes it.", id);
    answer.headers.emplace_back("Allow", allowed);
    return answer;
  }
  // A page of another site can make a browser send requests that need no permission. This service's own page is
  // "same-origin".
  if (!is_get) {
    if (std::optional<HttpAnswer> foreign = foreign_page(request)) return foreign;
  }
  if (!is_get && (is_stopping_ || !is_ready_)) {
    HttpAnswer answer = refusal(503, "service", "one that is ready",
                                is_stopping_ ? "one that is stopping" : "one that is loading", "Retry in 1 s.", id);
    answer.headers.emplace_back("Retry-After", "1");
    refused(request, answer.status);
    return answer;
  }
  if (route->takes_images && !is_known_type(request.content_type)) {
    refused(request, 415);
    return refusal(415, "Content-Type",
                   "image/jpeg, image/png, application/octet-stream, multipart/form-data or application/x-safetensors",
                   request.content_type.empty() ? "none" : shown(request.content_type), "Set the Content-Type header.",
                   id);
  }
  return std::nullopt;
}

void Service::refused(const HttpRequest& request, int status) const {
  const Route* const route = route_of(request.path);
  if (route == nullptr || !route->takes_images) return;
  metrics_.request("", status);
  log_event("info", "request", {{"request_id", request.request_id}, {"status", status}});
}

void Service::handle(HttpRequest request, HttpServer::Reply reply) {
  const Route* const route = route_of(request.path);
  if (route == nullptr) return reply(not_found(request.request_id));
  route->handle(*this, std::move(request), std::move(reply));
}

HttpAnswer Service::readiness() const {
  const bool is_ready = is_ready_ && !is_stopping_ && !is_stuck_;
  return {is_ready ? 200 : 503, kText, is_ready ? "ready\n" : "not ready\n"};
}

HttpAnswer Service::models_list() const {
  ordered_json models = ordered_json::array();
  for (const auto& [name, detector] : models_.all()) {
    const DetectorStatus status = detector->status();
    ordered_json engines = ordered_json::object();
    for (const EngineChoice& engine : status.engines) {
      for (const std::string& segment : engine.segments) engines[segment] = engine.backend;
    }
    models.push_back({{"name", name},
                      {"state", "ready"},
                      {"engines", engines},
                      {"class_names", options_.class_names.empty() ? *status.class_names : options_.class_names},
                      {"loads", status.loads},
                      {"queued", status.queued},
                      {"workers", options_.detector.workers},
                      {"queue_capacity", options_.detector.queue_capacity}});
  }
  // A file of --class-names may contain invalid UTF-8.
  return {200, kJson, ordered_json{{"models", models}}.dump(-1, ' ', false, ordered_json::error_handler_t::replace)};
}

HttpAnswer Service::metrics_text() const {
  std::vector<Metrics::Model> models;
  for (const auto& [name, detector] : models_.all()) {
    const DetectorStatus status = detector->status();
    models.push_back(
        {name, status.queued, options_.detector.queue_capacity, options_.detector.workers, status.engines});
  }
  return {200, "text/plain; version=0.0.4; charset=utf-8", metrics_.text(models, is_ready_ && !is_stopping_)};
}

void Service::detect(HttpRequest request, HttpServer::Reply reply) {
  const auto work = std::make_shared<Work>();
  work->request = std::move(request);
  work->send = std::move(reply);
  try {
    work->query = read_query(work->request);
    const auto detector = models_.find(work->query.model);
    if (detector == nullptr) {
      const bool is_named = !work->query.model.empty();
      throw RequestError(is_named ? 404 : 400, "query model", "the name of a model",
                         is_named ? "an unknown name" : "none", "GET /v1/models lists them.");
    }
    work->model = work->query.model;
    for (const auto& [name, each] : models_.all()) {
      if (each == detector) work->model = name;
    }
    work->engines = detector->status().engines;
    work->rules = options_.rules;
    if (work->query.exif) {
      work->rules.orientation = *work->query.exif ? apps::Orientation::kExif : apps::Orientation::kAsStored;
    }
    work->images = read_images(work->request, work->rules);
    if (work->query.annotated && work->images.size() != 1) {
      throw RequestError(400, "query annotated", "one image", std::to_string(work->images.size()),
                         "Send them one by one.");
    }
    submit(work, *detector);
  } catch (const std::exception&) {
    this->reply(*work, answer_of_error(std::current_exception(), work->request.request_id));
  }
}

void Service::submit(const std::shared_ptr<Work>& work, Detector& detector) {
  std::vector<DetectRequest> requests;
  for (std::size_t i = 0; i < work->images.size(); ++i) requests.push_back(request_for(work, i));
  work->left = requests.size();
  work->results.resize(requests.size());
  work->tickets.resize(requests.size());
  detector.submit(std::move(requests));
}

DetectRequest Service::request_for(const std::shared_ptr<Work>& work, std::size_t image) const {
  // None of these owns the detector: if a worker released the last reference, it would wait for itself.
  DetectRequest request;
  const SentImage& sent = work->images[image];
  request.size = {sent.size.height, sent.size.width};
  const std::int64_t deadline = work->query.deadline_ms.value_or(options_.deadline_ms);
  if (deadline > 0) request.deadline = work->request.received + std::chrono::milliseconds(deadline);
  request.pixels = [this, work, image, &sent]() -> at::Tensor {
    const std::uint64_t ticket = watchdog_.begin(work->model, [this, work] { give_up(*work); });
    {
      const std::lock_guard lock(work->mutex);
      work->tickets[image] = ticket;
    }
    if (sent.tensor) {
      check_pixels(sent);
      return tensor_of(*sent.tensor);
    }
    auto decoded = std::make_shared<apps::Image>(
        apps::decode_image(sent.encoded, sent.name, work->rules.limits, work->rules.orientation));
    if (!decoded->warning.empty()) {
      log_event("warning", "picture", {{"request_id", work->request.request_id}, {"text", decoded->warning}});
    }
    if (work->query.annotated) work->decoded = *decoded;
    return at::from_blob(decoded->rgb.data(), {decoded->height, decoded->width, 3}, [decoded](void*) {}, at::kByte);
  };
  request.done = [this, work, image](DetectOutcome outcome) {
    {
      const std::lock_guard lock(work->mutex);
      watchdog_.end(work->tickets[image]);
      work->results[image] = std::move(outcome.result);
      if (outcome.error && !work->error) work->error = outcome.error;
      if (--work->left > 0) return;
    }
    try {
      reply(*work, work->error ? answer_of_error(work->error, work->request.request_id) : answer_of(*work));
    } catch (const std::exception&) {
      reply(*work, answer_of_error(std::current_exception(), work->request.request_id));
    }
  };
  return request;
}

HttpAnswer Service::answer_of(Work& work) const {
  const AnswerOptions options{work.query.min_score, work.query.masks, options_.class_names};
  for (const DetectResult& result : work.results) {
    metrics_.stage(work.model, "queue", result.timing.queue);
    metrics_.stage(work.model, "decode", result.timing.decode);
    metrics_.stage(work.model, "run", result.timing.run);
    metrics_.batch(work.model, result.batch);
  }
  if (work.query.annotated) {
    if (const auto& tensor = work.images[0].tensor) {
      if (tensor->type == ImageTensor::Type::kFloats) {
        throw RequestError(400, "query annotated", "a JPEG, PNG or U8 tensor", "an F32 tensor", "Send bytes.");
      }
      work.decoded = {static_cast<int>(tensor->width),
                      static_cast<int>(tensor->height),
                      {tensor->data.begin(), tensor->data.end()}};
    }
    draw(work.decoded, work.results[0], options);
    const std::vector<std::uint8_t> png = apps::encode_png(work.decoded);
    return {200, "image/png", {png.begin(), png.end()}};
  }
  Answer answer{work.request.request_id, work.model, std::move(work.results), work.engines,
                seconds_since(work.request.received)};
  std::string json = to_json(answer, options);
  work.results = std::move(answer.images);  // for the log
  return {200, kJson, std::move(json)};
}

void Service::give_up(Work& work) const {
  HttpAnswer answer =
      refusal(503, "detector", "a result within " + std::to_string(options_.stuck.count()) + " ms",
              "a worker that is stuck", "Retry; the log reports the state of the worker.", work.request.request_id);
  answer.headers.emplace_back("Retry-After", "1");
  reply(work, answer);
}

void Service::reply(Work& work, const HttpAnswer& answer) const {
  if (work.is_answered.exchange(true)) return;  // it was abandoned
  const double total = seconds_since(work.request.received);
  metrics_.request(work.model, answer.status);
  if (answer.status == 200) metrics_.stage(work.model, "total", total);
  ordered_json fields = {{"request_id", work.request.request_id},
                         {"model", work.model},
                         {"status", answer.status},
                         {"pictures", work.images.size()},
                         {"total_ms", std::round(total * 1e6) / 1e3}};
  if (answer.status == 200) {
    std::size_t objects = 0;
    for (const DetectResult& result : work.results) objects += result.detections.objects.size();
    fields["objects"] = objects;
  } else if (const auto document = ordered_json::parse(answer.body, nullptr, false); document.is_object()) {
    fields["detail"] = document.value("detail", "");
  }
  log_event(answer.status < 500 ? "info" : "warning", "request", fields);
  work.send(answer);
}

void Service::reload_aside(const HttpRequest& request, HttpServer::Reply reply) {
  const std::string id = request.request_id;
  if (is_reloading_.exchange(true)) {
    return reply(
        refusal(409, "reload", "one reload at a time", "another one in progress", "Retry when it is done.", id));
  }
  if (reloader_.joinable()) reloader_.join();                     // it has ended, or is about to end
  reloader_ = std::thread([this, id, reply = std::move(reply)] {  // seconds of work
    const Models::Reloaded reloaded = reload();
    std::string text;
    for (const std::string& failure : reloaded.failures) text += (text.empty() ? "" : " ") + failure;
    reply(text.empty() ? HttpAnswer{200, kJson,
                                    ordered_json{{"reloaded", reloaded.names}}.dump(
                                        -1, ' ', false, ordered_json::error_handler_t::replace)}
                       : problem(500, text, id));
    is_reloading_ = false;
  });
}

}  // namespace hybrid_rt::serve
