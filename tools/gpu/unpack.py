"""Joins parts of tools/gpu_pack in a directory that outlives the call, using only Python's own library."""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

MANIFEST = "parts.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Copies a part's pieces and unpacks each complete archive. Returns the exit code: 1 if a piece is corrupt."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", type=Path)
    parser.add_argument("directory", type=Path)
    options = parser.parse_args(arguments)
    wanted = json.loads((options.part / MANIFEST).read_text())
    options.directory.mkdir(parents=True, exist_ok=True)
    for piece in sorted(options.part.iterdir()):
        if piece.name == MANIFEST:
            continue
        found = hashlib.sha256(piece.read_bytes()).hexdigest()
        if found != wanted.get(piece.name):
            print(f"{piece}: expected SHA-256 {wanted.get(piece.name)}, got {found}. Pack it again.", file=sys.stderr)
            return 1
        shutil.copyfile(piece, options.directory / piece.name)
    for archive in sorted({name.rpartition(".")[0] for name in wanted}):
        pieces = [options.directory / name for name in wanted if name.rpartition(".")[0] == archive]
        missing = [piece.name for piece in pieces if not piece.exists()]
        if missing:
            print(f"{archive}: waits for {', '.join(missing)}")
            continue
        mark = options.directory / f"{archive}.unpacked"
        if mark.exists():
            continue
        tar = ["tar", "-C", str(options.directory), "-xJf", "-"]
        with subprocess.Popen(tar, stdin=subprocess.PIPE) as process:
            assert process.stdin is not None
            for piece in pieces:
                process.stdin.write(piece.read_bytes())
        if process.returncode:
            return 1
        mark.touch()
        print(f"{archive}: unpacked")
    return 0


if __name__ == "__main__":
    sys.exit(main())
