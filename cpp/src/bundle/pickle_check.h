#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

namespace hybrid_rt {

/// The length in bytes of the record of a storage, by its key; nothing if there is none.
using StorageSize = std::function<std::optional<uint64_t>(std::string_view key)>;

/// Returns what is wrong with a pickle of a TorchScript archive, as the "got" of an error; nothing if it makes only
/// what torch's writer writes: values, tensors that lie within their records, objects of the archive's own classes.
///
/// \param has_texts  it is a record of source ranges, whose numbers of texts must be those of its table
std::optional<std::string> refused_in_pickle(std::string_view pickle, const StorageSize& storage_size, bool has_texts);

}  // namespace hybrid_rt
