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
  std::string name;                ///< name for messages: "OpenVINO's library"
  std::string package;             ///< name of the package on PyPI: "openvino"
  std::string variable;            ///< environment variable that names the file
  std::string folder;              ///< directory within site-packages: "openvino/libs"
  std::string prefix;              ///< prefix of the file name there: "libopenvino_c.so"
  std::vector<std::string> names;  ///< names for the dynamic linker, if neither is found
};

/// A vendor's shared library, opened at run time: a plug-in is built without it, and a process without it can still
/// load the plug-in and report the reason. Base class of a backend's own class, of which there is one object per
/// process, never destroyed.
class VendorLibrary {
 public:
  VendorLibrary(const VendorLibrary&) = delete;
  VendorLibrary& operator=(const VendorLibrary&) = delete;

  bool is_open() const { return reason_.empty(); }  ///< Returns true if the library can be used.
  /// Returns why it can't be used, with the remedy; empty if it can.
  const std::string& reason() const { return reason_; }
  const std::string& version() const { return version_; }  ///< Returns its version; empty if it can't be used.
  /// Returns the availability of a backend whose engines run on these kinds of device and need only this library.
  Availability availability(std::vector<std::string> devices) const;
  /// Throws Error(kBackend) with reason() unless the library is open; `expected` describes the library in the message.
  void require_open(const std::string& expected) const;

 protected:
  explicit VendorLibrary(VendorLibrarySearch search) : search_(std::move(search)) {}  ///< Opens nothing yet.
  ~VendorLibrary() = default;

  /// Opens the file that the variable names, else that of the package beside hybrid_rt in site-packages, else the one
  /// that the dynamic linker finds. `prepare`, if given, is called with each path first and returns why that file can't
  /// be opened, or an empty string. Returns why no file could be opened, or an empty string.
  std::string open(const std::function<std::string(const std::string& path)>& prepare = {});

  /// Sets `function` to the library's function of that name. Returns why it can't, or an empty string.
  template <typename Function>
  std::string resolve(void* handle, const char* name, Function& function) const {
    function = reinterpret_cast<Function>(dlsym(handle, name));
    return function == nullptr ? lacks(name) : "";
  }

  std::string install() const { return "Install it: pip install " + search_.package + "."; }  ///< Returns a remedy.

  void* handle_ = nullptr;  ///< result of dlopen
  std::string path_;        ///< path or name that was passed to dlopen
  std::string reason_;      ///< see reason()
  std::string version_;     ///< see version()

 private:
  std::vector<std::string> candidates() const;
  std::string lacks(const std::string& function) const;

  VendorLibrarySearch search_;
};

}  // namespace hybrid_rt
