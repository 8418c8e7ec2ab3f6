#pragma once

#include <caffe2/serialize/read_adapter_interface.h>

#include <memory>
#include <string>
#include <string_view>

namespace hybrid_rt {

/// Refuses a TorchScript archive that would do more than compute when torch loads or runs it, or that would end the
/// process that reads it. Call it before torch reads any part of the archive. Throws Error(kBundle).
///
/// It refuses code that runs while the archive is read (`__setstate__`), operators that access files, other processes
/// or raw memory, classes of libraries that do so, tensors that reach beyond their record, and code or pickles that are
/// nested so deeply that torch's recursive reader would exhaust the stack. It limits what an altered file can do, but
/// it is not a sandbox: see docs/threat-model.md.
void check_script(const std::shared_ptr<caffe2::serialize::ReadAdapterInterface>& archive, const std::string& subject);

/// Does the same for an archive in memory, which is not read after the call.
void check_script(std::string_view archive, const std::string& subject);

}  // namespace hybrid_rt
