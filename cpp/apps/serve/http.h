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

// HTTP/1.1 with GNU libmicrohttpd: an event loop reads complete requests, within limits, and sends answers that other
// threads provide.

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
  std::string host;         ///< the service's host, as the client names it
  std::string origin;       ///< a browser's origin of the requesting page: scheme, host and port
  std::string fetch_site;   ///< a browser's relation to the requesting page: "same-origin", "cross-site", ...
  std::string request_id;   ///< the client's id, or a generated one
  std::string body;         ///< empty for multipart bodies
  std::vector<Part> parts;  ///< parts of a multipart/form-data body
  std::chrono::steady_clock::time_point received{};  ///< time at which the head was read
};

struct HttpAnswer {
  int status = 200;
  std::string content_type;
  std::string body;
  std::vector<std::pair<std::string, std::string>> headers{};
};

/// Returns a problem document (RFC 9457).
HttpAnswer problem(int status, const std::string& detail, const std::string& request_id);

struct HttpOptions {
  std::string host = "127.0.0.1";
  std::uint16_t port = 8080;                          ///< 0: any free port
  std::size_t max_body = std::size_t{32} << 20;       ///< maximum bytes of a request's body
  std::size_t max_parts = 16;                         ///< maximum number of parts of a multipart body
  std::size_t max_buffered = std::size_t{512} << 20;  ///< maximum bytes of all bodies in memory
  unsigned max_connections = 512;
  unsigned head_seconds = 10;    ///< a connection whose first head takes longer is closed
  unsigned idle_seconds = 30;    ///< a connection on which nothing moves is closed
  unsigned upload_seconds = 60;  ///< a body that takes longer is refused
};

/// Thrown if the address can't be bound.
class AddressError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// An HTTP server that listens from its construction on. The constructor throws AddressError.
class HttpServer {
 public:
  /// Sends the answer. Must be called once, from any thread.
  using Reply = std::function<void(HttpAnswer)>;
  /// Receives the head of a request. Returning an answer refuses the request, and its body is not kept.
  using Admit = std::function<std::optional<HttpAnswer>(const HttpRequest&)>;
  /// Handles a request. Called in the event loop, so it must not block.
  using Handle = std::function<void(HttpRequest, Reply)>;
  /// Receives a request whose body the server refused, and the status.
  using Refused = std::function<void(const HttpRequest&, int)>;

  HttpServer(const HttpOptions& options, Admit admit, Handle handle, Refused refused);
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;
  /// Calls finish() without waiting.
  ~HttpServer();

  std::uint16_t port() const;

  /// Accepts no new connections. Open ones continue.
  void stop_listening();

  /// Waits until every request is answered, for at most `patience`; answers the rest with 503, and stops the loop.
  void finish(std::chrono::milliseconds patience);

 private:
  class Loop;
  std::unique_ptr<Loop> loop_;
};

}  // namespace hybrid_rt::serve
