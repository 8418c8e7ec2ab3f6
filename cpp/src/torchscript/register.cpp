#include <torch/library.h>

#include "operators/cuda_operators.h"
#include "operators/detection_operators.h"
#include "operators/head_operators.h"
#include "operators/known_parts.h"
#include "torchscript/fused_outputs.h"
#include "torchscript/script_engine.h"

// Registers the class, the op that runs it, and the operators of detection heads. There are no other registrations.

namespace hybrid_rt {
namespace {

using Flat = std::tuple<std::tuple<std::string, std::string>, std::tuple<std::string, std::string>>;

/// Returns the facts about an Engine that torch.export and torch.compile need (hybrid_rt/torchscript/fake_engine.py).
/// Torch sets the names as attributes of the stand-in, so none may be the name of a method.
Flat flatten(const c10::intrusive_ptr<ScriptEngine>& self) {
  const auto fields = std::get<1>(self->state());
  return {{"members", fields.at("segments")}, {"specs", fields.at("variants")}};
}

std::vector<at::Tensor> run_engine(const c10::intrusive_ptr<ScriptEngine>& engine,
                                   const std::vector<at::Tensor>& inputs) {
  return engine->run(inputs);
}

}  // namespace

TORCH_LIBRARY(hybrid_rt, m) {
  m.class_<ScriptEngine>("Engine")
      .def(torch::init<ScriptEngine::Fields, std::vector<at::Tensor>>())
      .def("run", &ScriptEngine::run)
      .def("segments", [](const c10::intrusive_ptr<ScriptEngine>& self) { return self->segments(); })
      .def("fields", [](const c10::intrusive_ptr<ScriptEngine>& self) { return std::get<1>(self->state()); })
      .def("blobs", [](const c10::intrusive_ptr<ScriptEngine>& self) { return std::get<2>(self->state()); })
      .def("choice", [](const c10::intrusive_ptr<ScriptEngine>& self) { return to_json(self->choice()); })
      .def("prepare",
           [](const c10::intrusive_ptr<ScriptEngine>& self, const std::string& backend, c10::Device device,
              int64_t threads, bool emulate_precision) {
             self->prepare(
                 preference_from(backend),
                 {.device = device, .threads = static_cast<int>(threads), .emulate_precision = emulate_precision},
                 Machine::here());
           })
      .def("__obj_flatten__", &flatten)
      .def_pickle([](const c10::intrusive_ptr<ScriptEngine>& self) { return self->state(); },
                  [](ScriptEngine::State state) { return ScriptEngine::from_state(std::move(state)); });
  m.def("run_engine(__torch__.torch.classes.hybrid_rt.Engine engine, Tensor[] inputs) -> Tensor[]");
  m.def("handed_on(Tensor[] outputs, Tensor[] inputs, str segment, int[] sources, int first, int count) -> Tensor[]");
  m.def("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor");
  m.def(
      "roi_align(Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width, "
      "int sampling_ratio, bool aligned) -> Tensor");
  m.def(
      "roi_pool(Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width) "
      "-> (Tensor, Tensor)");
  m.def(
      "ps_roi_pool(Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width) "
      "-> (Tensor, Tensor)");
  m.def(
      "ps_roi_align(Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width, "
      "int sampling_ratio) -> (Tensor, Tensor)");
  m.def(
      "deform_conv2d(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, int stride_h, int stride_w, "
      "int pad_h, int pad_w, int dilation_h, int dilation_w, int groups, int offset_groups, bool use_mask) -> Tensor");
  m.def("batched_nms(Tensor boxes, Tensor scores, Tensor idxs, float iou_threshold) -> Tensor");
  m.def(
      "ssd_detections(Tensor boxes, Tensor scores, float score_thresh, int topk_candidates, float nms_thresh, "
      "int detections_per_img) -> (Tensor boxes, Tensor scores, Tensor labels)");
  m.def("sigmoid_topk(Tensor logits, float score_thresh, int topk_candidates) -> (Tensor scores, Tensor indices)");
  m.def(
      "centered_sigmoid_topk(Tensor logits, Tensor centerness, float score_thresh, int topk_candidates) "
      "-> (Tensor scores, Tensor indices)");
  m.def("class_probabilities(Tensor logits) -> Tensor");
  m.def(
      "box_levels(Tensor boxes, int k_min, int k_max, int canonical_scale, int canonical_level, float eps) -> Tensor");
  m.def(
      "multiscale_roi_align(Tensor[] features, Tensor rois, Tensor levels, float[] scales, int pooled_height, "
      "int pooled_width, int sampling_ratio) -> Tensor");
  m.def(
      "region_proposals(Tensor[] objectness, Tensor[] deltas, Tensor[] cell_anchors, int image, int[] padded_size, "
      "int[] image_size, int pre_nms_top_n, int post_nms_top_n, float min_size, float score_thresh, float nms_thresh, "
      "float[] weights, float bbox_xform_clip) -> Tensor");
  m.def(
      "box_detections(Tensor scores, Tensor codes, Tensor proposals, int[] image_size, float score_thresh, "
      "float nms_thresh, int detections_per_img, float[] weights, float bbox_xform_clip) "
      "-> (Tensor boxes, Tensor scores, Tensor labels)");
  m.def(
      "decoded_boxes(Tensor codes, Tensor boxes, int[] image_size, float[] weights, float bbox_xform_clip) -> Tensor");
  m.def(
      "default_boxes(int[] heights, int[] widths, Tensor[] pairs, int[] image_size, int[] steps, bool clip) -> Tensor");
  m.def(
      "normalized_batch(Tensor[] images, float[] mean, float[] std, int[] heights, int[] widths, int size_divisible) "
      "-> Tensor");
}

TORCH_LIBRARY_IMPL(hybrid_rt, CompositeExplicitAutograd, m) {
  m.impl("run_engine", &run_engine);
  m.impl("handed_on", &handed_on);
}

/// The operators that are the same on every device.
static void implement_whole_steps(torch::Library& m) {
  m.impl("batched_nms", &operators::batched_nms);
  m.impl("ssd_detections", &operators::ssd_detections);
  m.impl("sigmoid_topk", &operators::sigmoid_topk);
  m.impl("centered_sigmoid_topk", &operators::centered_sigmoid_topk);
  m.impl("class_probabilities", &operators::class_probabilities);
  m.impl("box_levels", &operators::box_levels);
  m.impl("multiscale_roi_align", &operators::multiscale_roi_align);
  m.impl("region_proposals", &operators::region_proposals);
  m.impl("box_detections", &operators::box_detections);
  m.impl("decoded_boxes", &operators::decoded_boxes);
  m.impl("default_boxes", &operators::default_boxes);
  m.impl("normalized_batch", &operators::normalized_batch);
}

TORCH_LIBRARY_IMPL(hybrid_rt, CPU, m) {
  m.impl("nms", &operators::nms);
  m.impl("roi_align", &operators::roi_align);
  m.impl("roi_pool", &operators::roi_pool);
  m.impl("ps_roi_pool", &operators::ps_roi_pool);
  m.impl("ps_roi_align", &operators::ps_roi_align);
  m.impl("deform_conv2d", &operators::deform_conv2d);
  implement_whole_steps(m);
}

TORCH_LIBRARY_IMPL(hybrid_rt, CUDA, m) {
  m.impl("nms", &operators::nms_on_cuda);
  m.impl("roi_align", &operators::roi_align_on_cuda);
  m.impl("roi_pool", &operators::roi_pool_through_cpu);
  m.impl("ps_roi_pool", &operators::ps_roi_pool_through_cpu);
  m.impl("ps_roi_align", &operators::ps_roi_align_through_cpu);
  m.impl("deform_conv2d", &operators::composed_deform_conv2d);
  implement_whole_steps(m);
}

}  // namespace hybrid_rt
