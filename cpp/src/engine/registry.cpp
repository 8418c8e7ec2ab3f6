#include "hybrid_rt/backends.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <mutex>
#include <set>
#include <sstream>

#include "common/library_directory.h"
#include "common/platform/shared_library.h"
#include "hybrid_rt/log.h"
#include "spec/cuda_devices.h"

namespace hybrid_rt {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kSuffix = platform::kLibrarySuffix;

/// Returns the prefix of plug-ins' file names.
std::string prefix() { return std::string(platform::kLibraryPrefix) + "hybrid_rt_"; }

Error plugin_error(const std::string& name, const std::string& subject, const std::string& expected,
                   const std::string& got, const std::string& remedy) {
  return Error(ErrorKind::kBackend, name, subject, expected, got, remedy);
}

/// A plug-in's path and, once it was requested, its backend or the reason why there is none.
struct Plugin {
  std::string path;
  bool opened = false;
  std::unique_ptr<Backend> backend;
  std::string failure;
};

void open(const std::string& name, Plugin& plugin) {
  plugin.opened = true;
  // Never closed, because its engines may live until the process ends.
  void* handle = platform::open_library(plugin.path, platform::Symbols::kForCaller);
  if (handle == nullptr) {
    plugin.failure = "the plug-in can't be opened: " + platform::library_failure();
    return;
  }
  using Entry = const PluginDescriptor* (*)();
  const auto entry = reinterpret_cast<Entry>(platform::find_symbol(handle, "hybrid_rt_plugin"));
  if (entry == nullptr) {
    plugin.failure = plugin.path + " exports no hybrid_rt_plugin (it lacks HYBRID_RT_PLUGIN)";
    return;
  }
  const PluginDescriptor& descriptor = *entry();
  if (descriptor.abi_version != kPluginAbiVersion) {
    plugin.failure = "the plug-in was built for plug-in interface " + std::to_string(descriptor.abi_version) +
                     ", this is hybrid_rt's " + std::to_string(kPluginAbiVersion) + "; rebuild it";
    return;
  }
  if (std::string_view(descriptor.torch_version) != HYBRID_RT_TORCH_VERSION) {
    plugin.failure = std::string("the plug-in was built with torch ") + descriptor.torch_version +
                     ", this is torch " HYBRID_RT_TORCH_VERSION "; rebuild it";
    return;
  }
  if (name != descriptor.name) {
    plugin.failure = plugin.path + " says that it is '" + descriptor.name + "'; rename the file or the backend";
    return;
  }
  try {
    plugin.backend.reset(descriptor.create());
  } catch (const std::exception& error) {
    plugin.failure = std::string("the plug-in's backend can't be created: ") + error.what();
  }
}

class Registry {
 public:
  static Registry& instance() {
    static Registry* registry = new Registry();  // never destroyed, as engines may live until the process ends
    return *registry;
  }

  void add_directory(const std::string& directory) {
    const std::lock_guard lock(mutex_);
    if (std::find(directories_.begin(), directories_.end(), directory) != directories_.end()) return;
    directories_.push_back(directory);
    is_scanned_ = false;
  }

  Backend& get(const std::string& name) {
    const std::lock_guard lock(mutex_);
    // A missing plug-in may have been installed since. Known ones need no access to the disk.
    if (!is_scanned_ || !plugins_.contains(name)) scan();
    const auto found = plugins_.find(name);
    if (found == plugins_.end()) {
      throw plugin_error(name, "backend", "one of " + names(), "'" + name + "'",
                         "Install the package or plug-in that provides it (" + prefix() + name + std::string(kSuffix) +
                             "), or name its directory in HYBRID_RT_PLUGIN_PATH.");
    }
    Plugin& plugin = found->second;
    if (!plugin.opened) open(name, plugin);
    if (!plugin.backend) {
      throw plugin_error(name, "plug-in", "a usable " + plugin.path, plugin.failure,
                         "`hybrid-rt doctor` lists what is installed.");
    }
    return *plugin.backend;
  }

  std::vector<std::pair<std::string, std::string>> list() {
    const std::lock_guard lock(mutex_);
    scan();
    std::vector<std::pair<std::string, std::string>> found;
    for (const auto& [name, plugin] : plugins_) found.emplace_back(name, plugin.path);
    return found;
  }

 private:
  void scan() {
    std::vector<std::string> directories{library_directory(Links::kFollowed).string()};
    if (const char* extra = std::getenv("HYBRID_RT_PLUGIN_PATH")) {
      std::stringstream stream{std::string(extra)};
      for (std::string directory; std::getline(stream, directory, platform::kPathSeparator);)
        directories.push_back(directory);
    }
    directories.insert(directories.end(), directories_.begin(), directories_.end());
    for (const auto& directory : directories) scan(directory);
    is_scanned_ = true;
  }

  void scan(const std::string& directory) {
    std::error_code failed;
    const std::string start = prefix();
    for (const auto& entry : fs::directory_iterator(directory, failed)) {
      const std::string file = entry.path().filename().string();
      if (file.size() <= start.size() + kSuffix.size() || file.rfind(start, 0) != 0 || !file.ends_with(kSuffix)) {
        continue;
      }
      const std::string name = file.substr(start.size(), file.size() - start.size() - kSuffix.size());
      const std::string path = entry.path().string();
      const auto [known, added] = plugins_.try_emplace(name);
      if (added) {
        known->second.path = path;
      } else if (known->second.path != path && warned_.insert(path).second) {
        log(LogLevel::kWarning,
            "two plug-ins claim the name '" + name + "': " + known->second.path + " is used, " + path + " is not");
      }
    }
  }

  std::string names() const {
    std::string text;
    for (const auto& [name, plugin] : plugins_) text += (text.empty() ? "" : ", ") + name;
    return text.empty() ? "the installed backends (none)" : text;
  }

  std::mutex mutex_;
  bool is_scanned_ = false;  // since the last directory was added
  std::vector<std::string> directories_;
  std::map<std::string, Plugin> plugins_;
  std::set<std::string> warned_;
};

}  // namespace

std::vector<BackendInfo> backends() {
  std::vector<BackendInfo> found;
  for (const auto& [name, path] : Registry::instance().list()) {
    BackendInfo info{name, path, {}};
    try {
      info.availability = backend(name).availability();
      const std::vector<std::string>& devices = info.availability.devices;
      if (info.availability.available && devices == std::vector<std::string>{"cuda"} &&
          cuda_devices().devices.empty()) {
        info.availability.available = false;
        info.availability.reason = "it runs on CUDA devices, and there is none: " + cuda_devices().reason;
      }
    } catch (const Error& error) {
      info.availability.reason = error.what();
    }
    found.push_back(std::move(info));
  }
  return found;
}

Backend& backend(const std::string& name) { return Registry::instance().get(name); }

void add_plugin_folder(const std::string& directory) { Registry::instance().add_directory(directory); }

}  // namespace hybrid_rt
