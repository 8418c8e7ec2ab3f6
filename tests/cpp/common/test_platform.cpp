#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "common/platform/fork_handler.h"
#include "common/platform/library_bytes.h"
#include "common/platform/machine_facts.h"
#include "common/platform/regular_file.h"
#include "common/platform/shared_library.h"
#include "temporary.h"

// Also compiled for 64-bit Arm (tests/python/test_platform_halves.py), so this file includes no torch.
namespace platform = hybrid_rt::platform;
namespace fs = std::filesystem;

namespace {

bool is_child = false;

void note_child() { is_child = true; }

}  // namespace

TEST_CASE("a regular file is read at any position") {
  const TemporaryDirectory directory;
  const fs::path path = directory.path() / "digits";
  std::ofstream(path) << "0123456789";
  const platform::RegularFile file = platform::open_regular_file(path.string());
  REQUIRE(file.descriptor >= 0);
  CHECK(file.size == 10);
  std::array<char, 4> read{};
  std::string failure;
  CHECK(platform::read_at(file.descriptor, read.data(), 4, 3, failure) == 4);
  CHECK(std::string(read.data(), 4) == "3456");
  CHECK(platform::read_at(file.descriptor, read.data(), 4, 8, failure) == 2);
  CHECK(platform::read_at(file.descriptor, read.data(), 4, 10, failure) == 0);
  CHECK(failure.empty());
  platform::close_file(file.descriptor);
  CHECK(platform::read_at(file.descriptor, read.data(), 4, 0, failure) < 0);
  CHECK(failure == "Bad file descriptor");
}

TEST_CASE("a directory, a pipe and a missing file are not regular files") {
  const TemporaryDirectory directory;
  CHECK(platform::open_regular_file(directory.path().string()).failure == "no regular file");
  CHECK(platform::open_regular_file("/dev/null").failure == "no regular file");
  const platform::RegularFile missing = platform::open_regular_file((directory.path() / "none").string());
  CHECK(missing.descriptor < 0);
  CHECK(missing.failure == "No such file or directory");
}

TEST_CASE("a library's bytes are a file until they are released") {
  const std::string bytes = "not a library";
  const platform::LibraryBytes made = platform::write_library("hybrid_rt_test", bytes.data(), bytes.size());
  REQUIRE(made.descriptor >= 0);
  std::ifstream file(made.path, std::ios::binary);
  CHECK(std::string(std::istreambuf_iterator<char>(file), {}) == bytes);
  CHECK_FALSE(platform::is_library_loaded(made.path));
  CHECK(platform::open_library(made.path, platform::Symbols::kForCaller) == nullptr);
  CHECK_FALSE(platform::library_failure().empty());
  platform::remove_library(made.descriptor, made.path);
  CHECK_FALSE(fs::exists(made.path));
}

TEST_CASE("libraries can be opened, searched for symbols and found by address") {
  void* const own = platform::open_library("libm.so.6", platform::Symbols::kForCaller);
  REQUIRE(own != nullptr);
  CHECK(platform::is_library_loaded("libm.so.6"));
  const void* const cosine = platform::find_symbol(own, "cos");
  REQUIRE(cosine != nullptr);
  CHECK(platform::library_of(cosine).filename() == "libm.so.6");
  CHECK(platform::find_symbol(own, "no_such_function") == nullptr);
  CHECK(platform::library_of(nullptr).empty());
  CHECK(platform::open_library("/no/such/library.so", platform::Symbols::kForProcess) == nullptr);
  CHECK(platform::library_failure().find("/no/such/library.so") != std::string::npos);
  CHECK(platform::library_failure() == "no reason is known");  // the failure was already reported
}

TEST_CASE("the machine reports instructions and memory") {
  CHECK_FALSE(platform::cpu_flags().empty());
  CHECK_FALSE(platform::processor_name().empty());
  CHECK(platform::architecture() != "unknown");
  CHECK(platform::usable_cpus() >= 1);
  CHECK(platform::free_memory() > 1 << 20);
}

TEST_CASE("a forked child calls the handler, the parent does not") {
  platform::call_in_forked_children(&note_child);
  const pid_t child = fork();
  if (child == 0) _exit(is_child ? 7 : 1);
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK(WEXITSTATUS(status) == 7);
  CHECK_FALSE(is_child);
}
