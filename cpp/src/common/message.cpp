#include "hybrid_rt/message.h"

#include <c10/util/Exception.h>

#include <cctype>

#include "hybrid_rt/log.h"

namespace hybrid_rt {
namespace {

/// Removes the stack of C++ addresses of torch's errors, also from TorchScript's errors that contain them.
std::string without_backtrace(const std::exception& error) {
  const auto* torch_error = dynamic_cast<const c10::Error*>(&error);
  const std::string text = torch_error ? torch_error->what_without_backtrace() : error.what();
  return text.substr(0, text.find("\nException raised from "));
}

/// Returns the text after TorchScript's traceback, which ends with indented source, then "RuntimeError: cause" or
/// "builtins.ValueError: cause".
std::string without_traceback(const std::string& text) {
  const std::size_t last_frame = text.rfind("<--- HERE");
  if (last_frame == std::string::npos) return text;
  std::size_t line = text.find('\n', last_frame);
  while (line != std::string::npos &&
         (line + 1 == text.size() || std::isalpha(static_cast<unsigned char>(text[line + 1])) == 0)) {
    line = text.find('\n', line + 1);
  }
  return line == std::string::npos ? text : text.substr(line + 1);
}

/// Returns true if an engine refused its input (input_check.cpp), which depends on the size of the detector's image.
bool is_of_an_input(const std::string& message) {
  const std::size_t engine = message.find("]: engine '");
  return engine != std::string::npos && message.find("', input", engine) < message.find(": expected ");
}

}  // namespace

std::string on_one_line(const std::string& text) {
  std::string line;
  for (const char c : text) {
    const bool is_break = c == '\n' || c == '\r' || c == '\t';
    const bool is_doubled = (is_break || c == ' ') && (line.empty() || line.back() == ' ');
    if (!is_doubled) line += is_break ? ' ' : c;
  }
  line.erase(line.find_last_not_of(' ') + 1);
  return line;
}

std::string message_of(const std::exception& error, std::string_view scope, std::string_view subject) {
  const std::string text = without_backtrace(error);
  const std::size_t own = text.find("hybrid_rt[");
  if (own != std::string::npos) return on_one_line(text.substr(own));
  log(LogLevel::kDebug, error.what());
  return Error(ErrorKind::kBackend, scope, subject, "no failure", "\"" + on_one_line(without_traceback(text)) + "\"",
               "HYBRID_RT_LOG=debug shows the whole message.")
      .what();
}

Error as_error(const std::exception& error, ErrorKind kind, std::string_view scope, std::string_view subject) {
  if (const auto* own = dynamic_cast<const Error*>(&error)) return *own;
  const std::string text = message_of(error, scope, subject);
  return Error(is_of_an_input(text) ? ErrorKind::kInput : kind, text);
}

}  // namespace hybrid_rt
