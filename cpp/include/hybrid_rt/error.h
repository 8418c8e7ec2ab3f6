#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace hybrid_rt {

/// Kind of an error, for callers that react to it. TorchScript loses the kind, but keeps the text.
enum class ErrorKind {
  kBundle,    ///< the file is missing, truncated, altered, or of another format
  kBackend,   ///< an engine's runtime is not installed, refuses, or fails
  kInput,     ///< a tensor violates the engine's contract
  kOption,    ///< an argument or environment variable can't be used
  kBusy,      ///< a Detector refuses now: its queue is full, a deadline can't be met, or it is stopping
  kDeadline,  ///< the deadline passed while a request waited or ran
};

/// The only exception that this library throws. what() is
/// `hybrid_rt[SCOPE]: SUBJECT: expected X, got Y. REMEDY`; SCOPE is a backend's name or a part of the library.
class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, std::string_view scope, std::string_view subject, std::string_view expected,
        std::string_view got, std::string_view remedy);  ///< Creates the text from its parts.

  /// Creates an error with a text that has this form already.
  Error(ErrorKind kind, const std::string& text) : std::runtime_error(text), kind_(kind) {}

  ErrorKind kind() const noexcept { return kind_; }  ///< Returns the kind of the error.

 private:
  ErrorKind kind_;
};

}  // namespace hybrid_rt
