#include "operators/head_operator_checks.h"

#include <c10/util/StringUtil.h>

#include <string>

#include "hybrid_rt/error.h"

namespace hybrid_rt::operators {
namespace {

/// Throws for one operator.
struct Refuse {
  [[noreturn]] void operator()(const std::string& expected, const std::string& got, const char* remedy) const {
    throw Error(ErrorKind::kInput, "operators", name, expected, got, remedy);
  }

  const char* name;
};

std::string describe(const at::Tensor& tensor) {
  return c10::str(c10::toString(tensor.scalar_type()), " ", tensor.sizes());
}

}  // namespace

void check_nms(const at::Tensor& dets, const at::Tensor& scores) {
  const Refuse refuse{"nms"};
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
  const Refuse refuse{"roi_align"};
  if (input.device() != rois.device()) {
    refuse("input and rois on one device", c10::str(input.device(), " and ", rois.device()),
           "Move one of them with .to().");
  }
  if (input.dim() != 4) {
    refuse("input of shape [N, C, H, W]", describe(input), "Add the missing dimensions with unsqueeze.");
  }
  if (rois.dim() != 2 || rois.size(1) != 5) {
    refuse("rois of shape [K, 5]", describe(rois), "Pass one row (index of the picture, x1, y1, x2, y2) per box.");
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
    refuse("input with pixels", describe(input), "Check what made it, or pass no boxes.");
  }
}

void check_box(const BoxVerdict& verdict, int64_t pictures, int64_t row) {
  if (verdict.fault == Fault::kNone) {
    return;
  }
  const Refuse refuse{"roi_align"};
  const std::string got = c10::str(verdict.got, " in row ", row);
  if (verdict.fault == Fault::kPicture) {
    refuse(c10::str("rois[:, 0] to index a batch of ", pictures), got, "Number the pictures from 0.");
  }
  refuse(c10::str("at most ", kMaxPoints, " sampling points per box"), got,
         "Lower sampling_ratio or clip the boxes to the picture.");
}

}  // namespace hybrid_rt::operators
