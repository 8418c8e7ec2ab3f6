"""Runs the tests of the TensorRT plug-in on the emulated GPU in instrumented builds.

    python -m tools.dev.emulated_gpu coverage          # measures which lines of the plug-in they run
    python -m tools.dev.emulated_gpu address|thread    # under AddressSanitizer and UBSan, or ThreadSanitizer
    python -m tools.dev.emulated_gpu faults [NAME ...] # with faults planted into the plug-in: the tests must notice
    each

Only the plug-in and its tests are compiled differently; the library comes from ccache. The builds are in
build/emulated_NAME; faults are planted into the coverage build. The exit status is 0 if everything is as expected.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from tools.dev.planted_faults import FAULTS, Fault

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "cpp" / "backends" / "tensorrt"
FLAGS = {
    "coverage": ["--coverage", "-O0", "-fprofile-update=atomic"],
    "address": [
        "-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=undefined",
        "-fno-omit-frame-pointer", "-O1", "-g1",
    ],
    "thread": ["-fsanitize=thread", "-fno-omit-frame-pointer", "-O1", "-g1"],
}  # fmt: skip
LEAST_COVERAGE = 90.0  # percent of all lines of the plug-in


def run(command: list[str], *, cwd: Path = ROOT, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end. The result contains its output."""
    # As in tools/setup, so that its entries in ccache are found.
    environment = {"CCACHE_BASEDIR": str(ROOT), **os.environ, **(env or {})}
    return subprocess.run(command, text=True, capture_output=True, cwd=cwd, env=environment)


def build(name: str) -> Path:
    """Configures and builds the tests with the flags of one kind of run, and returns the directory."""
    directory = ROOT / "build" / f"emulated_{name}"  # of the same depth as the usual build, for ccache
    options = {
        "CMAKE_BUILD_TYPE": "Release", "HYBRID_RT_BUILD_TESTS": "ON", "HYBRID_RT_BUILD_PYTHON": "OFF",
        "HYBRID_RT_BUILD_APPS": "OFF", "HYBRID_RT_BUILD_CUDA": "OFF", "HYBRID_RT_WERROR": "ON",
        "HYBRID_RT_INSTRUMENT": ";".join(FLAGS[name]), "CMAKE_EXPORT_COMPILE_COMMANDS": "ON",
        "CMAKE_UNITY_BUILD": "ON",
        # The name that scikit-build-core uses, which is part of ccache's key.
        "CMAKE_CXX_COMPILER": shutil.which("g++") or "c++", "Python_EXECUTABLE": sys.executable,
    }  # fmt: skip
    defines = [f"-D{key}={value}" for key, value in options.items()]
    for command in (
        ["cmake", "-S", str(ROOT), "-B", str(directory), "-G", "Ninja", *defines],
        ["cmake", "--build", str(directory), "--target", "emulated_gpu_tests"],
    ):
        done = run(command)
        if done.returncode != 0:
            sys.exit(f"{shlex.join(command)} failed:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return directory


def ctest(directory: Path) -> subprocess.CompletedProcess[str]:
    """Runs the tests of the emulated GPU in a build directory."""
    options = ["--output-on-failure", "--no-tests=error", "--timeout", "300"]
    variables = {"HYBRID_RT_TEST_EMULATED_BUNDLE": str(bundle(directory))}
    return run(["ctest", "--test-dir", str(directory), "-R", "^emulated_", *options], env=variables)


def tests_of_the_plugin(directory: Path) -> tuple[list[str], dict[str, str]]:
    """Returns command and environment of the plug-in's tests with the first stand-in.

    The tests of whole bundles are excluded: they take as long as all others and run the same plug-in.
    """
    shown = json.loads(run(["ctest", "--test-dir", str(directory), "--show-only=json-v1"]).stdout)["tests"]
    test = min((test for test in shown if test["name"].startswith("emulated_tensorrt_")), key=lambda test: test["name"])
    [variables] = [entry["value"] for entry in test["properties"] if entry["name"] == "ENVIRONMENT"]
    command = ["timeout", "300", *test["command"], "--source-file-exclude=*test_bundles.cpp"]
    return command, dict(variable.split("=", 1) for variable in variables)


def bundle(directory: Path) -> Path:
    """Returns the bundle that the tests load, made by the installed package on first use."""
    path = directory / "emulated.pt"
    if not path.is_file():
        done = run([sys.executable, "-m", "tools.dev.make_emulated_bundle", str(path)])
        if done.returncode != 0:
            sys.exit(f"tools.dev.make_emulated_bundle failed:\n{done.stderr[-3000:]}")
    return path


def sanitize(name: str) -> bool:
    """Runs the tests under a sanitizer. Returns true if it found nothing."""
    done = ctest(build(name))
    print(done.stdout[-30000:])
    return done.returncode == 0


def lines_of(directory: Path) -> dict[str, dict[int, int]]:
    """Returns how often each line of the plug-in's sources ran: the maximum over a file's builds."""
    counts: dict[str, dict[int, int]] = collections.defaultdict(dict)
    for data in sorted(directory.rglob("backends/tensorrt/**/*.gcda")):
        # One report for the file itself, and one for each header that has lines of code.
        for report in json.loads(run(["gcov", "--json-format", "--stdout", str(data)]).stdout)["files"]:
            path = Path(report["file"])
            if path.parent != PLUGIN:
                continue
            lines = counts[path.name]
            for line in report["lines"]:
                lines[line["line_number"]] = max(lines.get(line["line_number"], 0), line["count"])
    return counts


def measure() -> bool:
    """Prints the coverage of the plug-in. Returns true if it is sufficient."""
    directory = build("coverage")
    for data in directory.rglob("*.gcda"):
        data.unlink()
    done = ctest(directory)
    if done.returncode != 0:
        print(done.stdout)
        return False
    total = ran = 0
    for name, lines in sorted(lines_of(directory).items()):
        if not lines:
            continue  # a header without code
        covered = sum(count > 0 for count in lines.values())
        missing = [line for line, count in sorted(lines.items()) if count == 0]
        print(f"{name:24} {covered:4} of {len(lines):4}  {100 * covered / len(lines):5.1f} %  {missing or ''}")
        total, ran = total + len(lines), ran + covered
    share = 100 * ran / max(total, 1)
    print(f"{'all':24} {ran:4} of {total:4}  {share:5.1f} %")
    return share >= LEAST_COVERAGE


def plant(fault: Fault, directory: Path) -> Path:
    """Compiles a copy of the plug-in with one fault, and returns its library."""
    source = PLUGIN / fault.file
    text = source.read_text()
    if text.count(fault.old) != 1:
        sys.exit(
            f"planted fault {fault.name}: expected its line once in {fault.file}, got {text.count(fault.old)} times"
        )
    place = directory / "faults" / fault.name
    place.mkdir(parents=True, exist_ok=True)
    altered = place / fault.file
    altered.write_text(text.replace(fault.old, fault.new))
    commands = json.loads((directory / "compile_commands.json").read_text())
    link = run(["ninja", "-C", str(directory), "-t", "commands", "-s", "lib/libhybrid_rt_tensorrt.so"]).stdout
    link = re.sub(r"^: && (.*) && :$", r"\1", link.strip())
    for command in commands:
        output = os.path.relpath(command["output"], directory)
        if command["file"] != str(source) or output not in link:
            continue
        compiled = place / (Path(command["output"]).parent.name + ".o")
        words = shlex.split(command["command"])
        words[words.index("-o") + 1] = str(compiled)
        words[words.index("-c") + 1] = str(altered)
        done = run([*words, f"-I{PLUGIN}", "-Wno-error"], cwd=directory)
        if done.returncode != 0:
            sys.exit(f"planted fault {fault.name}: it does not compile:\n{done.stderr[-3000:]}")
        link = link.replace(output, shlex.quote(str(compiled)))
    if str(place) not in link:
        sys.exit(f"planted fault {fault.name}: expected {fault.file} among what the plug-in is compiled of, got none")
    library = place / "libhybrid_rt_tensorrt.so"
    done = run(
        shlex.split(link.replace("-o lib/libhybrid_rt_tensorrt.so", f"-o {shlex.quote(str(library))}")), cwd=directory
    )
    if done.returncode != 0:
        sys.exit(f"planted fault {fault.name}: it does not link:\n{done.stderr[-3000:]}")
    return library


def plant_all(names: list[str]) -> bool:
    """Runs the tests with each fault and prints what noticed it. Returns true if every fault was noticed."""
    directory = build("coverage")
    command, variables = tests_of_the_plugin(directory)
    if run(command, env=variables).returncode != 0:
        sys.exit("the tests fail without any fault")
    is_noticed = True
    for fault in FAULTS:
        if names and fault.name not in names:
            continue
        done = run(command, env={**variables, "HYBRID_RT_TEST_TENSORRT_PLUGIN": str(plant(fault, directory))})
        found = fault.noticed_as in done.stdout and done.returncode != 0
        is_noticed = is_noticed and found
        print(f"{'noticed' if found else 'MISSED ':8} {fault.name}: {fault.noticed_as}", flush=True)
    return is_noticed


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*FLAGS, "faults"])
    parser.add_argument("names", nargs="*", help="of planted faults (default: all)")
    arguments = parser.parse_args()
    if arguments.what == "coverage":
        is_right = measure()
    elif arguments.what == "faults":
        is_right = plant_all(arguments.names)
    else:
        is_right = sanitize(arguments.what)
    sys.exit(not is_right)


if __name__ == "__main__":
    main()
