#pragma once

#include <string>
#include <vector>

#include "hybrid_rt/plugin/backend.h"

namespace hybrid_rt {

/// A backend in this process: its plug-in, and the availability of its runtime.
struct BackendInfo {
  std::string name;           ///< name of the backend, e.g. "openvino"
  std::string plugin;         ///< path of its shared library
  Availability availability;  ///< availability of its runtime
};

/// Returns every backend whose plug-in is found: next to this library, then in the directories of HYBRID_RT_PLUGIN_PATH
/// and of add_plugin_folder(). Lists these directories again and opens each plug-in; one that can't be opened is listed
/// with the reason. Does not throw.
std::vector<BackendInfo> backends();

/// Returns the backend of that name, and opens its plug-in at the first call. The directories are listed again only if
/// the name is not known yet. Throws Error(kBackend) that lists the installed ones.
Backend& backend(const std::string& name);

/// Adds a directory in which plug-ins are searched, after those known so far. May be called from several threads.
void add_plugin_folder(const std::string& directory);

}  // namespace hybrid_rt
