#include "http.h"

#include <arpa/inet.h>
#include <microhttpd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <charconv>
#include <condition_variable>
#include <cstring>
#include <limits>
#include <mutex>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <utility>

#include "connections.h"

namespace hybrid_rt::serve {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kFormBuffer = std::size_t{64} << 10;
/// Connections beyond the promised number: a new one is accepted, and then one with an incomplete request head is
/// closed.
constexpr unsigned kSparePlaces = 16;
constexpr std::size_t kMaxRequestId = 128;
constexpr std::size_t kMostArguments = 64;
/// A refused body is still read up to this size, because a client that is sending would not see an earlier answer.
constexpr std::size_t kMaxDrained = std::size_t{64} << 20;

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::tolower(c); });
  return text;
}

/// Returns "multipart/form-data" for "multipart/form-data; boundary=x".
std::string media_type(const std::string& header) {
  std::string type = lower(header.substr(0, header.find(';')));
  type.erase(type.find_last_not_of(" \t") + 1);
  return type;
}

std::string made_up_id() {
  static thread_local std::mt19937_64 random{std::random_device{}()};
  constexpr char kDigits[] = "0123456789abcdef";
  std::string id;
  for (int i = 0; i < 16; ++i) id += kDigits[random() % 16];
  return id;
}

/// Returns the client's id if it is safe in a header and in a log, otherwise a new one.
std::string request_id_of(const char* given) {
  const std::string id = given == nullptr ? "" : given;
  const bool is_fine = !id.empty() && id.size() <= kMaxRequestId &&
                       std::all_of(id.begin(), id.end(), [](unsigned char c) { return c > 0x20 && c < 0x7f; });
  return is_fine ? id : made_up_id();
}

const char* title_of(int status) {
  const char* const phrase = MHD_get_reason_phrase_for(static_cast<unsigned>(status));
  return phrase == nullptr ? "Unknown" : phrase;
}

/// One request from its head to its answer, shared by the loop's thread and a worker's thread.
class Exchange {
 public:
  explicit Exchange(MHD_Connection* connection) : connection_(connection) {}
  Exchange(const Exchange&) = delete;
  Exchange& operator=(const Exchange&) = delete;
  ~Exchange() {
    if (form != nullptr) MHD_destroy_post_processor(form);
  }

  /// Sets the answer, from any thread. Later answers are dropped.
  void answer(HttpAnswer answer) {
    const std::lock_guard lock(mutex_);
    if (answered_ || connection_ == nullptr) return;
    answer_ = std::move(answer);
    answered_ = true;
    if (suspended_) {
      suspended_ = false;
      MHD_resume_connection(connection_);
    }
  }

  /// Called by the loop. Returns the answer, or suspends the connection until there is one.
  std::optional<HttpAnswer> take_answer_or_suspend() {
    const std::lock_guard lock(mutex_);
    if (answered_) return std::move(answer_);
    suspended_ = true;
    MHD_suspend_connection(connection_);
    return std::nullopt;
  }

  void forget_connection() {
    const std::lock_guard lock(mutex_);
    connection_ = nullptr;
  }

  // Used by the loop only:
  HttpRequest request;
  MHD_PostProcessor* form = nullptr;
  std::size_t max_parts = 0;
  std::optional<HttpAnswer> refusal;  ///< answer once the body has been skipped
  std::size_t received = 0;           ///< bytes of the body so far
  std::size_t buffered = 0;           ///< bytes of these in memory
  bool dispatched = false;

 private:
  std::mutex mutex_;
  MHD_Connection* connection_;
  HttpAnswer answer_;
  bool answered_ = false;
  bool suspended_ = false;
};

/// Parses the address to bind. Names are not resolved, because the result must not depend on a name server.
struct Address {
  sockaddr_storage storage{};
  bool is_v6 = false;

  Address(const std::string& host, std::uint16_t port) {
    auto& v4 = reinterpret_cast<sockaddr_in&>(storage);
    auto& v6 = reinterpret_cast<sockaddr_in6&>(storage);
    const std::string text = host == "localhost" ? "127.0.0.1" : host;
    if (inet_pton(AF_INET, text.c_str(), &v4.sin_addr) == 1) {
      v4.sin_family = AF_INET;
      v4.sin_port = htons(port);
    } else if (inet_pton(AF_INET6, text.c_str(), &v6.sin6_addr) == 1) {
      v6.sin6_family = AF_INET6;
      v6.sin6_port = htons(port);
      is_v6 = true;
    } else {
      throw AddressError("hybrid_rt[serve]: --host: expected an address such as 127.0.0.1, 0.0.0.0 or ::1, got '" +
                         host + "'. Names are not resolved.");
    }
  }
};

}  // namespace

HttpAnswer problem(int status, const std::string& detail, const std::string& request_id) {
  const nlohmann::ordered_json document = {{"type", "about:blank"},
                                           {"title", title_of(status)},
                                           {"status", status},
                                           {"detail", detail},
                                           {"request_id", request_id}};
  return {status, "application/problem+json",
          document.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace)};
}

class HttpServer::Loop {
 public:
  Loop(const HttpOptions& options, Admit admit, Handle handle, Refused refused)
      : options_(options),
        admit_(std::move(admit)),
        handle_(std::move(handle)),
        refused_(std::move(refused)),
        connections_({.most = options.max_connections,
                      .head = std::chrono::seconds(options.head_seconds),
                      .idle = std::chrono::seconds(options.idle_seconds)}) {
    const Address address(options.host, options.port);
    daemon_ = MHD_start_daemon(
        MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME | (address.is_v6 ? MHD_USE_IPv6 : 0), options.port,
        nullptr, nullptr, &Loop::on_request, this, MHD_OPTION_SOCK_ADDR,
        reinterpret_cast<const sockaddr*>(&address.storage), MHD_OPTION_CONNECTION_LIMIT,
        options.max_connections + kSparePlaces, MHD_OPTION_NOTIFY_CONNECTION, &Loop::on_connection, this,
        MHD_OPTION_CONNECTION_TIMEOUT, options.idle_seconds, MHD_OPTION_NOTIFY_COMPLETED, &Loop::on_completed, this,
        MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_UNESCAPE_CALLBACK, &Loop::on_escaped, nullptr,
        MHD_OPTION_URI_LOG_CALLBACK, &Loop::on_uri, nullptr, MHD_OPTION_END);
    if (daemon_ == nullptr) {
      const std::string reason = std::strerror(errno);
      throw AddressError("hybrid_rt[serve]: " + options.host + ":" + std::to_string(options.port) +
                         ": expected an address that can be bound, got \"" + reason +
                         "\". Choose another --port (0: any free port) or --host.");
    }
  }
  Loop(const Loop&) = delete;
  Loop& operator=(const Loop&) = delete;
  ~Loop() { finish(std::chrono::milliseconds(0)); }

  std::uint16_t port() const { return MHD_get_daemon_info(daemon_, MHD_DAEMON_INFO_BIND_PORT)->port; }

  void stop_listening() {
    const std::lock_guard lock(mutex_);
    if (listening_ && daemon_ != nullptr) {
      const MHD_socket socket = MHD_quiesce_daemon(daemon_);
      if (socket != MHD_INVALID_SOCKET) ::close(socket);
    }
    listening_ = false;
  }

  void finish(std::chrono::milliseconds patience) {
    stop_listening();
    std::unique_lock lock(mutex_);
    if (daemon_ == nullptr) return;
    changed_.wait_for(lock, patience, [this] { return open_.empty(); });
    const auto left = open_;
    lock.unlock();
    for (const auto& exchange : left) {
      HttpAnswer answer =
          problem(503,
                  "hybrid_rt[serve]: request: expected to be done before the service stops, got no answer "
                  "in time. Send it again.",
                  exchange->request.request_id);
      answer.headers.emplace_back("Retry-After", "1");
      exchange->answer(std::move(answer));
    }
    lock.lock();
    // Waits until the loop has taken the answers, because it must not be stopped while a connection is suspended.
    changed_.wait_for(lock, std::chrono::seconds(5), [this] { return open_.empty(); });
    MHD_Daemon* const daemon = std::exchange(daemon_, nullptr);
    lock.unlock();
    MHD_stop_daemon(daemon);
  }

 private:
  static void on_connection(void* self, MHD_Connection* connection, void** /*state*/,
                            MHD_ConnectionNotificationCode code) {
    Connections& connections = static_cast<Loop*>(self)->connections_;
    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
      const auto* const info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
      connections.opened(connection, info->connect_fd);
    } else {
      connections.closed(connection);
    }
  }

  static MHD_Result on_request(void* self, MHD_Connection* connection, const char* path, const char* method,
                               const char* /*version*/, const char* data, std::size_t* size, void** state) {
    auto& loop = *static_cast<Loop*>(self);
    try {
      if (*state == nullptr) return loop.begin(connection, path, method, state);
      auto& exchange = *static_cast<std::shared_ptr<Exchange>*>(*state);
      if (*size > 0) {
        const MHD_Result result = loop.read(*exchange, data, *size);
        *size = 0;
        return result;
      }
      return loop.end(connection, exchange);
    } catch (const std::exception&) {  // out of memory: the connection is closed
      return MHD_NO;
    }
  }

  static void on_completed(void* self, MHD_Connection* connection, void** state, MHD_RequestTerminationCode /*code*/) {
    auto& loop = *static_cast<Loop*>(self);
    loop.connections_.is_done(connection);
    const auto* const exchange = static_cast<std::shared_ptr<Exchange>*>(*state);
    if (exchange == nullptr) return;
    (*exchange)->forget_connection();
    loop.buffered_ -= (*exchange)->buffered;
    {
      const std::lock_guard lock(loop.mutex_);
      loop.open_.erase(*exchange);
      loop.changed_.notify_all();
    }
    delete exchange;
    *state = nullptr;
  }

  /// A NUL would end the text for later code, so it is replaced by another character, which no name contains.
  static std::size_t on_escaped(void* /*self*/, MHD_Connection* /*connection*/, char* text) {
    for (char* found = std::strstr(text, "%00"); found != nullptr; found = std::strstr(found, "%00")) found[2] = '1';
    return MHD_http_unescape(text);
  }

  /// libmicrohttpd stores each argument in the connection's memory, and reports nothing when that is exhausted. So the
  /// text, which libmicrohttpd owns and has not parsed yet, is cut after the first argument in excess, which is then
  /// refused.
  static void* on_uri(void* /*self*/, const char* uri, MHD_Connection* /*connection*/) {
    std::size_t arguments = 1;
    for (const char* at = std::strchr(uri, '?'); at != nullptr; at = std::strchr(at + 1, '&')) {
      if (arguments++ > kMostArguments + 1) {
        *const_cast<char*>(at) = '\0';
        break;
      }
    }
    return nullptr;
  }

  static MHD_Result on_query(void* into, MHD_ValueKind /*kind*/, const char* name, const char* value) {
    auto& query = *static_cast<std::multimap<std::string, std::string>*>(into);
    if (query.size() > kMostArguments) return MHD_NO;
    query.emplace(name, value == nullptr ? "" : value);
    return MHD_YES;
  }

  static MHD_Result on_part(void* into, MHD_ValueKind /*kind*/, const char* name, const char* /*file*/,
                            const char* /*type*/, const char* /*encoding*/, const char* data, std::uint64_t offset,
                            std::size_t size) {
    auto& exchange = *static_cast<Exchange*>(into);
    auto& parts = exchange.request.parts;
    if (offset == 0) {
      if (parts.size() == exchange.max_parts) return MHD_NO;
      parts.push_back({name == nullptr ? "" : name, ""});
    }
    if (parts.empty()) return MHD_NO;
    parts.back().content.append(data, size);
    return MHD_YES;
  }

  static const char* header(MHD_Connection* connection, const char* name) {
    return MHD_lookup_connection_value(connection, MHD_HEADER_KIND, name);
  }

  MHD_Result begin(MHD_Connection* connection, const char* path, const char* method, void** state) {
    connections_.has_head(connection);
    auto exchange = std::make_shared<Exchange>(connection);
    HttpRequest& request = exchange->request;
    request.received = Clock::now();
    request.method = method;
    request.path = path;
    request.request_id = request_id_of(header(connection, "X-Request-Id"));
    const auto text = [](const char* value) { return std::string(value == nullptr ? "" : value); };
    request.content_type = media_type(text(header(connection, MHD_HTTP_HEADER_CONTENT_TYPE)));
    request.authorization = text(header(connection, MHD_HTTP_HEADER_AUTHORIZATION));
    request.fetch_site = text(header(connection, "Sec-Fetch-Site"));
    request.host = text(header(connection, MHD_HTTP_HEADER_HOST));
    request.origin = text(header(connection, MHD_HTTP_HEADER_ORIGIN));
    MHD_get_connection_values(connection, MHD_GET_ARGUMENT_KIND, &Loop::on_query, &request.query);
    *state = new std::shared_ptr<Exchange>(exchange);
    {
      const std::lock_guard lock(mutex_);
      open_.insert(exchange);
    }
    if (request.query.size() > kMostArguments) return queue(connection, too_many_arguments(request), request);
    if (!has_one_length(connection)) return queue(connection, odd_framing(request), request);
    exchange->refusal = admit_(request);
    const std::uint64_t announced = announced_size(connection);
    if (!exchange->refusal && announced > options_.max_body) refuse(*exchange, too_large(request));
    if (!exchange->refusal && buffered_ + announced > options_.max_buffered) refuse(*exchange, no_memory(request));
    // A client that asks first has sent no body yet.
    const bool asks_first = header(connection, MHD_HTTP_HEADER_EXPECT) != nullptr;
    if (exchange->refusal && (asks_first || announced > kMaxDrained))
      return queue(connection, *exchange->refusal, request);
    if (!exchange->refusal && request.content_type == "multipart/form-data") {
      exchange->max_parts = options_.max_parts;
      exchange->form = MHD_create_post_processor(connection, kFormBuffer, &Loop::on_part, exchange.get());
      if (exchange->form == nullptr) refuse(*exchange, bad_form(request));
    }
    return MHD_YES;
  }

  MHD_Result read(Exchange& exchange, const char* data, std::size_t size) {
    HttpRequest& request = exchange.request;
    exchange.received += size;
    if (Clock::now() - request.received > std::chrono::seconds(options_.upload_seconds)) return MHD_NO;
    if (exchange.refusal) return exchange.received > kMaxDrained ? MHD_NO : MHD_YES;
    if (exchange.received > options_.max_body) {
      refuse(exchange, too_large(request));
      return MHD_YES;
    }
    if ((buffered_ += size) > options_.max_buffered) {
      exchange.buffered += size;
      refuse(exchange, no_memory(request));
      return MHD_YES;
    }
    exchange.buffered += size;
    if (exchange.form == nullptr) {
      request.body.append(data, size);
      return MHD_YES;
    }
    if (MHD_post_process(exchange.form, data, size) != MHD_YES) refuse(exchange, bad_form(request));
    return MHD_YES;
  }

  MHD_Result end(MHD_Connection* connection, const std::shared_ptr<Exchange>& exchange) {
    connections_.has_request(connection);
    HttpRequest& request = exchange->request;
    if (!exchange->dispatched) {
      exchange->dispatched = true;
      if (exchange->form != nullptr) {
        const bool is_whole = MHD_destroy_post_processor(exchange->form) == MHD_YES;
        exchange->form = nullptr;
        if (!is_whole && exchange->received > 0 && !exchange->refusal) refuse(*exchange, bad_form(request));
      }
      if (exchange->refusal) return queue(connection, *exchange->refusal, request);
      const std::string id = request.request_id;
      HttpRequest given = std::move(request);
      request.request_id = id;
      handle_(std::move(given), [exchange](HttpAnswer answer) { exchange->answer(std::move(answer)); });
    }
    const std::optional<HttpAnswer> answer = exchange->take_answer_or_suspend();
    return answer ? queue(connection, *answer, request) : MHD_YES;
  }

  void refuse(Exchange& exchange, HttpAnswer answer) {
    refused_(exchange.request, answer.status);
    exchange.refusal = std::move(answer);
    exchange.request.body = {};
    exchange.request.parts = {};
    buffered_ -= exchange.buffered;
    exchange.buffered = 0;
  }

  MHD_Result queue(MHD_Connection* connection, const HttpAnswer& answer, const HttpRequest& request) {
    MHD_Response* const response = MHD_create_response_from_buffer(
        answer.body.size(), const_cast<char*>(answer.body.data()), MHD_RESPMEM_MUST_COPY);
    if (response == nullptr) return MHD_NO;
    const auto add = [response](const std::string& name, const std::string& value) {
      MHD_add_response_header(response, name.c_str(), value.c_str());
    };
    add(MHD_HTTP_HEADER_CONTENT_TYPE, answer.content_type);
    add("X-Request-Id", request.request_id);
    add("X-Content-Type-Options", "nosniff");
    add(MHD_HTTP_HEADER_CACHE_CONTROL, "no-store");
    for (const auto& [name, value] : answer.headers) add(name, value);
    // Implementations differ in how they detect the end of a chunk: the following bytes may be meant as a part of the
    // body.
    if (header(connection, MHD_HTTP_HEADER_TRANSFER_ENCODING) != nullptr) add(MHD_HTTP_HEADER_CONNECTION, "close");
    const MHD_Result result = MHD_queue_response(connection, static_cast<unsigned>(answer.status), response);
    MHD_destroy_response(response);
    return result;
  }

  static std::uint64_t announced_size(MHD_Connection* connection) {
    const char* const text = header(connection, MHD_HTTP_HEADER_CONTENT_LENGTH);
    std::uint64_t size = 0;
    if (text == nullptr) return 0;
    const auto [end, error] = std::from_chars(text, text + std::strlen(text), size);
    return error == std::errc() ? size : std::numeric_limits<std::uint64_t>::max() / 2;
  }

  struct Framing {
    int lengths = 0;
    int encodings = 0;
    int hosts = 0;
    bool is_text = true;
  };

  static MHD_Result on_header(void* into, MHD_ValueKind /*kind*/, const char* name, std::size_t name_size,
                              const char* value, std::size_t value_size) {
    auto& framing = *static_cast<Framing*>(into);
    const std::string key = lower(std::string(name, name_size));
    if (key == "content-length") ++framing.lengths;
    if (key == "host") ++framing.hosts;
    if (key == "transfer-encoding") ++framing.encodings;
    // A header with a blank before its colon is valid for some implementations and ignored by others.
    if (key.find_first_of(" \t") != std::string::npos) framing.is_text = false;
    const std::string_view text(value == nullptr ? "" : value, value == nullptr ? 0 : value_size);
    if ((key + std::string(text)).find_first_of(std::string_view("\0\r\n", 3)) != std::string::npos) {
      framing.is_text = false;
    }
    return MHD_YES;
  }

  /// A proxy and this service that disagree about the end of a request would see different requests (RFC 9112, 6.3).
  static bool has_one_length(MHD_Connection* connection) {
    Framing framing;
    MHD_get_connection_values_n(connection, MHD_HEADER_KIND, &Loop::on_header, &framing);
    const char* const encoding = header(connection, MHD_HTTP_HEADER_TRANSFER_ENCODING);
    const bool is_known = encoding == nullptr || lower(encoding) == "chunked";
    return framing.lengths + framing.encodings <= 1 && framing.hosts <= 1 && framing.is_text && is_known;
  }

  static HttpAnswer odd_framing(const HttpRequest& request) {
    HttpAnswer answer = problem(400,
                                "hybrid_rt[serve]: head: expected one Content-Length or one Transfer-Encoding "
                                "(chunked), one Host, and headers of text, got several, another encoding or other "
                                "bytes. Send each once.",
                                request.request_id);
    answer.headers.emplace_back(MHD_HTTP_HEADER_CONNECTION, "close");
    return answer;
  }

  static HttpAnswer too_many_arguments(const HttpRequest& request) {
    HttpAnswer answer = problem(414,
                                "hybrid_rt[serve]: query: expected at most " + std::to_string(kMostArguments) +
                                    " arguments, got more. GET /openapi.json describes them.",
                                request.request_id);
    answer.headers.emplace_back(MHD_HTTP_HEADER_CONNECTION, "close");
    return answer;
  }

  HttpAnswer too_large(const HttpRequest& request) const {
    return problem(413,
                   "hybrid_rt[serve]: body: expected at most " + std::to_string(options_.max_body) +
                       " bytes, got more. Send smaller or fewer images.",
                   request.request_id);
  }
  HttpAnswer no_memory(const HttpRequest& request) const {
    HttpAnswer answer = problem(503,
                                "hybrid_rt[serve]: request: expected room for its body, got " +
                                    std::to_string(buffered_) + " bytes of other requests. Retry in 1 s.",
                                request.request_id);
    answer.headers.emplace_back("Retry-After", "1");
    return answer;
  }
  HttpAnswer bad_form(const HttpRequest& request) const {
    return problem(400,
                   "hybrid_rt[serve]: body: expected multipart/form-data of at most " +
                       std::to_string(options_.max_parts) +
                       " parts, each an image named \"image\", got a body that can't be read. Check its boundary "
                       "and the number of its parts.",
                   request.request_id);
  }

  const HttpOptions options_;
  const Admit admit_;
  const Handle handle_;
  const Refused refused_;
  Connections connections_;  // outlives the daemon, which calls it until its own end
  MHD_Daemon* daemon_ = nullptr;
  std::atomic<std::size_t> buffered_{0};

  std::mutex mutex_;  // guards the members below
  std::condition_variable changed_;
  std::set<std::shared_ptr<Exchange>> open_;
  bool listening_ = true;
};

HttpServer::HttpServer(const HttpOptions& options, Admit admit, Handle handle, Refused refused)
    : loop_(std::make_unique<Loop>(options, std::move(admit), std::move(handle), std::move(refused))) {}

HttpServer::~HttpServer() = default;

std::uint16_t HttpServer::port() const { return loop_->port(); }

void HttpServer::stop_listening() { loop_->stop_listening(); }

void HttpServer::finish(std::chrono::milliseconds patience) { loop_->finish(patience); }

}  // namespace hybrid_rt::serve
