// hybrid-rt-serve: serves bundles over HTTP.

#include <hybrid_rt/log.h>
#include <hybrid_rt/message.h>
#include <malloc.h>
#include <pthread.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <future>
#include <iostream>
#include <sstream>
#include <thread>

#include "log.h"
#include "service.h"

namespace {

using namespace hybrid_rt::serve;

enum ExitCode { kOk = 0, kUnexpected = 1, kUsage = 2, kBundleUnloadable = 4, kAddressUnavailable = 5, kStuck = 6 };

constexpr const char* kDescription =
    "Serves bundles (.pt) from hybrid_rt.convert over HTTP.\n"
    "POST a JPEG or PNG to /v1/detect. Open / in a browser to try it; /openapi.json describes the API.";

constexpr const char* kFooter =
    R"(The server binds to loopback unless --host names an address. It does not encrypt: put it behind a proxy that does.

Each worker runs one image (or batch) at a time with --threads threads, so workers x threads should equal the number of
cores. More workers increase the throughput; more threads shorten each request. An image waits in a queue of --queue
places for a worker. If the queue is full, or a deadline can't be met, the answer is 503 with Retry-After.

Signals: TERM and INT finish accepted requests, then exit with 0. HUP reloads the bundles without losing a request.
Logs: one JSON object per line on stderr.

Exit codes: 0 stopped, 1 unexpected error, 2 wrong usage, 4 a bundle can't be loaded, 5 the address can't be bound,
6 every worker of a model was stuck for --stuck-seconds: restart the service.)";

struct Options {
  ServiceOptions service{};
  HttpOptions http{};
  std::string device = "cpu";
  std::string token_file;
  std::string class_names;
  std::string warm_up;
  bool exif = false;
  double max_delay_ms = 0;
  std::size_t max_body_mb = 32;
  std::size_t max_megapixels = 25;
  int drain_seconds = 30;
  double stuck_seconds = 600;
};

void define(CLI::App& app, Options& options) {
  auto& detector = options.service.detector;
  const auto number = [&app](const char* name, auto& value, const char* help, auto least, auto greatest) {
    app.add_option(name, value, help)->check(CLI::Range(least, greatest))->capture_default_str();
  };
  app.footer(kFooter);
  app.add_option("MODEL", options.service.models, "bundles, or directories of bundles; each is named after its file")
      ->required();
  app.add_option("--host", options.http.host, "address to bind")->capture_default_str();
  app.add_option("--port", options.http.port, "port to bind; 0: any free port")->capture_default_str();
  number("--workers", detector.workers, "number of worker threads per model", 1, 1024);
  app.add_option("--threads", detector.load.threads,
                 "threads per worker (default: the cores, divided among the workers)")
      ->check(CLI::Range(1, 1024));
  number("--queue", detector.queue_capacity, "number of images per model that may wait", 1, 1'000'000);
  number("--deadline-ms", options.service.deadline_ms, "deadline of requests that do not set one; 0: none", 0,
         86'400'000);
  number("--max-batch", detector.max_batch, "maximum number of images of similar size per call", 1, 1024);
  number("--max-delay-ms", options.max_delay_ms, "time that an image may wait for others to share its call", 0.0,
         10'000.0);
  number("--size-bucket", detector.size_bucket, "granularity of similar sizes, in pixels", 1, 16'384);
  number("--max-body-mb", options.max_body_mb, "maximum size of a request body, in MiB", 1, 4096);
  number("--max-pixels-mp", options.max_megapixels, "maximum size of an image, in megapixels", 1, 268);
  number("--max-images,--max-pictures", options.service.rules.max_images, "maximum number of images per request", 1,
         1024);
  app.add_flag("--exif", options.exif, "apply the EXIF orientation of images, unless a request has exif=false");
  number("--max-connections", options.http.max_connections, "maximum number of open connections", 1, 100'000);
  app.add_option("--token-file", options.token_file, "require the bearer token in this file");
  app.add_option("--allowed-host", options.service.allowed_hosts,
                 "host name under which browsers reach the page, in addition to localhost and addresses");
  app.add_option("--trusted-keys", detector.load.trusted_keys,
                 "serve only bundles signed by one of these keys: PEM files (default: HYBRID_RT_TRUSTED_KEYS)");
  app.add_option("--allow", detector.load.allow,
                 "allow only these backends, whatever a bundle asks for, e.g. openvino,torchscript (default: "
                 "HYBRID_RT_ALLOW, or all)")
      ->delimiter(',');
  app.add_option(
      "--backend", detector.load.backend,
      "use only these backends, best first, e.g. openvino:bf16,torchscript (default: all, in the bundle's order)");
  app.add_flag("--strict", detector.load.strict, "fail if the first variant can't run, instead of falling back");
  app.add_option("--device", options.device, "device: cpu, cuda or cuda:INDEX")->capture_default_str();
  app.add_option("--warm-up", options.warm_up, "image sizes HEIGHTxWIDTH,... to run before the service is ready")
      ->default_str("480x640");
  app.add_option("--class-names,--labels", options.class_names,
                 "file of class names that replace the bundles', one per line, the first line for label 0");
  number("--stuck-seconds", options.stuck_seconds,
         "time that a worker may spend on one image before its request gets 503; the program ends once all workers of "
         "a model are stuck; 0: unlimited",
         0.0, 86'400.0);
  number("--drain-seconds", options.drain_seconds, "time that requests may still take after TERM", 0, 3600);
}

hybrid_rt::Error wrong(const std::string& subject, const std::string& expected, const std::string& got,
                       const std::string& remedy) {
  return {hybrid_rt::ErrorKind::kOption, "serve", subject, expected, got, remedy};
}

std::vector<std::string> lines_of(const std::string& option, const std::string& path) {
  std::ifstream file(path);
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    lines.push_back(line);
  }
  if (lines.empty()) throw wrong(option + " " + path, "a text file", "a file that can't be read", "Check the path.");
  return lines;
}

std::vector<std::pair<std::int64_t, std::int64_t>> sizes_of(const std::string& text) {
  std::vector<std::pair<std::int64_t, std::int64_t>> sizes;
  std::istringstream words(text);
  for (std::string word; std::getline(words, word, ',');) {
    long height = 0;
    long width = 0;
    int used = 0;
    if (std::sscanf(word.c_str(), "%ldx%ld%n", &height, &width, &used) != 2 || used != static_cast<int>(word.size()) ||
        height < 1 || width < 1 || height > 16'384 || width > 16'384) {
      throw wrong("--warm-up", "HEIGHTxWIDTH,... of 1 to 16384", "'" + word + "'", "Pass image sizes.");
    }
    sizes.emplace_back(height, width);
  }
  return sizes;
}

/// A thread that is stuck in a vendor's call can't be ended, so this ends the process for the supervisor to restart it.
void end_stuck(const std::string& model) {
  log_event("error", "stopped", {{"reason", "every worker is stuck"}, {"model", model}});
  std::this_thread::sleep_for(std::chrono::seconds(1));  // time to send the answers
  std::_Exit(kStuck);
}

/// Completes and checks the options before anything is loaded.
void complete(Options& options) {
  auto& service = options.service;
  try {
    service.detector.load.device = c10::Device(options.device);
  } catch (const std::exception&) {
    throw wrong("--device", "cpu, cuda or cuda:INDEX", "'" + options.device + "'", "Pass one of these.");
  }
  service.detector.load.warm_up = sizes_of(options.warm_up.empty() ? "480x640" : options.warm_up);
  service.detector.max_delay = std::chrono::microseconds(static_cast<std::int64_t>(options.max_delay_ms * 1000));
  service.stuck = std::chrono::milliseconds(static_cast<std::int64_t>(std::ceil(options.stuck_seconds * 1000)));
  service.on_stuck = &end_stuck;
  service.rules.limits.max_pixels = static_cast<std::int64_t>(options.max_megapixels) * 1'000'000;
  if (options.exif) service.rules.orientation = hybrid_rt::apps::Orientation::kExif;
  options.http.max_body = options.max_body_mb << 20;
  options.http.max_buffered = std::max(options.http.max_buffered, 4 * options.http.max_body);
  options.http.max_parts = service.rules.max_images;
  if (!options.class_names.empty()) service.class_names = lines_of("--class-names", options.class_names);
  if (!options.token_file.empty()) {
    service.token = lines_of("--token-file", options.token_file)[0];
    const bool is_fine = !service.token.empty() && std::all_of(service.token.begin(), service.token.end(),
                                                               [](char c) { return c > 0x20 && c < 0x7f; });
    if (!is_fine) throw wrong("--token-file", "a token of printable characters", "another line", "Write one there.");
  }
}

void log_messages() {
  hybrid_rt::set_logger([](hybrid_rt::LogLevel level, const std::string& message) {
    static constexpr const char* kNames[] = {"debug", "info", "warning", "error"};
    if (level != hybrid_rt::LogLevel::kDebug) {
      log_event(kNames[static_cast<int>(level)], "message", {{"message", message}});
    }
  });
}

sigset_t blocked_signals() {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&signals, signal);
  // Blocked in this thread and in all later ones: the signals are received by waiting for them.
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  return signals;
}

/// Loads the models. A signal to stop ends the process during this time.
void load(Service& service, const sigset_t& signals) {
  std::future<void> loading = std::async(std::launch::async, [&service] { service.load(); });
  const timespec moment{0, 50'000'000};
  while (loading.wait_for(std::chrono::seconds(0)) != std::future_status::ready) {
    const int signal = sigtimedwait(&signals, nullptr, &moment);
    if (signal == SIGTERM || signal == SIGINT) {
      log_event("info", "stopped", {{"reason", "a signal while loading"}});
      std::_Exit(kOk);  // compiling an engine can't be interrupted
    }
  }
  loading.get();
}

void run_until_stopped(Service& service, const sigset_t& signals) {
  while (true) {
    int signal = 0;
    sigwait(&signals, &signal);
    if (signal != SIGHUP) return;
    service.reload();
  }
}

/// Keeps freed memory in the process. Each image's tensors are freed and allocated again for the next image. glibc
/// would return them to the kernel each time, which stalls all threads: 8 % of the throughput of two workers on
/// SSDLite.
void keep_memory() {
  mallopt(M_MMAP_THRESHOLD, 32 << 20);  // the largest value that glibc accepts
  mallopt(M_TRIM_THRESHOLD, 256 << 20);
}

ExitCode serve(const Options& options) {
  keep_memory();
  const sigset_t signals = blocked_signals();
  Service service(options.service);
  HttpServer server(
      options.http, [&service](const HttpRequest& request) { return service.admit(request); },
      [&service](HttpRequest request, HttpServer::Reply reply) {
        service.handle(std::move(request), std::move(reply));
      },
      [&service](const HttpRequest& request, int status) { service.refused(request, status); });
  const nlohmann::ordered_json address = {{"address", options.http.host}, {"port", server.port()}};
  log_event("info", "listening", address);
  load(service, signals);
  log_event("info", "serving", address);
  run_until_stopped(service, signals);

  log_event("info", "stopping");
  service.stop_taking();
  const std::chrono::seconds patience(options.drain_seconds);
  std::future<void> draining = std::async(std::launch::async, [&service] { service.finish(); });
  const bool is_done = draining.wait_for(patience) == std::future_status::ready;
  server.finish(is_done ? std::chrono::seconds(5) : std::chrono::seconds(0));
  log_event(is_done ? "info" : "error", "stopped",
            {{"reason", is_done ? "all requests are answered" : "requests took longer than --drain-seconds"}});
  if (!is_done) std::_Exit(kUnexpected);  // workers are still running
  return kOk;
}

int report(ExitCode code, const std::string& message) {
  std::cerr << "hybrid-rt-serve: error: " << hybrid_rt::on_one_line(message) << std::endl;
  return code;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    Options options;
    CLI::App app(kDescription, "hybrid-rt-serve");
    define(app, options);
    try {
      app.parse(argc, argv);
    } catch (const CLI::CallForHelp&) {
      std::cout << app.help() << std::flush;
      return kOk;
    } catch (const CLI::ParseError& error) {
      return report(kUsage, wrong("command line", "MODEL... and options", "\"" + std::string(error.what()) + "\"",
                                  "hybrid-rt-serve --help shows them.")
                                .what());
    }
    complete(options);
    log_messages();
    return serve(options);
  } catch (const AddressError& error) {
    return report(kAddressUnavailable, error.what());
  } catch (const hybrid_rt::Error& error) {
    return report(error.kind() == hybrid_rt::ErrorKind::kOption ? kUsage : kBundleUnloadable, error.what());
  } catch (const std::exception& error) {
    return report(kUnexpected, hybrid_rt::message_of(error, "serve", "the program"));
  }
}
