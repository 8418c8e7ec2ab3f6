#pragma once

#include <dlfcn.h>

#include <functional>
#include <string>
#include <vector>

#include "hybrid_rt/plugin/backend.h"

namespace hybrid_rt {

/// Search path of a vendor's library, and its name in messages.
struct VendorLibrarySearch {
  std::string backend;             ///< "openvino"
  std::string name;                ///< in words: "OpenVINO's library"
  std::string package;             ///< what pip installs: "openvino"
  std::string variable;            ///< the environment variable that names the file
  std::string folder;              ///< within site-packages: "openvino/libs"
  std::string prefix;              ///< how the file's name there begins: "libopenvino_c.so"
  std::vector<std::string> names;  ///< what the dynamic linker is asked for otherwise
};

/// A vendor's shared library, opened at run time: nothing of it is needed to build a plug-in, and a process that has
/// none of it still loads the plug-in and can say so. Base of a backend's own class, of which there is one object a
/// process, never destroyed.
class VendorLibrary {
 public:
  VendorLibrary(const VendorLibrary&) = delete;
  VendorLibrary& operator=(const VendorLibrary&) = delete;

  bool is_open() const { return reason_.empty(); }
  /// Why it can't be used, with the remedy; empty if it can.
  const std::string& reason() const { return reason_; }
  const std::string& version() const { return version_; }
  /// Returns the availability of a backend whose engines run on these kinds of device and need only this library.
  Availability availability(std::vector<std::string> devices) const;
  /// Throws Error(kBackend) with that reason; `expected` is what the library is, in words.
  void require_open(const std::string& expected) const;

 protected:
  explicit VendorLibrary(VendorLibrarySearch search) : search_(std::move(search)) {}
  ~VendorLibrary() = default;

  /// Opens the file that the variable names, else that of the package beside hybrid_rt in site-packages, else what the
  /// dynamic linker finds. `prepare`, if any, is called with each path first; what it returns, if not empty, is why
  /// that one can't be opened. Returns why none can be, or nothing.
  std::string open(const std::function<std::string(const std::string& path)>& prepare = {});

  /// Sets `function` to the library's function of that name. Returns why it can't be, or nothing.
  template <typename Function>
  std::string resolve(void* handle, const char* name, Function& function) const {
    function = reinterpret_cast<Function>(dlsym(handle, name));
    return function == nullptr ? lacks(name) : "";
  }

  std::string install() const { return "Install it: pip install " + search_.package + "."; }

  void* handle_ = nullptr;
  std::string path_;  ///< as it was asked for
  std::string reason_;
  std::string version_;

 private:
  std::vector<std::string> candidates() const;
  std::string lacks(const std::string& function) const;

  VendorLibrarySearch search_;
};

}  // namespace hybrid_rt
