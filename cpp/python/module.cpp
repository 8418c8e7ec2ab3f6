#include <torch/csrc/jit/python/pybind_utils.h>
#include <torch/extension.h>

#include "hybrid_rt/hybrid_rt.h"
#include "hybrid_rt/plugin/frozen.h"
#include "hybrid_rt/plugin/script_check.h"
#include "verification.h"

// Bindings that TorchBind can't provide: typed exceptions, the manifest without unpickling, the backends, and load()
// itself, so that Python and C++ load a bundle with the same code.

namespace py = pybind11;

namespace {

using hybrid_rt::LoadOptions;

LoadOptions options_from(const std::string& device, const std::string& backend, int threads, bool emulate_precision,
                         bool strict, std::vector<std::pair<int64_t, int64_t>> warm_up, const std::string& trust,
                         int concurrency, std::vector<std::string> trusted_keys, std::vector<std::string> allow,
                         bool pin_threads) {
  if (trust != "digests" && trust != "signed") {
    throw hybrid_rt::Error(hybrid_rt::ErrorKind::kOption, "bundle", "trust", "'digests' or 'signed'", "'" + trust + "'",
                           "Pass one of these.");
  }
  const auto policy = trust == "signed" ? hybrid_rt::TrustPolicy::kSigned : hybrid_rt::TrustPolicy::kDigests;
  try {
    return {.device = c10::Device(device),
            .backend = backend,
            .threads = threads,
            .emulate_precision = emulate_precision,
            .strict = strict,
            .warm_up = std::move(warm_up),
            .trust = policy,
            .trusted_keys = std::move(trusted_keys),
            .concurrency = concurrency,
            .allow = std::move(allow),
            .pin_threads = pin_threads};
  } catch (const c10::Error& error) {
    throw hybrid_rt::Error(hybrid_rt::ErrorKind::kOption, "bundle", "device", "a device such as 'cpu' or 'cuda:0'",
                           "'" + device + "'", error.what_without_backtrace());
  }
}

const char* exception_name(hybrid_rt::ErrorKind kind) {
  switch (kind) {
    case hybrid_rt::ErrorKind::kBundle:
      return "BundleError";
    case hybrid_rt::ErrorKind::kBackend:
      return "BackendError";
    case hybrid_rt::ErrorKind::kInput:
      return "InputError";
    case hybrid_rt::ErrorKind::kOption:
      return "OptionError";
    case hybrid_rt::ErrorKind::kBusy:
    case hybrid_rt::ErrorKind::kDeadline:  // thrown by a Detector, which Python does not have
      return "HybridRTError";
  }
  return "HybridRTError";
}

void translate(std::exception_ptr pointer) {
  try {
    if (pointer) std::rethrow_exception(pointer);
  } catch (const hybrid_rt::Error& error) {
    const py::object type = py::module_::import("hybrid_rt.common.errors").attr(exception_name(error.kind()));
    // A path in the text may contain any bytes.
    const std::string_view said = error.what();
    const auto text = py::reinterpret_steal<py::object>(
        PyUnicode_DecodeUTF8(said.data(), static_cast<Py_ssize_t>(said.size()), "surrogateescape"));
    PyErr_SetObject(type.ptr(), text.ptr());
  }
}

py::list list_variants(const std::vector<hybrid_rt::VariantCheck>& checks) {
  py::list variants;
  for (const auto& variant : checks) {
    py::dict entry;
    entry["backend"] = variant.backend;
    entry["precision"] = variant.precision;
    entry["chosen"] = variant.chosen;
    entry["refusal"] = variant.refusal;
    variants.append(entry);
  }
  return variants;
}

py::list list_engines(const torch::jit::Module& module) {
  py::list engines;
  for (const hybrid_rt::EngineChoice& choice : hybrid_rt::engines(module)) {
    py::dict entry;
    entry["engine"] = choice.name;
    entry["segments"] = choice.segments;
    entry["backend"] = choice.backend;
    entry["precision"] = choice.precision;
    entry["description"] = choice.description;
    entry["variants"] = list_variants(choice.variants);
    engines.append(entry);
  }
  return engines;
}

py::list list_checks(const std::string& path, const LoadOptions& options, const hybrid_rt::Machine& machine) {
  std::vector<hybrid_rt::EngineCheck> engines;
  {
    const py::gil_scoped_release release;
    engines = hybrid_rt::check(path, options, machine);
  }
  py::list list;
  for (const auto& engine : engines) {
    py::dict entry;
    entry["engine"] = engine.engine;
    entry["segments"] = engine.segments;
    entry["variants"] = list_variants(engine.variants);
    list.append(entry);
  }
  return list;
}

/// Returns (devices, reason why there are none).
py::tuple list_cuda_devices() {
  const hybrid_rt::Machine machine = hybrid_rt::Machine::here();
  py::list devices;
  for (const hybrid_rt::CudaDevice& device : machine.cuda_devices) {
    py::dict entry;
    entry["name"] = device.name;
    entry["capability"] = device.capability;
    entry["memory"] = device.memory;
    devices.append(entry);
  }
  return py::make_tuple(devices, machine.no_cuda_reason);
}

py::list list_backends() {
  std::vector<hybrid_rt::BackendInfo> found;
  {
    const py::gil_scoped_release release;
    found = hybrid_rt::backends();
  }
  py::list list;
  for (const auto& info : found) {
    py::dict entry;
    entry["name"] = info.name;
    entry["plugin"] = info.plugin;
    entry["available"] = info.availability.available;
    entry["reason"] = info.availability.reason;
    entry["version"] = info.availability.version;
    entry["devices"] = info.availability.devices;
    list.append(entry);
  }
  return list;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "The native part of hybrid_rt.";
  m.attr("torch_version") = TORCH_VERSION;
  py::register_exception_translator(&translate);
  py::class_<LoadOptions>(m, "LoadOptions")
      .def(py::init(&options_from), py::arg("device"), py::arg("backend"), py::arg("threads") = 0,
           py::arg("emulate_precision") = false, py::arg("strict") = false,
           py::arg("warm_up") = std::vector<std::pair<int64_t, int64_t>>(), py::arg("trust") = "digests",
           py::arg("concurrency") = 1, py::arg("trusted_keys") = std::vector<std::string>(),
           py::arg("allow") = std::vector<std::string>(), py::arg("pin_threads") = false);
  m.def(
      "sign",
      [](const std::string& path, const std::string& private_key) {
        const hybrid_rt::Signature signature = hybrid_rt::sign(path, private_key);
        return py::make_tuple(signature.key, signature.bytes);
      },
      py::arg("path"), py::arg("private_key"));
  m.def("key_of", &hybrid_rt::key_of, py::arg("private_key"));
  m.def(
      "signers",
      [](const std::string& path) {
        std::vector<std::string> keys;
        for (const hybrid_rt::Signature& signature : hybrid_rt::signatures(path)) keys.push_back(signature.key);
        return keys;
      },
      py::arg("path"));
  m.def(
      "check_script",
      [](const py::bytes& archive, const std::string& subject) {
        const auto view = static_cast<std::string_view>(archive);
        hybrid_rt::check_script(view, subject);
      },
      py::arg("archive"), py::arg("subject"));
  m.def(
      "verify_signature",
      [](const std::string& path, const std::vector<std::string>& trusted_keys) {
        py::list signers;
        for (const std::string& key : hybrid_rt::verify_signature(path, trusted_keys)) signers.append(py::bytes(key));
        return signers;
      },
      py::arg("path"), py::arg("trusted_keys"));
  m.def("forget_inlined_functions", &hybrid_rt::forget_inlined_functions, py::arg("frozen"));
  m.def("check_head", &hybrid_rt::check_head, py::arg("path"), py::call_guard<py::gil_scoped_release>());
  m.def(
      "load", [](const std::string& path, const LoadOptions& options) { return hybrid_rt::load(path, options); },
      py::arg("path"), py::arg("options"), py::call_guard<py::gil_scoped_release>());
  py::class_<hybrid_rt::OpenedEngine, std::shared_ptr<hybrid_rt::OpenedEngine>>(m, "OpenedEngine")
      .def(
          "run", [](hybrid_rt::OpenedEngine& self, const std::vector<at::Tensor>& inputs) { return self.run(inputs); },
          py::arg("inputs"), py::call_guard<py::gil_scoped_release>())
      .def("description", &hybrid_rt::OpenedEngine::description)
      .def("variants", [](const hybrid_rt::OpenedEngine& self) { return list_variants(self.variants()); });
  m.def("open_engine", &hybrid_rt::open_engine, py::arg("path"), py::arg("name"), py::arg("options"),
        py::call_guard<py::gil_scoped_release>());
  m.def("read_manifest", &hybrid_rt::read_manifest, py::arg("path"), py::call_guard<py::gil_scoped_release>());
  m.def(
      "read_record",
      [](const std::string& path, const std::string& record) {
        return py::bytes(hybrid_rt::read_record(path, record));
      },
      py::arg("path"), py::arg("record"));
  m.def("verify_records", &hybrid_rt::verify_records, py::arg("path"), py::call_guard<py::gil_scoped_release>());
  m.def(
      "check",
      [](const std::string& path, const LoadOptions& options, const std::optional<std::set<std::string>>& cpu,
         std::optional<int64_t> memory, const std::optional<std::string>& capability) {
        hybrid_rt::Machine machine = hybrid_rt::Machine::here();
        if (cpu) machine.cpu_flags = *cpu;
        if (memory) machine.free_memory = *memory;
        if (capability) machine.cuda_devices = {{"a GPU", *capability, 0}};
        return list_checks(path, options, machine);
      },
      py::arg("path"), py::arg("options"), py::arg("cpu"), py::arg("memory"), py::arg("capability"));
  bind_verification(m);
  m.def("engines", &list_engines, py::arg("module"));
  m.def("move_to", &hybrid_rt::move_to, py::arg("module"), py::arg("device"), py::call_guard<py::gil_scoped_release>());
  m.def("cpu_flags", [] { return hybrid_rt::Machine::here().cpu_flags; });
  m.def("cuda_devices", &list_cuda_devices);
  m.def("backends", &list_backends);
  m.def("add_plugin_folder", &hybrid_rt::add_plugin_folder, py::arg("folder"));
}
