#include "hybrid_rt/bundle.h"

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/ir/ir.h>
#include <torch/version.h>

#include <algorithm>
#include <functional>
#include <future>

#include "bundle/archive.h"
#include "bundle/signing.h"
#include "common/platform/free_memory.h"
#include "engine/devices.h"
#include "engine/engine_options.h"
#include "engine/variants.h"
#include "hybrid_rt/plugin/script_check.h"
#include "torchscript/load.h"
#include "torchscript/script_engine.h"
#include "torchscript/warm_up.h"

namespace hybrid_rt {
namespace {

/// Attribute of a loaded module that contains the names of its classes.
constexpr char kClassNames[] = "hybrid_rt_class_names";

void check_counts(const LoadOptions& options) {
  if (options.threads >= 0 && options.concurrency >= 1) return;
  throw Error(ErrorKind::kOption, "bundle", "threads, concurrency", "0 or more, and 1 or more",
              std::to_string(options.threads) + " and " + std::to_string(options.concurrency), "");
}

/// Prepares the engines concurrently, because vendors compile for this machine now, which takes seconds.
void prepare_all(const std::vector<c10::intrusive_ptr<ScriptEngine>>& engines, const Preference& preference,
                 EngineOptions options) {
  if (options.threads == 0) options.threads = at::get_num_threads();  // that of this thread, not of those below
  const Machine machine = Machine::here();                            // once per load
  std::vector<std::future<void>> jobs;
  for (size_t i = 1; i < engines.size(); ++i) {
    jobs.push_back(std::async(std::launch::async, [&, i] { engines[i]->prepare(preference, options, machine); }));
  }
  std::exception_ptr failure;
  const auto noted = [&](const std::function<void()>& job) {
    try {
      job();
    } catch (...) {
      if (!failure) failure = std::current_exception();
    }
  };
  if (!engines.empty()) noted([&] { engines[0]->prepare(preference, options, machine); });
  for (auto& job : jobs) noted([&] { job.get(); });
  if (failure) std::rethrow_exception(failure);
}

bool is_engine(const c10::TypePtr& type) {
  static const auto engine = c10::getCustomClassType<c10::intrusive_ptr<ScriptEngine>>();
  return *type == *engine;
}

void collect_engines(const torch::jit::Block* block, std::vector<c10::intrusive_ptr<ScriptEngine>>& found) {
  for (const torch::jit::Node* node : block->nodes()) {
    for (const torch::jit::Value* input : node->inputs()) {
      if (input->node()->kind() != c10::prim::Constant || !is_engine(input->type())) continue;
      auto engine = torch::jit::toIValue(input)->toCustomClass<ScriptEngine>();
      if (std::find(found.begin(), found.end(), engine) == found.end()) found.push_back(std::move(engine));
    }
    for (const torch::jit::Block* inner : node->blocks()) collect_engines(inner, found);
  }
}

/// Returns the engines of a bundle's module in the order in which it runs them. Freezing made them constants of the
/// graph.
std::vector<c10::intrusive_ptr<ScriptEngine>> engines_of(const torch::jit::Module& module) {
  std::vector<c10::intrusive_ptr<ScriptEngine>> found;
  const auto method = module.find_method("forward");
  if (method) collect_engines(method->graph()->block(), found);
  return found;
}

void carry_class_names(torch::jit::Module& module, const ClassNames& names) {
  if (names.empty()) return;
  const c10::IValue value(names);
  if (module.hasattr(kClassNames)) {
    module.setattr(kClassNames, value);
  } else {
    module.register_attribute(kClassNames, c10::ListType::ofStrings(), value);
  }
}

torch::jit::Module load_module(const Archive& file) {
  const std::string& path = file.path();
  try {
    // Always on the CPU: with another device, torch would move the engines' bytes before __setstate__ receives them.
    return torch::jit::load(file.bytes(), c10::kCPU);
  } catch (const Error&) {
    throw;
  } catch (const c10::Error& error) {
    throw Error(ErrorKind::kBundle, "bundle", path, "a TorchScript module that this torch (" TORCH_VERSION ") reads",
                error.what_without_backtrace(),
                "Load it with the torch that saved it, or a newer one (COMPATIBILITY.md).");
  } catch (const std::exception& error) {
    throw Error(ErrorKind::kBundle, "bundle", path, "a TorchScript module that this torch (" TORCH_VERSION ") reads",
                error.what(), "Load it with the torch that saved it, or a newer one (COMPATIBILITY.md).");
  }
}

}  // namespace

torch::jit::Module load(const std::string& path, const LoadOptions& options) {
  return load(std::make_shared<Archive>(path), options);
}

torch::jit::Module load(const std::shared_ptr<Archive>& file, const LoadOptions& given) {
  require_device(given.device);
  check_trust(*file, given);
  check_counts(given);
  LoadOptions options = given;
  options.device = with_index(given.device);
  file->verify(Archive::Records::kHead);
  check_script(file->bytes(), file->path());
  torch::jit::Module module = load_module(*file);
  const auto engines = engines_of(module);
  prepare_all(engines, preference_from(options.backend, options.strict, options.allow), engine_options(options));
  for (const auto& engine : engines) engine->release_bytes(file);
  if (!options.device.is_cpu()) {
    try {
      move_to(module, options.device);
    } catch (const c10::Error& error) {
      throw Error(ErrorKind::kOption, "bundle", "device " + options.device.str(), "a device that torch can use",
                  error.what_without_backtrace(), "Load with a device that this machine has.");
    }
  }
  platform::return_freed_memory();  // what compilers freed; before the warm-up, because calls reuse their memory
  warm_up(module, *file, options);
  carry_class_names(module, file->manifest().class_names);
  return module;
}

std::string read_manifest(const std::string& path) { return Archive(path).manifest_text(); }

ClassNames class_names(const std::string& path) { return Archive(path).manifest().class_names; }

ClassNames class_names(const torch::jit::Module& module) {
  if (!module.hasattr(kClassNames)) return {};
  return module.attr(kClassNames).to<ClassNames>();
}

std::string read_record(const std::string& path, const std::string& record) { return Archive(path).verified(record); }

void verify_records(const std::string& path) { Archive(path).verify(Archive::Records::kAll); }

void check_head(const std::string& path) {
  const Archive file(path);
  check_trust(file, {});
  file.verify(Archive::Records::kHead);
  check_script(file.bytes(), path);
}

std::vector<EngineCheck> check(const std::string& path, const LoadOptions& options, const Machine& machine) {
  const Archive file(path);
  check_trust(file, options);
  check_script(file.bytes(), path);
  const Preference preference = preference_from(options.backend, options.strict, options.allow);
  std::vector<EngineCheck> checks;
  for (const StoredEngine& engine : file.manifest().engines) {
    checks.push_back({engine.name(), engine.segments(),
                      check_variants(engine.variants, preference, engine_options(options), machine)});
  }
  return checks;
}

std::vector<EngineChoice> engines(const torch::jit::Module& module) {
  std::vector<EngineChoice> found;
  for (const auto& engine : engines_of(module)) found.push_back(engine->choice());
  return found;
}

}  // namespace hybrid_rt
