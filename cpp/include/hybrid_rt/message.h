#pragma once

#include <exception>
#include <string>
#include <string_view>

#include "hybrid_rt/error.h"

// The message of an exception that passed through TorchScript, which loses its type and wraps its text in tracebacks.

namespace hybrid_rt {

/// Returns the library's own message (`hybrid_rt[...]: ...`) in an exception's text, on one line. For any other
/// exception, returns its cause without stacks and tracebacks, as `hybrid_rt[SCOPE]: SUBJECT: expected no failure, got
/// "CAUSE". ...`; the whole text is then logged at the level "debug".
std::string message_of(const std::exception& error, std::string_view scope, std::string_view subject);

/// Returns message_of() as an Error. An Error keeps its kind, an engine's error about its input gets kInput, and any
/// other exception gets `kind`.
Error as_error(const std::exception& error, ErrorKind kind, std::string_view scope, std::string_view subject);

/// Returns a text with each sequence of line breaks and blanks replaced by one blank.
std::string on_one_line(const std::string& text);

}  // namespace hybrid_rt
