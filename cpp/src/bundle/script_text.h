#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace hybrid_rt {

/// Returns the defect of the code in a TorchScript archive, as the "got" of an error; nothing if the code only
/// computes, and nests no deeper than torch's parser can follow.
/// \param tokens number of names, numbers and operators of the archive's records so far, which is limited; those of
/// this record are added
std::optional<std::string> refused_in_code(std::string_view text, size_t& tokens);

/// Returns true if operators or classes of that namespace access more than their tensors.
bool is_refused_namespace(std::string_view name);

}  // namespace hybrid_rt
