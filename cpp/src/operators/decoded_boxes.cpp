#include <cstdint>

#include "operators/box_tensors.h"
#include "operators/known_parts.h"

namespace hybrid_rt::operators {

at::Tensor decoded_boxes(const at::Tensor& codes, const at::Tensor& boxes, at::IntArrayRef image_size,
                         at::ArrayRef<double> weights, double bbox_xform_clip) {
  constexpr Refuse refuse{"decoded_boxes"};
  require_floats(refuse, codes);
  require_floats(refuse, boxes);
  if (codes.dim() != 2 || codes.size(1) != 4) {
    refuse("codes of shape [K, 4]", describe(codes), "Pass one row (dx, dy, dw, dh) per box.");
  }
  if (boxes.sizes() != codes.sizes()) {
    refuse(c10::str("boxes of shape ", codes.sizes(), ", one per code"), describe(boxes),
           "Check the code that computes them.");
  }
  require_size(refuse, "image_size", image_size);
  const at::Tensor code_rows = codes.contiguous();
  const at::Tensor box_rows = boxes.contiguous();
  const float* code = code_rows.const_data_ptr<float>();
  const float* box = box_rows.const_data_ptr<float>();
  BoxDecoding decoding = decoding_of(refuse, weights, bbox_xform_clip);
  decoding.reserve(codes.size(0));
  for (int64_t row = 0; row < codes.size(0); ++row, code += 4, box += 4) {
    decoding.add({box[0], box[1], box[2], box[3]}, {code[0], code[1], code[2], code[3]});
  }
  return tensor_of(decoded(decoding, image_size));
}

}  // namespace hybrid_rt::operators
