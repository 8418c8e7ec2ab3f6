"""Reads the kinds of refusals and their codes from docs/refusals.md, which is shipped with the package."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_PAGE = Path(__file__).with_name("refusals.md")
"""The page: a link to docs/refusals.md, or a copy in a wheel."""

_ENTRY = re.compile(
    r"^### (?P<code>\S+)\n\n\*\*(?P<title>.+?)\*\*\n\n(?P<text>.*?)(?=^##|\Z)", re.MULTILINE | re.DOTALL
)
_FENCED = re.compile(r"^```.*?^```$\n?", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[([^\]]+)\]\(([^)]+)\)")


@dataclass(frozen=True)
class Refusal:
    """One kind of refusal.

    Attributes:
        code: its name, such as "keeps-state", at the end of the error's text.
        title: the problem in one sentence.
        text: a message of this kind, the cause, the solutions and an example, in Markdown.
    """

    code: str
    title: str
    text: str

    @property
    def explanation(self) -> str:
        """Returns the entry as text for a terminal: code is indented, and links are followed by their pages."""
        text, at = "", 0
        for block in _FENCED.finditer(self.text):
            text += _prose(self.text[at : block.start()]) + _indented(block[0])
            at = block.end()
        text += _prose(self.text[at:])
        if at:
            text = (
                f"{text.strip()}\n\nDetector, image and refusal() of the examples stand at the top of docs/refusals.md."
            )
        return f"{self.code}: {self.title}\n\n{text.strip()}\n"


@functools.cache
def refusals() -> Mapping[str, Refusal]:
    """Returns the kinds by their codes, in the order of the page."""
    text = _PAGE.read_text(encoding="utf-8")
    found = [Refusal(entry["code"], entry["title"], entry["text"]) for entry in _ENTRY.finditer(text)]
    return {refusal.code: refusal for refusal in found}


def _prose(markdown: str) -> str:
    def link(found: re.Match[str]) -> str:
        text, target = found.groups()
        if target.startswith("#"):
            return text
        return f"{text} (docs/{target})" if "://" not in target else f"{text} ({target})"

    return _LINK.sub(link, markdown).replace("**", "")


def _indented(block: str) -> str:
    lines = block.rstrip().splitlines()[1:-1]
    return "".join(f"    {line}".rstrip() + "\n" for line in lines)
