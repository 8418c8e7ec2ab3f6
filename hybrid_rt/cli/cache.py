"""``hybrid-rt cache``: lists the content of the cache, or removes it."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from ..backends.cache import store
from ..backends.cache.directory import cache_directory


def add_verbs(verbs: Any) -> None:
    """Adds the verbs to the result of ``add_subparsers``."""
    verb = verbs.add_parser("cache", help="list or clear cached artifacts of earlier conversions")
    actions = verb.add_subparsers(dest="action", required=True, metavar="list|clear")
    for name, run, text in (("list", _list, "list all entries"), ("clear", _clear, "remove all entries")):
        action = actions.add_parser(name, help=text)
        action.add_argument("--json", action="store_true", help="print JSON")
        action.set_defaults(run=run)


def _list(options: argparse.Namespace) -> int:
    entries, bound = store.entries(), store.bound()
    total = sum(entry.size for entry in entries)
    if options.json:
        listed = [
            {**asdict(entry), "path": str(entry.path), "made": _iso(entry.made), "used": _iso(entry.used)}
            for entry in entries
        ]
        print(
            json.dumps({"folder": str(cache_directory()), "bound": bound, "size": total, "entries": listed}, indent=1)
        )
        return 0
    limit = f"of at most {bound / 1e6:.1f} MB" if bound else "and switched off (HYBRID_RT_CACHE_SIZE=0)"
    print(f"{cache_directory()}: {_count(len(entries))}, {total / 1e6:.1f} MB {limit}")
    if entries:
        table = Table()
        for heading in ("segment", "engine", "precision", "MB", "made", "last used"):
            table.add_column(heading, justify="right" if heading == "MB" else "left")
        for entry in entries:
            name = entry.segment or "(damaged)"
            size = f"{entry.size / 1e6:.1f}"
            table.add_row(name, entry.backend, entry.precision, size, _local(entry.made), _local(entry.used))
        Console(width=None if sys.stdout.isatty() else 120).print(table)
    return 0


def _clear(options: argparse.Namespace) -> int:
    removed = store.clear()
    size = sum(entry.size for entry in removed)
    if options.json:
        print(json.dumps({"folder": str(cache_directory()), "removed": len(removed), "size": size}, indent=1))
    else:
        print(f"{cache_directory()}: removed {_count(len(removed))}, {size / 1e6:.1f} MB")
    return 0


def _count(entries: int) -> str:
    return f"{entries} {'entry' if entries == 1 else 'entries'}"


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")


def _local(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M:%S}"
