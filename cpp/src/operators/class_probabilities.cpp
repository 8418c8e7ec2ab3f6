#include <ATen/ops/softmax.h>

#include "operators/detection_operators.h"
#include "operators/one_thread.h"
#include "operators/refusal.h"

namespace hybrid_rt::operators {

at::Tensor class_probabilities(const at::Tensor& logits) {
  if (!at::isFloatingType(logits.scalar_type()) || logits.dim() == 0) {
    Refuse{"class_probabilities"}("floating-point logits of shape [..., C]", describe(logits),
                                  "Pass the logits of the classes in the last dimension.");
  }
  const OneThread one_thread(logits.numel());
  return at::softmax(logits, -1);
}

}  // namespace hybrid_rt::operators
