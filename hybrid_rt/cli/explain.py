"""``hybrid-rt explain``: prints the cause of a refusal and its solutions."""

from __future__ import annotations

import argparse
import difflib
from typing import Any

from ..common.errors import OptionError
from ..common.refusals import refusals


def add_verbs(verbs: Any) -> None:
    """Adds the verbs to the result of ``add_subparsers``."""
    verb = verbs.add_parser("explain", help="explain a refusal by the code at the end of its message")
    verb.add_argument("code", nargs="?", help="code of the refusal, e.g. keeps-state (default: list all codes)")
    verb.set_defaults(run=_explain)


def _explain(options: argparse.Namespace) -> int:
    known = refusals()
    if options.code is None:
        width = max(map(len, known))
        for refusal in known.values():
            print(f"{refusal.code:{width}}  {refusal.title}")
        return 0
    code = options.code.strip("[]").lower()  # as it stands in a message
    if code not in known:
        near = difflib.get_close_matches(code, known) or [name for name in known if code and code in name]
        raise OptionError.make(
            "explain",
            "the code",
            expected="a code from the end of an error's text",
            got=f"'{code}'",
            remedy=f"Similar codes: {', '.join(near)}." if near else "`hybrid-rt explain` lists them.",
        )
    print(known[code].explanation, end="")
    return 0
