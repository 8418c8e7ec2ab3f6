#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace hybrid_rt {

/// Returns what is wrong with the text of a TorchScript archive's code, as the "got" of an error; nothing if it only
/// computes, and nests no deeper than torch's parser can follow.
///
/// \param tokens  names, numbers and operators of the archive's records so far, which are bounded; those of this one
/// are
///                added
std::optional<std::string> refused_in_code(std::string_view text, size_t& tokens);

/// Returns whether operators or classes of that namespace touch more than their tensors.
bool is_refused_namespace(std::string_view name);

}  // namespace hybrid_rt
