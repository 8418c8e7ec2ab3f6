#include <ATen/ops/empty.h>
#include <doctest/doctest.h>

#include <cstdint>
#include <vector>

#include "hybrid_rt/plugin/output_memory.h"

namespace {

using hybrid_rt::OutputMemory;

const std::vector<std::int64_t> kLarge = {9, 1024, 1024};  // 36 MiB in float32

}  // namespace

TEST_CASE("a large output has the memory of the last call if no tensor has it any more") {
  OutputMemory memory;
  at::Tensor first = memory.empty(0, kLarge, at::kFloat);
  const void* const data = first.const_data_ptr();
  first.fill_(1);

  at::Tensor view;
  SUBCASE("the output is still held") { view = first; }
  SUBCASE("a view of it is still held") { view = first[3]; }
  first.reset();
  const at::Tensor second = memory.empty(0, kLarge, at::kFloat);
  const bool is_used_again = second.const_data_ptr() == data;
  CHECK(is_used_again == !view.defined());
  CHECK(second.sizes().vec() == kLarge);
  CHECK(second.is_contiguous());
  if (!view.defined()) return;
  second.zero_();
  CHECK(view.eq(1).all().item<bool>());
}

TEST_CASE("memory of other outputs, sizes and owners is not used again") {
  OutputMemory memory;
  at::Tensor first = memory.empty(0, kLarge, at::kFloat);
  const at::Tensor other_output = memory.empty(1, kLarge, at::kFloat);
  const bool is_shared = other_output.const_data_ptr() == first.const_data_ptr();
  CHECK_FALSE(is_shared);

  SUBCASE("another size") {
    first.reset();
    CHECK(memory.empty(0, {10, 1024, 1024}, at::kFloat).size(0) == 10);
  }
  SUBCASE("another dtype of the same bytes") {
    first.reset();
    const bool is_int = memory.empty(0, kLarge, at::kInt).scalar_type() == at::kInt;
    CHECK(is_int);
  }
  SUBCASE("the storage was moved, as share_memory_() does for another process") {
    std::vector<char> moved(first.nbytes());
    first.storage().set_data_ptr({moved.data(), at::kCPU});
    first.reset();
    const bool is_used_again = memory.empty(0, kLarge, at::kFloat).const_data_ptr() == moved.data();
    CHECK_FALSE(is_used_again);
  }
}

TEST_CASE("small outputs are not kept") {
  OutputMemory memory;
  CHECK(memory.empty(0, {1024, 1024}, at::kFloat).storage().use_count() == 1);
  CHECK(memory.empty(0, kLarge, at::kFloat).storage().use_count() == 2);
}
