#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

namespace hybrid_rt {

/// Returns the length in bytes of a storage's record by its key; nothing if there is none.
using StorageSize = std::function<std::optional<uint64_t>(std::string_view key)>;

/// Returns the defect of a pickle in a TorchScript archive, as the "got" of an error; nothing if the pickle creates
/// only what torch's writer writes: values, tensors within their records, and objects of the archive's own classes.
/// \param has_texts the pickle is a record of source ranges, whose numbers of texts must be within its table
std::optional<std::string> refused_in_pickle(std::string_view pickle, const StorageSize& storage_size, bool has_texts);

}  // namespace hybrid_rt
