#include <doctest/doctest.h>

#include <algorithm>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "captured_log.h"
#include "failure_of.h"
#include "hybrid_rt/backends.h"
#include "temporary.h"

// The registry lives as long as the process, so each test uses its own names.

namespace {

using hybrid_rt::BackendInfo;
using hybrid_rt::Error;
using hybrid_rt::ErrorKind;
using hybrid_rt::LogLevel;

const BackendInfo* find(const std::vector<BackendInfo>& infos, const std::string& name) {
  const auto found =
      std::find_if(infos.begin(), infos.end(), [&](const BackendInfo& info) { return info.name == name; });
  return found == infos.end() ? nullptr : &*found;
}

void write_file(const std::string& path) { std::ofstream(path) << "no library"; }

}  // namespace

TEST_CASE("the plug-ins next to the library are found and opened") {
  const auto infos = hybrid_rt::backends();
  const BackendInfo* torchscript = find(infos, "torchscript");
  REQUIRE(torchscript != nullptr);
  CHECK(torchscript->plugin.ends_with("/libhybrid_rt_torchscript.so"));
  CHECK(torchscript->availability.available);
  CHECK(torchscript->availability.reason.empty());
  CHECK(torchscript->availability.version == TORCH_VERSION);
#ifdef HYBRID_RT_TESTS_HAVE_OPENVINO
  CHECK(find(infos, "openvino") != nullptr);
#endif
}

TEST_CASE("an unavailable backend gives the reason") {
  for (const BackendInfo& info : hybrid_rt::backends()) {
    CAPTURE(info.name);
    CHECK(info.availability.available == info.availability.reason.empty());
  }
}

TEST_CASE("a backend is created once, by the first thread") {
  std::vector<hybrid_rt::Backend*> seen(8);
  std::vector<std::thread> threads;
  for (auto& place : seen) threads.emplace_back([&place] { place = &hybrid_rt::backend("torchscript"); });
  for (std::thread& thread : threads) thread.join();
  CHECK(std::count(seen.begin(), seen.end(), &hybrid_rt::backend("torchscript")) == 8);
}

TEST_CASE("a backend that is not installed is named with the installed ones") {
  const Error error = failure_of([] { hybrid_rt::backend("nonesuch"); });
  CHECK(error.kind() == ErrorKind::kBackend);
  CHECK(contains(error.what(), "hybrid_rt[nonesuch]: backend: expected one of "));
  CHECK(contains(error.what(), "torchscript"));
  CHECK(contains(error.what(),
                 ", got 'nonesuch'. Install the package or plug-in that provides it "
                 "(libhybrid_rt_nonesuch.so), or name its directory in HYBRID_RT_PLUGIN_PATH."));
}

TEST_CASE("a plug-in in an added directory is found") {
  hybrid_rt::add_plugin_folder(HYBRID_RT_TEST_PLUGINS);
  const auto infos = hybrid_rt::backends();
  const BackendInfo* fixture = find(infos, "fixture");
  REQUIRE(fixture != nullptr);
  CHECK(fixture->plugin == HYBRID_RT_TEST_PLUGINS "/libhybrid_rt_fixture.so");
  CHECK(fixture->availability.version == "1.0");
}

TEST_CASE("a plug-in that is added to a known directory later is found on request") {
  const TemporaryDirectory directory;
  hybrid_rt::add_plugin_folder(directory.path().string());
  CHECK(contains(failure_of([] { hybrid_rt::backend("latecomer"); }).what(), "expected one of "));
  write_file(directory.file("libhybrid_rt_latecomer.so"));
  CHECK(contains(failure_of([] { hybrid_rt::backend("latecomer"); }).what(), "the plug-in can't be opened: "));
}

TEST_CASE("a plug-in that can't be opened is listed with the reason") {
  const TemporaryDirectory directory;
  write_file(directory.file("libhybrid_rt_text.so"));
  hybrid_rt::add_plugin_folder(directory.path().string());
  const auto infos = hybrid_rt::backends();
  const BackendInfo* text = find(infos, "text");
  REQUIRE(text != nullptr);
  CHECK_FALSE(text->availability.available);
  CHECK(contains(text->availability.reason, "the plug-in can't be opened: "));
  const Error error = failure_of([] { hybrid_rt::backend("text"); });
  CHECK(error.kind() == ErrorKind::kBackend);
  CHECK(
      contains(error.what(), "hybrid_rt[text]: plug-in: expected a usable " + directory.file("libhybrid_rt_text.so")));
}

TEST_CASE("a library that is not a plug-in is listed with the reason") {
  const TemporaryDirectory directory;
  const auto infos = hybrid_rt::backends();
  const BackendInfo* torchscript = find(infos, "torchscript");
  REQUIRE(torchscript != nullptr);
  const auto library = std::filesystem::path(torchscript->plugin).parent_path() / "libhybrid_rt.so";
  std::filesystem::create_symlink(library, directory.file("libhybrid_rt_entryless.so"));
  hybrid_rt::add_plugin_folder(directory.path().string());
  CHECK(contains(failure_of([] { hybrid_rt::backend("entryless"); }).what(),
                 "exports no hybrid_rt_plugin (it lacks HYBRID_RT_PLUGIN)"));
}

TEST_CASE("the directories in HYBRID_RT_PLUGIN_PATH are searched, and missing ones are skipped") {
  const TemporaryDirectory directory;
  write_file(directory.file("libhybrid_rt_from_environment.so"));
  const std::string path = "/no/such/directory::" + directory.path().string();
  const TemporaryVariable variable("HYBRID_RT_PLUGIN_PATH", path.c_str());
  const auto infos = hybrid_rt::backends();
  CHECK(find(infos, "from_environment") != nullptr);
}

TEST_CASE("only files named libhybrid_rt_NAME.so are plug-ins") {
  const TemporaryDirectory directory;
  for (const char* name :
       {"libhybrid_rt_.so", "libhybrid_rt.so", "libother_one.so", "libhybrid_rt_two.so.1", "libhybrid_rt_three.a"}) {
    write_file(directory.file(name));
  }
  const auto before = hybrid_rt::backends().size();
  hybrid_rt::add_plugin_folder(directory.path().string());
  CHECK(hybrid_rt::backends().size() == before);
}

TEST_CASE("the first of two plug-ins with the same name is used, and one warning names both") {
  const TemporaryDirectory first;
  const TemporaryDirectory second;
  write_file(first.file("libhybrid_rt_twice.so"));
  write_file(second.file("libhybrid_rt_twice.so"));
  const CapturedLog captured;
  hybrid_rt::add_plugin_folder(first.path().string());
  hybrid_rt::add_plugin_folder(second.path().string());
  hybrid_rt::backends();
  const auto infos = hybrid_rt::backends();
  const BackendInfo* twice = find(infos, "twice");
  REQUIRE(twice != nullptr);
  CHECK(twice->plugin == first.file("libhybrid_rt_twice.so"));
  const std::vector<std::string> expected{
      "two plug-ins claim the name 'twice': " + first.file("libhybrid_rt_twice.so") + " is used, " +
      second.file("libhybrid_rt_twice.so") + " is not"};
  CHECK(captured.of(LogLevel::kWarning) == expected);
}
