#pragma once

#include <caffe2/serialize/read_adapter_interface.h>

#include <string>

namespace hybrid_rt {

/// The bytes of a file that is opened once. If another file takes its name later, all reads still refer to the first
/// one. Calls may be concurrent.
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
