#include <torch/csrc/jit/python/pybind_utils.h>
#include <torch/extension.h>

#include "hybrid_rt/hybrid_rt.h"

// What TorchBind can't give: typed exceptions, the manifest without unpickling, the backends, and load() itself, so
// that Python and C++ load a bundle by the same code.

namespace py = pybind11;

namespace {

using hybrid_rt::LoadOptions;

LoadOptions options_from(const std::string& device, const std::string& backend, int threads, bool emulate_precision) {
  try {
    return {c10::Device(device), backend, threads, emulate_precision};
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
  }
  return "HybridRTError";
}

void translate(std::exception_ptr pointer) {
  try {
    if (pointer) std::rethrow_exception(pointer);
  } catch (const hybrid_rt::Error& error) {
    const py::object type = py::module_::import("hybrid_rt.errors").attr(exception_name(error.kind()));
    PyErr_SetString(type.ptr(), error.what());
  }
}

py::list list_checks(const std::string& path, const LoadOptions& options) {
  std::vector<hybrid_rt::SegmentCheck> segments;
  {
    const py::gil_scoped_release release;
    segments = hybrid_rt::check(path, options);
  }
  py::list list;
  for (const auto& segment : segments) {
    py::list variants;
    for (const auto& variant : segment.variants) {
      py::dict entry;
      entry["backend"] = variant.backend;
      entry["precision"] = variant.precision;
      entry["chosen"] = variant.chosen;
      entry["refusal"] = variant.refusal;
      variants.append(entry);
    }
    py::dict entry;
    entry["segment"] = segment.segment;
    entry["variants"] = variants;
    list.append(entry);
  }
  return list;
}

/// A nest of tensors; torch's own conversion is not exported by every torch.
c10::IValue value_of(const py::handle& object) {
  if (py::isinstance<py::dict>(object)) {
    c10::impl::GenericDict dict(c10::StringType::get(), c10::AnyType::get());
    for (const auto& [key, value] : object.cast<py::dict>()) dict.insert(key.cast<std::string>(), value_of(value));
    return dict;
  }
  if (py::isinstance<py::list>(object) || py::isinstance<py::tuple>(object)) {
    std::vector<c10::IValue> elements;
    for (const py::handle& element : object) elements.push_back(value_of(element));
    return c10::ivalue::Tuple::create(std::move(elements));
  }
  return object.cast<at::Tensor>();
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
  m.def(
      "load",
      [](const std::string& path, const std::string& device, const std::string& backend, int threads,
         bool emulate_precision) {
        const LoadOptions options = options_from(device, backend, threads, emulate_precision);
        const py::gil_scoped_release release;
        return hybrid_rt::load(path, options);
      },
      py::arg("path"), py::arg("device"), py::arg("backend"), py::arg("threads"), py::arg("emulate_precision"));
  m.def("read_manifest", &hybrid_rt::read_manifest, py::arg("path"), py::call_guard<py::gil_scoped_release>());
  m.def(
      "read_record",
      [](const std::string& path, const std::string& record) {
        return py::bytes(hybrid_rt::read_record(path, record));
      },
      py::arg("path"), py::arg("record"));
  m.def(
      "compare",
      [](const py::object& expected, const py::object& found, const std::string& thresholds) {
        return to_json(hybrid_rt::compare(value_of(expected), value_of(found),
                                          hybrid_rt::Thresholds::from_json(thresholds), "golden sample"));
      },
      py::arg("expected"), py::arg("found"), py::arg("thresholds"));
  m.def("verify_records", &hybrid_rt::verify_records, py::arg("path"), py::call_guard<py::gil_scoped_release>());
  m.def(
      "check",
      [](const std::string& path, const std::string& device, const std::string& backend) {
        return list_checks(path, options_from(device, backend, 0, false));
      },
      py::arg("path"), py::arg("device"), py::arg("backend"));
  m.def("choices", &hybrid_rt::choices, py::arg("module"));
  m.def("backends", &list_backends);
  m.def("add_plugin_folder", &hybrid_rt::add_plugin_folder, py::arg("folder"));
}
