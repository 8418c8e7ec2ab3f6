#pragma once

#include <caffe2/serialize/read_adapter_interface.h>

#include <string>

namespace hybrid_rt {

/// A file's bytes, opened once: whatever takes its name later, all that is read is of this file. Calls may run side by
/// side.
class FileBytes final : public caffe2::serialize::ReadAdapterInterface {
 public:
  /// Opens a regular file. Throws Error(kBundle).
  explicit FileBytes(const std::string& path);
  FileBytes(const FileBytes&) = delete;
  FileBytes& operator=(const FileBytes&) = delete;
  ~FileBytes() override;

  size_t size() const override { return size_; }
  /// Reads exactly `count` bytes. Throws Error(kBundle).
  size_t read(uint64_t position, void* into, size_t count, const char* what) const override;

 private:
  std::string path_;
  int descriptor_;
  size_t size_ = 0;
};

}  // namespace hybrid_rt
