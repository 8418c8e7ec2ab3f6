#pragma once

#include <caffe2/serialize/read_adapter_interface.h>

#include <memory>
#include <string>
#include <string_view>

namespace hybrid_rt {

/// Refuses a TorchScript archive that would do more than compute once torch loads it, and one that would end the
/// process that reads it. To be called before torch sees any of it. Throws Error(kBundle).
///
/// Refused are code that runs while the archive is read (`__setstate__`), operators that touch files, other processes
/// or memory as it lies, classes of such libraries, tensors that reach beyond their record, and code or pickles that
/// are nested so deeply that torch's reader, which calls itself for each level, would exhaust the stack. It makes what
/// an altered file can do less; it is no sandbox: see docs/threat-model.md.
void check_script(const std::shared_ptr<caffe2::serialize::ReadAdapterInterface>& archive, const std::string& subject);

/// Checks an archive in memory, which is read only during the call.
void check_script(std::string_view archive, const std::string& subject);

}  // namespace hybrid_rt
