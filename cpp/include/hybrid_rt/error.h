#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace hybrid_rt {

/// Kind of an error, for callers that react to it. The text is for people, and survives TorchScript.
enum class ErrorKind {
  kBundle,    ///< the file: missing, truncated, altered, of another format
  kBackend,   ///< an engine's runtime: not installed, refuses, fails
  kInput,     ///< a tensor that breaks the engine's contract
  kOption,    ///< an argument or environment variable
  kBusy,      ///< a Detector that takes no more now: its queue is full, a deadline can't be met, it is stopping
  kDeadline,  ///< the deadline passed while a request waited or ran
};

/// The one exception of this library. what() is
/// `hybrid_rt[SCOPE]: SUBJECT: expected X, got Y. REMEDY`, SCOPE being a backend's name or a part of the library.
class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, std::string_view scope, std::string_view subject, std::string_view expected,
        std::string_view got, std::string_view remedy);

  /// With a text that has this form already.
  Error(ErrorKind kind, const std::string& text) : std::runtime_error(text), kind_(kind) {}

  ErrorKind kind() const noexcept { return kind_; }

 private:
  ErrorKind kind_;
};

}  // namespace hybrid_rt
