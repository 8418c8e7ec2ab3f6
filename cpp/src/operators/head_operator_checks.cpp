#include "operators/head_operator_checks.h"

#include <string>
#include <utility>
#include <vector>

#include "operators/head_operators.h"
#include "operators/refusal.h"

namespace hybrid_rt::operators {
void check_nms(const at::Tensor& dets, const at::Tensor& scores, const char* name) {
  const Refuse refuse{name};
  if (dets.device() != scores.device()) {
    refuse("dets and scores on one device", c10::str(dets.device(), " and ", scores.device()),
           "Move one of them with .to().");
  }
  if (dets.dim() != 2 || dets.size(1) != 4) {
    refuse("dets of shape [N, 4]", describe(dets), "Pass one row (x1, y1, x2, y2) per box.");
  }
  if (scores.dim() != 1 || scores.size(0) != dets.size(0)) {
    refuse(c10::str("scores of shape [", dets.size(0), "], one per box"), describe(scores), "Pass one score per box.");
  }
  if (dets.scalar_type() != at::kFloat && dets.scalar_type() != at::kDouble) {
    refuse("dets of dtype Float or Double", describe(dets), "Convert boxes and scores with .float().");
  }
  if (scores.scalar_type() != dets.scalar_type()) {
    refuse(c10::str("scores of the dtype of dets, ", c10::toString(dets.scalar_type())), describe(scores),
           "Convert one of them.");
  }
}

void check_roi_align(const at::Tensor& input, const at::Tensor& rois, int64_t pooled_height, int64_t pooled_width) {
  check_pooling("roi_align", input, rois, pooled_height, pooled_width);
}

void check_pooling(const char* name, const at::Tensor& input, const at::Tensor& rois, int64_t pooled_height,
                   int64_t pooled_width) {
  const Refuse refuse{name};
  if (input.device() != rois.device()) {
    refuse("input and rois on one device", c10::str(input.device(), " and ", rois.device()),
           "Move one of them with .to().");
  }
  if (input.dim() != 4) {
    refuse("input of shape [N, C, H, W]", describe(input), "Add the missing dimensions with unsqueeze.");
  }
  if (rois.dim() != 2 || rois.size(1) != 5) {
    refuse("rois of shape [K, 5]", describe(rois), "Pass one row (index of the image, x1, y1, x2, y2) per box.");
  }
  const at::ScalarType dtype = input.scalar_type();
  if (dtype != at::kFloat && dtype != at::kDouble && dtype != at::kHalf) {
    refuse("input of dtype Float, Double or Half", describe(input), "Convert input and rois with .float().");
  }
  if (rois.scalar_type() != dtype) {
    refuse(c10::str("rois of the dtype of input, ", c10::toString(dtype)), describe(rois), "Convert one of them.");
  }
  if (pooled_height < 0 || pooled_width < 0) {
    refuse("an output size of 0 or more", c10::str(pooled_height, " x ", pooled_width), "Check the pooler's options.");
  }
  if (rois.size(0) > 0 && (input.size(2) == 0 || input.size(3) == 0)) {
    refuse("input with pixels", describe(input), "Check the code that computes it, or pass no boxes.");
  }
}

void check_position_sensitive_pooling(const char* name, const at::Tensor& input, const at::Tensor& rois,
                                      int64_t pooled_height, int64_t pooled_width) {
  check_pooling(name, input, rois, pooled_height, pooled_width);
  const int64_t bins = pooled_height * pooled_width;
  if (bins == 0 || input.size(1) % bins != 0) {
    Refuse{name}(c10::str("channels that are a multiple of ", pooled_height, " x ", pooled_width, " bins"),
                 describe(input), "Check the code that computes it, or the pooler's output size.");
  }
}

void check_box(const BoxVerdict& verdict, int64_t images, int64_t row, const char* name) {
  if (verdict.fault == Fault::kNone) {
    return;
  }
  const Refuse refuse{name};
  const std::string got = c10::str(verdict.got, " in row ", row);
  if (verdict.fault == Fault::kImage) {
    refuse(c10::str("rois[:, 0] to index a batch of ", images), got, "Number the images from 0.");
  }
  refuse(c10::str("at most ", kMaxPoints, " sampling points per box"), got,
         "Lower sampling_ratio or clip the boxes to the image.");
}

void check_deform_conv2d(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& offset,
                         const at::Tensor& mask, const at::Tensor& bias, const DeformableConvolution& options) {
  const Refuse refuse{"deform_conv2d"};
  if (input.dim() != 4 || weight.dim() != 4 || offset.dim() != 4) {
    refuse("input, weight and offset of four dimensions",
           c10::str(describe(input), ", ", describe(weight), " and ", describe(offset)),
           "Check the code that computes them.");
  }
  const at::ScalarType dtype = input.scalar_type();
  if (dtype != at::kFloat && dtype != at::kDouble && dtype != at::kHalf) {
    refuse("input of dtype Float, Double or Half", describe(input), "Convert all tensors with .float().");
  }
  for (const at::Tensor* const tensor : {&weight, &offset, &bias, options.use_mask ? &mask : &offset}) {
    if (tensor->scalar_type() != dtype || tensor->device() != input.device()) {
      refuse(c10::str("tensors of the dtype and device of input, ", c10::toString(dtype), " on ", input.device()),
             c10::str(describe(*tensor), " on ", tensor->device()), "Convert or move one of them.");
    }
  }
  for (const int64_t number : {options.stride_h, options.stride_w, options.dilation_h, options.dilation_w,
                               options.groups, options.offset_groups}) {
    if (number < 1) refuse("strides, dilations and groups of 1 or more", c10::str(number), "Check the module.");
  }
  if (options.pad_h < 0 || options.pad_w < 0) refuse("a padding of 0 or more", "a negative one", "Check the module.");
  if (input.size(1) % options.groups != 0 || weight.size(0) % options.groups != 0 ||
      weight.size(1) * options.groups != input.size(1) || input.size(1) % options.offset_groups != 0) {
    refuse(c10::str("channels that fit ", options.groups, " groups and ", options.offset_groups, " groups of offsets"),
           c10::str(describe(input), " and weight ", describe(weight)), "Check the module.");
  }
  const auto [height, width] = options.output_size(input, weight);
  if (height < 1 || width < 1) {
    refuse("an output with pixels", c10::str(height, " x ", width, " of input ", describe(input)),
           "Pass a larger image.");
  }
  const int64_t taps = options.offset_groups * weight.size(2) * weight.size(3);
  const auto check_map = [&](const char* what, const at::Tensor& map, int64_t channels) {
    const std::vector<int64_t> wanted{input.size(0), channels, height, width};
    if (map.sizes() != at::IntArrayRef(wanted)) {
      refuse(c10::str(what, " of shape ", at::IntArrayRef(wanted)), describe(map), "Check the code that computes it.");
    }
  };
  check_map("offset", offset, 2 * taps);
  if (options.use_mask) check_map("mask", mask, taps);
  if (bias.dim() != 1 || bias.size(0) != weight.size(0)) {
    refuse(c10::str("bias of shape [", weight.size(0), "]"), describe(bias), "Check the module.");
  }
}

}  // namespace hybrid_rt::operators
