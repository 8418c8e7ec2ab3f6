#include "verification.h"

#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "hybrid_rt/error.h"
#include "spec/latency.h"
#include "torchscript/value_tree.h"
#include "verify/boxes.h"
#include "verify/comparison.h"

namespace py = pybind11;

namespace {

using hybrid_rt::BoxMatch;
using hybrid_rt::DetectionFields;
using hybrid_rt::Thresholds;
using hybrid_rt::TreeKind;
using hybrid_rt::TreeNode;

TreeNode<py::handle> node_of(const py::handle& object) {
  TreeNode<py::handle> node;
  if (py::isinstance<py::dict>(object)) {
    node.kind = TreeKind::kDict;
    for (const auto& [key, value] : py::reinterpret_borrow<py::dict>(object)) {
      node.keys.push_back(key.cast<std::string>());
      node.children.push_back(value);
    }
  } else if (py::isinstance<py::list>(object) || py::isinstance<py::tuple>(object)) {
    node.kind = py::isinstance<py::list>(object) ? TreeKind::kList : TreeKind::kTuple;
    for (const py::handle& element : object) node.children.push_back(element);
  }
  return node;
}

c10::IValue leaf_of(const py::handle& leaf) {
  if (THPVariable_Check(leaf.ptr())) return leaf.cast<at::Tensor>();
  if (py::isinstance<py::bool_>(leaf)) return leaf.cast<bool>();
  if (py::isinstance<py::int_>(leaf)) return leaf.cast<int64_t>();
  if (py::isinstance<py::float_>(leaf)) return leaf.cast<double>();
  if (py::isinstance<py::str>(leaf)) return leaf.cast<std::string>();
  return {};
}

/// Converts tensors, numbers and strings in lists, tuples and dicts with string keys; anything else becomes None. Not
/// every torch exports its own conversion.
c10::IValue value_of(const py::handle& object) {
  return hybrid_rt::build_value(object, nullptr, node_of,
                                [](const py::handle& leaf, const c10::TypePtr&) { return leaf_of(leaf); });
}

DetectionFields fields_of(const py::dict& detections) {
  py::list images;
  images.append(detections);
  auto found = hybrid_rt::detections_of(value_of(images));
  if (!found) {
    throw hybrid_rt::Error(hybrid_rt::ErrorKind::kInput, "verify", "detections",
                           "a dict of boxes [n, 4], labels [n] and scores [n]", "other fields or shapes",
                           "Compare other results with hybrid_rt.verify().");
  }
  return found->front();
}

void bind_records(py::module_& m) {
  py::class_<Thresholds> thresholds(m, "Thresholds");
  thresholds.def(py::init<>());
  for (const auto& field : hybrid_rt::kThresholdFields) thresholds.def_readwrite(field.name, field.value);

  py::class_<BoxMatch> match(m, "BoxMatch");
  match.def(py::init<>());
  hybrid_rt::visit_box_match_fields([&match](const char* name, auto field) { match.def_readwrite(name, field); });
  match.def("recall_of_expected", &BoxMatch::recall_of_expected)
      .def("recall_of_found", &BoxMatch::recall_of_found)
      .def("recall", &BoxMatch::recall)
      .def("masks_recall", &BoxMatch::masks_recall)
      .def("keypoint_recall", &BoxMatch::keypoint_recall);

  py::class_<hybrid_rt::OutputError>(m, "OutputError")
      .def(py::init<std::string, double, double>(), py::arg("output"), py::arg("relative_error"), py::arg("cosine"))
      .def_readonly("output", &hybrid_rt::OutputError::output)
      .def_readonly("relative_error", &hybrid_rt::OutputError::relative_error)
      .def_readonly("cosine", &hybrid_rt::OutputError::cosine);
  py::class_<hybrid_rt::Failure>(m, "Failure")
      .def_readonly("text", &hybrid_rt::Failure::text)
      .def_readonly("severity", &hybrid_rt::Failure::severity)
      .def_readonly("is_of_boxes", &hybrid_rt::Failure::is_of_boxes);
  py::class_<hybrid_rt::Comparison>(m, "Comparison")
      .def_readonly("pictures", &hybrid_rt::Comparison::pictures)
      .def_readonly("outputs", &hybrid_rt::Comparison::outputs)
      .def_readonly("failures", &hybrid_rt::Comparison::failures);
}

/// Reads a contract, or measurements in the same form, from the JSON of the manifest's field.
hybrid_rt::LatencyContract contract_from(const std::string& json, const std::string& path) {
  return hybrid_rt::LatencyContract::from_manifest("{\"latency_contract\": " + json + "}", path);
}

void bind_latency(py::module_& m) {
  m.def(
      "machine_description",
      [](int64_t gpu) {
        const auto machine = hybrid_rt::MachineDescription::here(gpu);
        py::dict entry;
        entry["processor"] = machine.processor;
        entry["architecture"] = machine.architecture;
        entry["cpus"] = machine.cpus;
        entry["gpu"] = machine.gpu;
        return entry;
      },
      py::arg("gpu"));
  m.def(
      "latency_sizes",
      [](const std::string& contract, const std::string& path, double tolerance, int64_t repeat,
         const std::vector<std::pair<int64_t, int64_t>>& sizes) {
        const hybrid_rt::LatencyOptions options{.tolerance = tolerance, .repeat = repeat, .sizes = sizes};
        hybrid_rt::check_latency_options(options);
        std::vector<std::tuple<int64_t, int64_t, int64_t>> chosen;
        for (const auto& size : hybrid_rt::chosen_sizes(contract_from(contract, path), options)) {
          chosen.emplace_back(size.height, size.width, repeat > 0 ? repeat : size.count);
        }
        return chosen;
      },
      py::arg("contract"), py::arg("path"), py::arg("tolerance"), py::arg("repeat"), py::arg("sizes"));
  m.def(
      "compare_latency",
      [](const std::string& contract, const std::string& here, double tolerance) {
        return hybrid_rt::to_json(
            hybrid_rt::compare_latency(contract_from(contract, ""), contract_from(here, ""), tolerance));
      },
      py::arg("contract"), py::arg("here"), py::arg("tolerance"));
}

}  // namespace

void bind_verification(py::module_& m) {
  bind_records(m);
  bind_latency(m);
  m.def(
      "compare_results",
      [](const py::object& expected, const py::object& found, const Thresholds& thresholds, const std::string& where) {
        return hybrid_rt::compare_results(value_of(expected), value_of(found), thresholds, where);
      },
      py::arg("expected"), py::arg("found"), py::arg("thresholds"), py::arg("where"));
  m.def(
      "are_detections", [](const py::object& value) { return hybrid_rt::detections_of(value_of(value)).has_value(); },
      py::arg("value"));
  m.def(
      "match_boxes",
      [](const py::dict& expected, const py::dict& found, const Thresholds& thresholds) {
        return hybrid_rt::match_boxes(fields_of(expected), fields_of(found), thresholds);
      },
      py::arg("expected"), py::arg("found"), py::arg("thresholds"));
  m.def(
      "matching_boxes",
      [](const py::dict& expected, const py::dict& found, const Thresholds& thresholds) {
        return hybrid_rt::matching_boxes(fields_of(expected), fields_of(found), thresholds);
      },
      py::arg("expected"), py::arg("found"), py::arg("thresholds"));
  m.def("box_iou", &hybrid_rt::box_iou, py::arg("first"), py::arg("second"));
  m.def("differences", &hybrid_rt::differences, py::arg("match"), py::arg("thresholds"));
  m.def("output_error", &hybrid_rt::output_error, py::arg("name"), py::arg("expected"), py::arg("found"),
        py::arg("limit"));
  m.def("error_text", &hybrid_rt::error_text, py::arg("error"), py::arg("thresholds"));
}
