"""Checks that each refusal of a detector has a code, and that docs/refusals.md has exactly these codes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from helpers.paths import ROOT
from hybrid_rt.common.refusals import Refusal, refusals

PAGE = (ROOT / "docs" / "refusals.md").read_text()

PACKAGES = ("common", "torchscript", "capture", "backends", "verification", "conversion")

REFUSALS = {"CaptureError", "FusionError", "BackendError", "VerificationError"}
"""Errors of these classes concern a detector; others concern a file or the value of an option."""

NOT_OF_A_DETECTOR = {
    "common/executables.py",  # the programs are not installed
    "common/version.py",  # the package is for another torch
    "conversion/export",  # packages, Triton, vendors' files: of a finished bundle
    "torchscript/graph_interpreter.py",  # a bundle's own segment
}

FACTORIES = {"make": (), "not_compiled": ("operator-not-in-engine",)}
"""Functions that make errors, with the codes that they set themselves."""

INSTALLATION = {"one class of that name", "one backend that stores the segment as it was captured"}
"""Expectations on the installed packages, which do not depend on the detector."""


@dataclass(frozen=True)
class Site:
    """A call of ``make`` or of another function in ``FACTORIES``."""

    path: Path
    line: int
    kind: str
    expected: tuple[str, ...]
    codes: tuple[str, ...]

    @property
    def where(self) -> str:
        return f"{self.path}:{self.line}"

    @property
    def needs_a_code(self) -> bool:
        exempt = any(str(self.path).startswith(f"hybrid_rt/{part}") for part in NOT_OF_A_DETECTOR)
        return self.kind in REFUSALS and not exempt and not INSTALLATION.intersection(self.expected)


def texts(node: ast.expr | None) -> tuple[str, ...]:
    """Returns the string constants in an expression."""
    found = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)] if node else []
    return tuple(text for text in found if isinstance(text, str))


def sites(path: Path) -> Iterator[Site]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in FACTORIES:
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            kind = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
            codes = passed_codes(path) if isinstance(given.get("code"), ast.Name) else texts(given.get("code"))
            codes += FACTORIES[node.func.attr]
            yield Site(path.relative_to(ROOT), node.lineno, kind, texts(given.get("expected")), codes)


def passed_codes(path: Path) -> tuple[str, ...]:
    """Returns the codes passed to the functions of a file, and the defaults of parameters named ``code``."""
    codes = []
    for function in ast.walk(ast.parse(path.read_text())):
        if isinstance(function, ast.FunctionDef):
            arguments = function.args.args
            defaults = dict(zip([each.arg for each in arguments][::-1], function.args.defaults[::-1], strict=False))
            codes += texts(defaults.get("code"))
        elif isinstance(function, ast.Call):
            codes += [text for argument in function.args for text in texts(argument) if text in refusals()]
    return tuple(codes)


SITES = [
    site
    for package in PACKAGES
    for path in sorted((ROOT / "hybrid_rt" / package).rglob("*.py"))
    for site in sites(path)
]


def test_each_refusal_of_a_detector_has_a_code() -> None:
    assert [site.where for site in SITES if site.needs_a_code and not site.codes] == []


def test_each_code_has_an_entry_and_each_entry_is_raised_somewhere() -> None:
    raised = {code for site in SITES for code in site.codes}
    assert raised - refusals().keys() == set()
    assert refusals().keys() - raised == set()


def test_exempted_names_exist() -> None:
    expected = {text for site in SITES for text in site.expected}
    assert expected >= INSTALLATION
    for part in NOT_OF_A_DETECTOR:
        assert any(str(site.path).startswith(f"hybrid_rt/{part}") for site in SITES), part


def test_the_rule_sees_a_refusal_without_a_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / "hybrid_rt" / "capture" / "new.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "def f(code='keeps-state'):\n"
        "    CaptureError.make('capture', 'x', expected=f'{a} b', got='c')\n"
        "    CaptureError.make('capture', 'x', expected='b', got='c', code='no-head-fits' if a else 'head-not')\n"
        "    CaptureError.make('capture', 'x', expected='b', got='c', code=code)\n"
        "    OptionError.make('capture', 'x', expected='b', got='c')\n"
    )
    found = list(sites(path))
    assert [site.codes for site in found] == [(), ("no-head-fits", "head-not"), ("keeps-state",), ()]
    assert [site.where for site in found if site.needs_a_code and not site.codes] == ["hybrid_rt/capture/new.py:2"]


# The page


def test_every_heading_of_the_third_level_is_an_entry() -> None:
    assert list(refusals()) == re.findall(r"^### (.+)$", PAGE, re.MULTILINE)
    assert len(refusals()) >= 30


@pytest.mark.parametrize("refusal", refusals().values(), ids=lambda refusal: refusal.code)
def test_an_entry_shows_a_message_its_cause_and_a_way_out(refusal: Refusal) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", refusal.code)
    quoted = re.match(r"(?:> .*\n)+", refusal.text)
    assert quoted, "an entry begins with a message"
    message = " ".join(quoted[0].replace("> ", "").replace("\\", "").split())
    assert message.endswith(f"[{refusal.code}]")
    expected = [text for site in SITES if refusal.code in site.codes for text in site.expected if len(text) > 6]
    assert not expected or any(text in message for text in expected), expected  # the text in the source
    assert len(refusal.text.removeprefix(quoted[0]).split()) >= 20


def test_an_explanation_is_plain_text() -> None:
    for refusal in refusals().values():
        text = refusal.explanation
        assert text.startswith(f"{refusal.code}: {refusal.title}\n\n> ")
        assert "```" not in text
        assert "**" not in text.replace('**{"descending"', "")
        assert "](" not in text
    links = " ".join(refusals()["segments-not-one"].explanation.split())
    assert "one engine for several (docs/segments.md#one-engine-for-several)" in links
    assert "\n    class Tracker(Detector):\n        def __init__" in refusals()["keeps-state"].explanation
