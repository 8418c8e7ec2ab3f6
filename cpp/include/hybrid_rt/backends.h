#pragma once

#include <string>
#include <vector>

#include "hybrid_rt/plugin/backend.h"

namespace hybrid_rt {

/// A backend as this process sees it: installed plug-in or not, runtime available or not.
struct BackendInfo {
  std::string name;
  std::string plugin;  ///< path of its shared library
  Availability availability;
};

/// Returns every backend whose plug-in is found: next to this library, then in the directories of HYBRID_RT_PLUGIN_PATH
/// and of add_plugin_folder(). Lists these directories again and opens each plug-in; one that can't be opened is listed
/// with the reason. Does not throw.
std::vector<BackendInfo> backends();

/// The backend of that name, opened when first asked for. Only for a name that is not known yet are the directories
/// listed again. Throws Error(kBackend) that says what is installed.
Backend& backend(const std::string& name);

/// Looks for plug-ins in `folder` too, after the directories known so far.
void add_plugin_folder(const std::string& folder);

}  // namespace hybrid_rt
