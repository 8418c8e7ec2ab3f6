"""Runs the README and the pages of docs/: their code has to run, and their commands to print the output shown."""

from __future__ import annotations

import argparse
import copy
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torchvision
from PIL import Image
from torch import nn

from helpers import docs_pages as pages
from helpers.external_projects import configure, succeed
from helpers.paths import ROOT
from hybrid_rt.cli.main import _parser, main

pytestmark = pytest.mark.docs

BLOCKS = [block for page in pages.pages() for block in pages.blocks(page)]

NOT_RUN = [
    "README.md",  # ./tools/demo and ./tools/test
    "README.md",  # pip install
    "docs/backends.md",  # the contract test
    "docs/comparison.md",  # hybrid-rt bench
    "docs/cpp.md",  # cmake
    "docs/cpp.md",  # hybrid-rt-detect
    "docs/engine-tensorrt.md",  # on a GPU
    "docs/engine-tensorrt.md",  # pip install
    "docs/engine-tensorrt.md",  # a build
    "docs/first-steps.md",  # pip install
    "docs/index.md",  # ./tools/demo and ./tools/test
    "docs/latency.md",  # minutes of measurements
    "docs/many-machines.md",  # Docker
    "docs/many-machines.md",  # Kubernetes
    "docs/many-machines.md",  # Ray on other machines
    "docs/many-machines.md",  # Ray: test_ray_serve.py runs the application
    "docs/mixed-deployment.md",  # on a GPU
    "docs/mixed-deployment.md",  # engines for several GPUs
    "docs/package.md",  # Docker
    "docs/package.md",  # the start scripts: test_package.py runs them
    "docs/precision-and-verification.md",  # times of one machine
    "docs/release.md",  # tools/wheel: test_wheel.py runs it
    "docs/report.md",  # hybrid-rt convert
    "docs/service.md",  # the server runs until it is stopped: test_serve.py
    "docs/signing.md",
    "docs/signing.md",
    "docs/torchscript.md",  # the benchmark
]


@pytest.fixture
def checkout(
    tmp_path: Path, demo_image_path: Path, demo_detector: nn.Module, demo_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Returns a directory with models/, street.jpg and detector.pt; torchvision's model is the demo detector."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # files that a page writes
    (tmp_path / "models").symlink_to(ROOT / "models")
    (tmp_path / "out").mkdir()
    shutil.copyfile(demo_bundle, tmp_path / "detector.pt")  # a page may overwrite it
    Image.open(demo_image_path).convert("RGB").save("street.jpg", quality=95)
    detector = copy.deepcopy(demo_detector)  # a page may replace its backbone
    # Their weights need a network.
    monkeypatch.setattr(torchvision.models.detection, "fasterrcnn_resnet50_fpn", lambda weights: detector)
    get_model = torchvision.models.get_model

    def get(name: str, **options: Any) -> nn.Module:
        return detector if options.get("weights") == "DEFAULT" else get_model(name, **options)

    monkeypatch.setattr(torchvision.models, "get_model", get)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", pages.pages(), ids=lambda page: page.name)
def test_the_code_and_the_commands_of_a_page_run(page: Path, checkout: Path) -> None:
    pages.run_page(page)


def test_every_block_is_of_a_known_kind() -> None:
    for block in BLOCKS:
        assert block.language in {"python", "console", "text", "cpp", "cmake", "toml"}, block.where
        assert not block.marker or block.is_shown_only or block.source, f"{block.where}: {block.marker}"
        if block.language in ("cmake", "toml") and not block.title:
            assert block.source or block.is_shown_only, f"{block.where}: say what it is an excerpt of"


def test_few_blocks_are_not_run() -> None:
    """Each block states why. New ones are counted here, so that blocks are not marked by habit."""
    assert sorted(block.where.split(":")[0] for block in BLOCKS if block.is_shown_only) == NOT_RUN


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.source], ids=lambda block: block.where)
def test_excerpts_stand_in_their_file(block: pages.Block) -> None:
    source = " ".join(block.source.read_text().split())
    for part in re.split(r"^\s*(?://|#) \.\.\.$", block.text, flags=re.MULTILINE):
        assert " ".join(part.split()) in source, f"{block.where}: not in {block.source}: {part}"


@pytest.mark.slow
def test_the_cpp_blocks_compile_and_the_service_runs(demo_bundle: Path, tmp_path: Path) -> None:
    """Compiles all pages as one source file, because torch's headers take half a minute each time."""
    project = tmp_path / "service"
    project.mkdir()
    for block in pages.blocks(ROOT / "docs" / "cpp.md"):
        if block.title:
            (project / block.title).write_text(block.text)
    service = project / "service.cpp"
    for i, page in enumerate(pages.pages()):
        text = "".join(
            block.text for block in pages.blocks(page) if block.language == "cpp" and not (block.title or block.marker)
        )
        includes = "\n".join(re.findall(r"^#include.*$", text, re.MULTILINE))
        body = re.sub(r"^#include.*$", "", text, flags=re.MULTILINE)
        with service.open("a") as file:
            file.write(f"\n{includes}\nvoid page_{i}(const c10::List<at::Tensor>& images) {{\n{body}\n}}\n")
    build = tmp_path / "build"
    configured = configure(project, build, "-DCMAKE_BUILD_TYPE=")  # unoptimised, because that compiles faster
    assert configured.returncode == 0, configured.stderr
    succeed("cmake", "--build", build)
    printed = succeed(build / "service", demo_bundle)
    assert printed.splitlines()[-1].endswith(" objects")


# The names of the interface


def test_every_environment_variable_is_a_stable_name() -> None:
    sources = [path for directory in ("hybrid_rt", "cpp") for path in (ROOT / directory).rglob("*") if path.is_file()]
    code = "\n".join(path.read_text() for path in sources if path.suffix in (".py", ".cpp", ".h", ".cu"))
    listed = re.findall("`(HYBRID_RT_[A-Z_]+)`", (ROOT / "COMPATIBILITY.md").read_text())
    assert sorted(listed) == sorted(set(re.findall('"(HYBRID_RT_[A-Z_]+)"', code)))


def options_of(program: str) -> set[str]:
    """Returns the options in the help text in the source of a C++ program."""
    return {"--help", *re.findall(r"--[a-z][\w-]*", (ROOT / "cpp" / "apps" / program / "main.cpp").read_text())}


def unknown_options(text: str, known: dict[str, set[str]]) -> list[str]:
    """Returns the options on a page that the program or command does not have."""
    found = []
    for program, words in re.findall(r"(hybrid-rt(?:-serve|-detect)?) ((?:[^`\n|]|\\\|)*)", text.replace("\\\n", " ")):
        verb, _, rest = words.split(" #")[0].partition(" ")
        name = f"{program} {verb}" if program == "hybrid-rt" else program
        given = re.findall(r"(?<![\w-])--[a-z][\w-]*", rest if program == "hybrid-rt" else words)
        found += [f"{name} {option}" for option in given if name in known and option not in known[name]]
    return found


def test_every_option_that_is_shown_exists() -> None:
    known = {f"hybrid-rt-{program}": options_of(program) for program in ("serve", "detect")}
    known |= {f"hybrid-rt {program}": options_of(program) for program in ("serve", "detect")}
    (verbs,) = (action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction))
    for verb, parser in verbs.choices.items():
        known.setdefault(
            f"hybrid-rt {verb}", {option for action in parser._actions for option in action.option_strings}
        )
    paths = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "models").glob("*.md")]
    found = {path.name: unknown_options(path.read_text(), known) for path in paths}
    assert {page: options for page, options in found.items() if options} == {}
    assert unknown_options("`hybrid-rt-serve x.pt --nosuch`, `hybrid-rt check x.pt --exif`", known) == [
        "hybrid-rt-serve --nosuch",
        "hybrid-rt check --exif",
    ]


def test_the_verbs_that_are_shown_exist_and_the_readme_names_the_main_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    verbs = set(re.findall(r"^    ([\w-]+)(?:  |$)", capsys.readouterr().out, re.MULTILINE))
    assert {"convert", "verify", "inspect", "check", "detect", "doctor", "cache"} <= verbs
    text = {page: page.read_text() for page in pages.pages()}
    for page, content in text.items():
        for verb in re.findall(r"`hybrid-rt ([a-z-]+)", content):
            assert verb in verbs, f"{page}: hybrid-rt {verb}"
    in_readme = set(re.findall(r"^\$ hybrid-rt ([\w-]+)", text[ROOT / "README.md"], re.MULTILINE))
    assert in_readme >= {"convert", "verify", "inspect", "check", "detect", "doctor"}


@pytest.mark.parametrize("page", pages.pages(), ids=lambda page: page.name)
def test_the_directories_and_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text()
    for link in re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", text):
        # The C++ reference is generated; mkdocs checks links to it.
        assert link.startswith("api/cpp/") or (page.parent / link).exists(), link
    for path in set(re.findall(r"`?(?<!api/)((?:tools|models|tests|cpp|examples)/[\w./-]*\w)", text)):
        assert "NAME" in path or (ROOT / path).exists(), f"{page}: {path}"
