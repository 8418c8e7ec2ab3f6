"""Reads the Markdown pages for users, and runs the code blocks on them.

The first line of a block states its kind, and a comment before it states why it is not run:

- ``python``: run, all blocks of a page in order in one namespace, in a directory that looks like a checkout.
- ``console``: lines that begin with ``$ `` are run, ``hybrid-rt`` in this process; the other lines show their output.
- ``text`` directly after ``python``: shows its output. Decimals and percentages may differ, and ``...`` stands for any
  lines.
- any language with ``title="NAME"``: a file, written to the directory.
- ``cpp``, ``cmake`` without a title: compiled, or an excerpt.
- ``<!-- not run: REASON -->``: only shown. ``<!-- excerpt of PATH -->``: appears in that file of the repository.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from helpers.paths import ROOT
from hybrid_rt.cli.main import main

_BLOCK = re.compile(
    r"(?:^<!-- (?P<marker>.*?) -->\n)?^```(?P<language>\w*)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    language: str
    title: str
    marker: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_shown_only(self) -> bool:
        return self.marker.startswith("not run: ")

    @property
    def source(self) -> Path | None:
        """Returns the file that this block is an excerpt of."""
        return ROOT / self.marker.removeprefix("excerpt of ") if self.marker.startswith("excerpt of ") else None


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    found = []
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("text")) + 1
        language, title, marker = (match[name] or "" for name in ("language", "title", "marker"))
        found.append(Block(page, line, language, title, marker, match["text"]))
    assert len(found) * 2 == len(re.findall(r"^```", text, re.MULTILINE)), f"{page}: a fence that is not closed"
    return found


def run_page(page: Path) -> None:
    """Runs a page in the current directory.

    Raises:
        AssertionError: If a command fails, or prints something else than the page shows.
    """
    names: dict[str, object] = {"__name__": page.stem}
    printed: str | None = None
    for block in blocks(page):
        before, printed = printed, None
        if block.is_shown_only or block.source:
            continue
        if block.title:
            Path(block.title).write_text(block.text)
        elif block.language == "python":
            # Keep the page's line numbers, so that a traceback names them.
            code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec(code, names)
            printed = output.getvalue()
        elif block.language == "console":
            run_console(block)
        elif block.language == "text":
            assert before is not None, f"{block.where}: text that follows no Python block; mark it as not run"
            assert_shown(block.text.splitlines(), before, block.where)


def run_console(block: Block) -> None:
    first, *commands = re.split(r"^\$ ", block.text, flags=re.MULTILINE)
    assert not first, f"{block.where}: output before the first command"
    for entry in commands:
        command, *shown = re.sub(r"\\\n\s*", "", entry).splitlines()
        words = shlex.split(command, comments=True)
        assert_shown(shown, run_command(words, block.where), f"{block.where}, {command}")


def run_command(words: list[str], where: str) -> str:
    """Runs one of the package's programs and returns its stdout."""
    assert words[0] in ("hybrid-rt", "hybrid-rt-detect"), f"{where}: {words[0]} is not run here; mark the block"
    if words[:2] == ["hybrid-rt", "detect"] or words[0] == "hybrid-rt-detect":  # the first one replaces the process
        program = Path(sys.executable).parent / words[0]
        done = subprocess.run([program, *words[1:]], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{where}: {done.stderr}"
        return done.stdout
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert main(words[1:]) == 0, f"{where}: {words}"
    return output.getvalue()


def assert_shown(shown: list[str], printed: str, where: str) -> None:
    """Checks that each line shown was printed, in this order, apart from decimals."""
    printed_lines = [_fingerprint(line) for line in printed.splitlines()]
    at = 0
    for line in shown:
        wanted = _fingerprint(line)
        if wanted in ("", "..."):
            continue
        assert wanted in printed_lines[at:], f"{where}: {line!r} is not printed there, but:\n{printed}"
        at = printed_lines.index(wanted, at) + 1


def _fingerprint(line: str) -> str:
    """Returns a line without decimals and percentages, which differ between runs, and without the widths of tables."""
    plain = re.sub(r"[\s━─│┃┏┓┗┛┡┩└┘├┤┬┴┼╇╈┳┻╋]+", " ", line).strip()
    return re.sub(r"\d+(?:\.\d+)+(?:e[+-]\d+)?|\d+(?=\s?%)", "#", plain)
