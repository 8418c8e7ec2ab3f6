"""Checks the words of pages, help texts, docstrings, messages and names against docs/style.md."""

from __future__ import annotations

import argparse
import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.paths import ROOT
from hybrid_rt.cli.main import _parser

FRAGMENT = re.compile(r"^(?:Of|What|Whether|That|Which|Where|How|Who) .*[.:]$", re.DOTALL)
"""Matches a sentence that opens like this and has no main verb; questions are excluded by their mark, headings by the
missing full stop."""

WORDS = re.compile(
    r"\b(?:anew|mend(?:s|ed|ing)?|data sets?|in turns|at one time|by turns|lets? go of|moods?|in vain|else empty)\b"
    r"|\bfinds? (?:here )?what (?:its|the) detector (?:finds|found)\b"
    r"|(?<!there )\b(?:is|are) no (?:image|picture|list|tensor|directory|file)s?\b"
    r"|\b(?:a|one) (?:row|line|process|name|function|result) a [a-z]+\b",
    re.IGNORECASE,
)

OLD_WORDS = re.compile(r"(?<![\w./*=<-])(?:[Pp]ictures?|[Ff]olders?)(?![\w(=/>-]|\.[a-z]|:)|\bnot (?:more|less) than\b")
"""Matches words that have been replaced, except in paths and names of parameters."""

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "COMPATIBILITY.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
SOURCES = [
    path
    for name in ("hybrid_rt", "tools", "models", "examples", "tests")
    for path in sorted((ROOT / name).rglob("*.py"))
]


def prose(markdown: str) -> Iterator[str]:
    """Yields paragraphs, list items and table cells, without code, quoted messages and comments."""
    text = re.sub(r"^```.*?^```$", "", markdown, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"<!-- gpu_check: begin -->.*?<!-- gpu_check: end -->", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"^(?:>|    ).*$", "", text, flags=re.MULTILINE)
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )|\n(?=\|)", text):
        for part in block.split(" | ") if block.lstrip().startswith("|") else [block]:
            plain = re.sub(r"`[^`]*`", "code", part)
            yield re.sub(r"^[\s|*#-]*(?:\d+\. )?", "", " ".join(plain.split()))


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?]) (?=[A-Z`])", text)


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Yields the place and the text of each docstring in a file."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, documented) and (text := ast.get_docstring(node)):
            yield f"{path.relative_to(ROOT)}:{node.body[0].lineno}", text


def help_texts(parser: argparse.ArgumentParser, name: str = "hybrid-rt") -> Iterator[tuple[str, str]]:
    """Yields the verb, and the help of each of its arguments and sub-commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for choice in action._choices_actions:
                yield f"{name} {choice.dest}", choice.help or ""
            for verb, child in action.choices.items():
                yield from help_texts(child, f"{name} {verb}")
        elif action.help and action.help is not argparse.SUPPRESS:
            yield f"{name} {action.dest}", action.help


def wrong_words(text: str) -> list[str]:
    return [found[0] for found in WORDS.finditer(re.sub(r"``?[^`]*``?", "", text))]


def plain(text: str) -> str:
    """Returns a text without code, quotations and the names of arguments."""
    text = re.sub(r"``?[^`]*``?|\"[^\"]*\"|'[^'\n]*'", "code", text)
    return re.sub(r"^ *\w+(?: \([^)]*\))?:(?= )", "", text, flags=re.MULTILINE)


def fragments(text: str) -> list[str]:
    """Returns the sentences of a text that open like a fragment."""
    paragraphs = re.split(r"\n\s*\n", plain(text))
    parts = [sentence for paragraph in paragraphs for sentence in sentences(" ".join(paragraph.split()))]
    return [part for part in parts if FRAGMENT.match(part)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_is_plain_english(page: Path) -> None:
    for text in prose(page.read_text()):
        assert wrong_words(text) == [], text
        assert [sentence for sentence in sentences(text) if FRAGMENT.match(sentence)] == []


def test_docstrings_open_with_a_verb_or_a_noun() -> None:
    assert [place for path in SOURCES for place, text in docstrings(path) if FRAGMENT.match(text.splitlines()[0])] == []


def test_docstrings_have_none_of_the_wrong_words() -> None:
    found = {place: wrong_words(text) for path in SOURCES for place, text in docstrings(path)}
    assert {place: words for place, words in found.items() if words} == {}


def test_every_sentence_of_a_docstring_has_a_verb() -> None:
    found = {place: fragments(text) for path in SOURCES for place, text in docstrings(path)}
    assert {place: texts for place, texts in found.items() if texts} == {}


def test_docstrings_say_image_and_directory() -> None:
    found = {place: OLD_WORDS.findall(plain(text)) for path in SOURCES for place, text in docstrings(path)}
    assert {place: words for place, words in found.items() if words} == {}


def test_pages_say_image_and_directory() -> None:
    pages = [page for page in PAGES if page.name != "style.md"]  # lists the words to avoid
    found = {page.name: [text for text in prose(page.read_text()) if OLD_WORDS.search(plain(text))] for page in pages}
    for page, texts in found.items():
        # A single word is a heading: the name of a field.
        assert [text for text in texts if " " in text] == [], page


def cpp_comments() -> Iterator[tuple[str, str]]:
    """Yields the place and the text of each comment in the C++ headers and sources, including those of the tests."""
    paths = [path for name in ("cpp", "tests", "tools", "examples") for path in sorted((ROOT / name).rglob("*"))]
    for path in paths:
        if path.suffix not in {".h", ".cpp", ".cu", ".cuh"}:
            continue
        text = path.read_text()
        for found in re.finditer(r"(?:^ *///? .*\n)+|///?<? .*", text, re.MULTILINE):
            place = f"{path.relative_to(ROOT)}:{text.count(chr(10), 0, found.start()) + 1}"
            yield place, " ".join(re.sub(r"^ *///?<? ?", "", found[0], flags=re.MULTILINE).split())


def test_the_comments_of_cpp_are_plain_english() -> None:
    comments = dict(cpp_comments())
    assert len(comments) > 2000
    found = {
        place: [*wrong_words(text), *fragments(text), *OLD_WORDS.findall(plain(text))]
        for place, text in comments.items()
    }
    assert {place: words for place, words in found.items() if words} == {}


def test_the_help_of_the_command_line_is_plain_english() -> None:
    texts = dict(help_texts(_parser()))
    assert len(texts) > 60
    opens_wrong = re.compile(r"^(?:of|what|whether|that|which|where|how|who|does|is) ", re.IGNORECASE)
    assert {place: text for place, text in texts.items() if opens_wrong.match(text) or wrong_words(text)} == {}
    assert {place for place, text in texts.items() if not text} == set()


def wrong_in_message(text: str) -> list[str]:
    """Returns the wrong words of a message; a single word is a key or a name."""
    return [*wrong_words(text), *(OLD_WORDS.findall(plain(text)) if " " in text.strip() else [])]


def python_strings(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the lines and the texts of the string constants in a file, without the docstrings."""
    tree = ast.parse(path.read_text())
    statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in statements:
            yield node.lineno, node.value


def json_strings(value: object) -> Iterator[str]:
    """Yields the texts in a JSON value."""
    if isinstance(value, str):
        yield value
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from json_strings(child)


def test_messages_have_none_of_the_wrong_words() -> None:
    """The string constants of the package and of its C++ sources, which hold its errors."""
    found = {}
    for path in sorted((ROOT / "hybrid_rt").rglob("*.py")):
        for number, text in python_strings(path):
            if words := wrong_in_message(text):
                found[f"{path.relative_to(ROOT)}:{number}"] = words
    for path in sorted((ROOT / "cpp").rglob("*.cpp")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            texts = re.findall(r'"((?:[^"\\]|\\.)*)"', line)
            if words := [word for text in texts for word in wrong_in_message(text)]:
                found[f"{path.relative_to(ROOT)}:{number}"] = words
    assert found == {}


def shown_texts(page: str) -> list[str]:
    """Returns the texts of a page or of its template, without its styles, scripts, tags and expressions."""
    page = re.sub(r"<(style|script)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return [" ".join(text.split()) for text in re.split(r"\{[%{#].*?[%}#]\}|<[^>]*>", page, flags=re.DOTALL)]


@pytest.mark.parametrize("path", ["hybrid_rt/conversion/report/report.html.jinja", "cpp/apps/serve/page.html"])
def test_the_pages_of_the_programs_have_none_of_the_wrong_words(path: str) -> None:
    texts = [text for text in shown_texts((ROOT / path).read_text()) if text]
    assert len(texts) > 15
    assert {text: words for text in texts if (words := [*wrong_words(text), *OLD_WORDS.findall(plain(text))])} == {}


def test_the_description_of_the_service_has_none_of_the_wrong_words() -> None:
    texts = [*json_strings(json.loads((ROOT / "cpp" / "apps" / "serve" / "openapi.json").read_text()))]
    assert len(texts) > 100
    assert {text: words for text in texts if (words := wrong_in_message(text))} == {}


# Names


OLD_NAME = re.compile(r"picture|folder", re.IGNORECASE)

INTERFACE = {"add_plugin_folder", "output_folder", "plugin_folder", "require_picture_input"}
"""Names of the stable interface that keep an old word."""

FIELDS = {"folder", "pictures"}
"""Fields that keep an old word, because the keys of saved files and of printed JSON are made from their names."""


def old_names(source: str) -> Iterator[str]:
    """Yields the names in Python code that have an old word and are not part of the interface."""
    tree = ast.parse(source)
    fields = {
        id(statement.target)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for statement in node.body
        if isinstance(statement, ast.AnnAssign)
    }
    for node in ast.walk(tree):
        of_an_object: list[str | None] = []
        if isinstance(node, ast.Attribute):
            of_an_object = [node.attr]
        elif isinstance(node, ast.keyword):
            of_an_object = [node.arg]
        elif isinstance(node, ast.Name) and id(node) in fields:
            of_an_object = [node.id]
        names: list[str | None] = [name for name in of_an_object if name not in FIELDS]
        if isinstance(node, ast.Name) and not of_an_object:
            names.append(node.id)
        elif isinstance(node, ast.arg):
            names.append(node.arg)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.append(node.name)
        elif isinstance(node, ast.alias):
            names += [node.name, node.asname]
        yield from (name for name in names if name and OLD_NAME.search(name) and name not in INTERFACE)


def old_cpp_names(source: str) -> list[str]:
    """Returns the names in C++ code that have an old word and are not part of the interface."""
    code = re.sub(r'R"\((?s:.*?)\)"|"(?:[^"\\\n]|\\.)*"|//[^\n]*', "", source)
    code = re.sub(rf"(?:\.|->|::|std::vector<BoxMatch> |std::string )(?:{'|'.join(FIELDS)})\b", "", code)
    return [name for name in re.findall(r"\w+", code) if OLD_NAME.search(name) and name not in INTERFACE]


def test_names_in_python_say_image_and_directory() -> None:
    found = {str(path.relative_to(ROOT)): set(old_names(path.read_text())) for path in SOURCES}
    assert found.pop("hybrid_rt/bench/bundles.py") == {"pictures"}  # a parameter of hybrid_rt.compare
    assert {path: names for path, names in found.items() if names} == {}


def test_names_in_cpp_say_image_and_directory() -> None:
    paths = [path for name in ("cpp", "tests", "tools", "examples") for path in sorted((ROOT / name).rglob("*"))]
    sources = [path for path in paths if path.suffix in {".h", ".cpp", ".cu"}]
    assert len(sources) > 200
    found = {str(path.relative_to(ROOT)): old_cpp_names(path.read_text()) for path in sources}
    assert {path: names for path, names in found.items() if names} == {}
    assert [path for path in paths if OLD_NAME.search(path.name)] == []


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("picture = 1", ["picture"]),
        ("def read(folder): ...", ["folder"]),
        ("class PictureSize: ...", ["PictureSize"]),
        ("from files import read_picture as read", ["read_picture"]),
        ("print(verification.pictures, extract(output_folder=x))", []),
    ],
)
def test_the_check_sees_an_old_name(source: str, names: list[str]) -> None:
    assert list(old_names(source)) == names


def test_the_check_sees_an_old_name_in_cpp() -> None:
    source = 'Picture read_picture(); // a picture\nfor (auto& m : v.pictures) print("picture");'
    assert old_cpp_names(source) == ["Picture", "read_picture"]


@pytest.mark.parametrize(
    "text",
    [
        "Of what the function computes.",
        "Whether nothing failed.",
        "One row a bundle.",
        "It loads the bundles anew.",
        "A data set with boxes.",
        "The bundle finds what its detector found.",
        "A text that is no image.",
    ],
)
def test_the_check_sees_a_translated_sentence(text: str) -> None:
    assert FRAGMENT.match(text) or wrong_words(text)


def test_the_check_passes_a_plain_sentence() -> None:
    text = "Returns one row per bundle. What happens if it fails?"
    assert not wrong_words(text)
    assert not any(FRAGMENT.match(sentence) for sentence in sentences(text))
