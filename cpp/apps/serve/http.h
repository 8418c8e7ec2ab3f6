#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

// HTTP/1.1 by GNU libmicrohttpd: an event loop that reads requests whole, within limits, and sends answers that come
// from other threads.

namespace hybrid_rt::serve {

struct Part {
  std::string name;
  std::string content;
};

struct HttpRequest {
  std::string method;
  std::string path;
  std::multimap<std::string, std::string> query;
  std::string content_type;  ///< lower case, without parameters
  std::string authorization;
  std::string host;         ///< of the service, as the client names it
  std::string origin;       ///< what a browser says of the page that asks: scheme, host and port
  std::string fetch_site;   ///< what a browser says of the page that asks: "same-origin", "cross-site", ...
  std::string request_id;   ///< the client's, or one of ours
  std::string body;         ///< unless it is multipart
  std::vector<Part> parts;  ///< of multipart/form-data
  std::chrono::steady_clock::time_point received{};  ///< when its head was read
};

struct HttpAnswer {
  int status = 200;
  std::string content_type;
  std::string body;
  std::vector<std::pair<std::string, std::string>> headers{};
};

/// A problem document (RFC 9457).
HttpAnswer problem(int status, const std::string& detail, const std::string& request_id);

struct HttpOptions {
  std::string host = "127.0.0.1";
  std::uint16_t port = 8080;                          ///< 0: any that is free
  std::size_t max_body = std::size_t{32} << 20;       ///< bytes of a request's body
  std::size_t max_parts = 16;                         ///< of a multipart body
  std::size_t max_buffered = std::size_t{512} << 20;  ///< bytes of all bodies that are being read or wait
  unsigned max_connections = 512;
  unsigned head_seconds = 10;    ///< a connection whose first head takes longer is closed
  unsigned idle_seconds = 30;    ///< a connection on which nothing moves is closed
  unsigned upload_seconds = 60;  ///< a body that takes longer is refused
};

/// An address that can't be bound.
class AddressError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Listens when it is made. Throws AddressError.
class HttpServer {
 public:
  /// To be called once, from any thread.
  using Reply = std::function<void(HttpAnswer)>;
  /// Sees the head of a request: an answer refuses it, and its body is not kept.
  using Admit = std::function<std::optional<HttpAnswer>(const HttpRequest&)>;
  /// Called in the event loop: it must not wait.
  using Handle = std::function<void(HttpRequest, Reply)>;
  /// Told of a request whose body was refused here, with the status.
  using Refused = std::function<void(const HttpRequest&, int)>;

  HttpServer(const HttpOptions& options, Admit admit, Handle handle, Refused refused);
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;
  /// finish(), without waiting.
  ~HttpServer();

  std::uint16_t port() const;

  /// Takes no new connection; those that are open go on.
  void stop_listening();

  /// Waits until every request is answered, at most so long; what is left then is answered with 503. Stops the loop.
  void finish(std::chrono::milliseconds patience);

 private:
  class Loop;
  std::unique_ptr<Loop> loop_;
};

}  // namespace hybrid_rt::serve
