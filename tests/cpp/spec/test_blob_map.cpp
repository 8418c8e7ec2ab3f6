#include <ATen/ops/arange.h>
#include <ATen/ops/zeros.h>
#include <doctest/doctest.h>

#include "failure_of.h"
#include "hybrid_rt/plugin/blob_map.h"

namespace {

using hybrid_rt::ArtifactSpec;
using hybrid_rt::BlobMap;
using hybrid_rt::Error;
using hybrid_rt::ErrorKind;

ArtifactSpec spec_of(const std::vector<std::string>& names) {
  ArtifactSpec spec;
  spec.backend = "openvino";
  for (const std::string& name : names) spec.blobs.push_back({name, 1, "", {}});
  return spec;
}

}  // namespace

TEST_CASE("a blob map returns the bytes that the spec names") {
  const at::Tensor xml = at::arange(3, at::kByte);
  const at::Tensor weights = at::arange(5, at::kByte);
  const BlobMap blobs(spec_of({"xml", "weights"}), {xml, weights});
  CHECK(blobs.at("xml").is_same(xml));
  CHECK(blobs.at("weights").is_same(weights));
}

TEST_CASE("a missing blob causes an error that lists the existing ones") {
  const BlobMap blobs(spec_of({"xml", "weights"}), {at::zeros({1}, at::kByte), at::zeros({1}, at::kByte)});
  const Error error = failure_of([&] { blobs.at("engine"); });
  CHECK(error.kind() == ErrorKind::kBundle);
  CHECK(contains(error.what(), "artifact of openvino: expected a blob named 'engine', got 'weights', 'xml'."));
  CHECK(contains(failure_of([] { BlobMap(spec_of({}), {}).at("engine"); }).what(), "got none."));
}

TEST_CASE("a blob map requires the bytes of each blob") {
  CHECK(contains(failure_of([] { BlobMap(spec_of({"xml"}), {}); }).what(),
                 "artifact of openvino: expected 1 blobs, got 0."));
}
