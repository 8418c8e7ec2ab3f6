"""Mutates bundles, with matching digests, and inspects, checks and loads each: tools/fuzz fuzz_bundles.

Each mutant must cause one of our errors or give a module, within ten seconds and with at most one and a half times the
file's size plus 300 MB of memory. If a signature is required, no module may come from records other than the signed
ones.

The bundle is signed with a trusted key; mutants carry its signature, or one of another key. A mutant that breaks a
promise is kept with its number. A mutant depends only on its number and the bundle.
"""

from __future__ import annotations

import argparse
import base64
import functools
import hashlib
import io
import json
import os
import pickletools
import random
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hybrid_rt

from .process_work import work_of

ROOT = Path(__file__).resolve().parents[2]

SECONDS = 10.0
"""Limit of CPU time, or of time asleep, so that the load of the machine does not count."""
MEMORY = 300 << 20
SIGNATURES = "extra/hybrid_rt/signatures/"
TRUSTED, STRANGER = b"\1" * 32, b"\2" * 32
"""Ed25519 private keys that are not secret, so that mutants are reproducible."""
MANIFEST = "extra/hybrid_rt/manifest.json"
DIGEST = "extra/hybrid_rt/manifest.sha256"
VERSION = "extra/hybrid_rt/format_version"

Records = dict[str, bytes]

NUMBERS = [0, 1, -1, 2, 3, 7, 255, 256, 65535, 2**31 - 1, -(2**31), 2**31, 2**32, 2**53, 2**63 - 1, -(2**63), 2**64]
TEXTS = [
    "",
    "\0",
    "a" * 70_000,
    "\udcff",
    "..",
    "/",
    "é",
    "%s",
    "backbone",
    "float64",
    "int8",
    "\ud83d",
    "-1",
    "nan",
    "//",
]


def a_value(chance: random.Random) -> Any:
    """Returns an unexpected JSON value."""
    kinds = [
        lambda: chance.choice(NUMBERS),
        lambda: chance.choice(TEXTS),
        lambda: chance.choice([None, True, False, 0.5, -0.0, 1e308]),
        lambda: [],
        lambda: {},
        lambda: [chance.choice(NUMBERS)] * chance.choice([1, 9, 5000]),
        lambda: {chance.choice(TEXTS): chance.choice(NUMBERS)},
        lambda: _nested(chance.choice([3, 60, 70, 900])),
    ]
    return chance.choice(kinds)()


def _nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def mutated_json(text: str, chance: random.Random) -> str:
    """Replaces, removes or duplicates values at one to three places of a JSON document."""
    document = json.loads(text)
    for _ in range(chance.randint(1, 3)):
        places = list(_places(document))
        if not places:
            break
        holder, key = chance.choice(places)
        what = chance.randrange(6)
        if what == 0:
            del holder[key]
        elif what == 1 and isinstance(holder, list):
            holder[key:key] = [holder[key]] * chance.choice([1, 3, 300])
        elif what == 2:
            other, of = chance.choice(places)
            if holder is not other:
                holder[key] = json.loads(json.dumps(other[of]))
        elif what == 3 and isinstance(holder[key], int):
            holder[key] += chance.choice([-1, 1, 2**31, -holder[key] - 1])
        else:
            holder[key] = a_value(chance)
    text = json.dumps(document)
    if chance.randrange(40) == 0:
        text = chance.choice(
            [text[:-1], text + "]", text.replace(":", "", 1), "[" * 100_000, text.replace("0", "NaN", 1)]
        )
    return text


def _places(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, held in list(items):
        yield value, key
        yield from _places(held)


def mutated_bytes(content: bytes, chance: random.Random) -> bytes:
    """Changes, removes or duplicates bytes."""
    data = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 8])):
        at = chance.randrange(len(data) + 1)
        length = chance.choice([1, 1, 2, 4, 8, 64, 4096])
        what = chance.randrange(5)
        if what == 0 and data:
            data[at % len(data)] ^= 1 << chance.randrange(8)
        elif what == 1:
            data[at : at + length] = bytes(chance.randrange(256) for _ in range(min(length, 64)))
        elif what == 2:
            del data[at : at + length]
        elif what == 3:
            data[at:at] = data[at : at + length] * chance.choice([1, 2, 50])
        else:
            data[at : at + 8] = (chance.choice(NUMBERS) & (2**64 - 1)).to_bytes(8, "little")
    return bytes(data)


def mutated_pickle(content: bytes, chance: random.Random) -> bytes:
    """Changes arguments of instructions, removes or repeats instructions, and mutates JSON in strings as JSON."""
    try:
        stops = [(code, argument, at) for code, argument, at in pickletools.genops(content)]
    except Exception:
        return mutated_bytes(content, chance)
    parts = [content[at:end] for (_, _, at), end in zip(stops, [*(at for _, _, at in stops[1:]), None], strict=True)]
    for _ in range(chance.choice([1, 1, 2, 5])):
        i = chance.randrange(len(parts))
        code, argument, _ = stops[min(i, len(stops) - 1)]
        what = chance.randrange(6)
        if what == 0:
            parts[i] = b""
        elif what == 1:
            parts[i] *= min(chance.choice([2, 3, 200, 100_000]), 1 + (8 << 20) // max(len(parts[i]), 1))
        elif what == 2:
            parts[i] = chance.choice(parts)
        elif code.name == "BINUNICODE" and isinstance(argument, str):
            text = argument
            if text[:1] in ("[", "{"):
                text = mutated_json(text, chance)
            elif what == 3:
                text = chance.choice(TEXTS)
            encoded = text.encode("utf-8", "surrogateescape" if "\ud83d" not in text else "surrogatepass")
            parts[i] = b"X" + len(encoded).to_bytes(4, "little") + encoded
        elif isinstance(argument, int) and code.name in ("BININT", "BININT1", "BININT2", "LONG1"):
            value = chance.choice([*NUMBERS, argument + 1, argument * 2, -argument])
            encoded = value.to_bytes(9, "little", signed=True)
            parts[i] = b"\x8a\x09" + encoded if not -(2**63) <= value < 2**63 else b"\x8a\x08" + encoded[:8]
        elif code.name == "GLOBAL":
            parts[i] = chance.choice(
                [b"cos\nsystem\n", b"c__torch__.torch.classes.hybrid_rt\nEngine\n", b"ctorch\nDoubleStorage\n",
                 b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n", b"c__torch__\nNothing\n"]
            )  # fmt: skip
    return b"".join(parts)


def mutated_code(content: bytes, chance: random.Random) -> bytes:
    """Removes, repeats or moves lines, and changes numbers and names in them."""
    lines = content.decode("utf-8", "replace").split("\n")
    for _ in range(chance.choice([1, 1, 2, 6])):
        i = chance.randrange(len(lines))
        what = chance.randrange(7)
        if what == 0:
            del lines[i]
            lines = lines or [""]
        elif what == 1:
            lines[i:i] = [lines[i]] * chance.choice([1, 2, 500])
        elif what == 2:
            lines[i], lines[i - 1] = lines[i - 1], lines[i]
        elif what == 3:
            words = lines[i].split(" ")
            words[chance.randrange(len(words))] = str(
                chance.choice([*NUMBERS, "None", "torch.add", "self", "(", '"', "["])
            )
            lines[i] = " ".join(words)
        elif what == 4:
            lines[i] = lines[i].replace("(", "(" * chance.choice([2, 150, 5000]), 1)
        elif what == 5:
            lines[i] += chance.choice(
                [" + 1" * 900, ".a" * 900, " # type: int", "\\", " if x else y" * 300, "[0]" * 900]
            )
        else:
            other = chance.choice(lines)
            lines[i] = other[: len(other) // 2] + lines[i][len(lines[i]) // 2 :]
    return "\n".join(lines).encode("utf-8", "replace")


@dataclass
class Mutant:
    """A bundle's modified records, and how they are written."""

    records: Records
    what: str = ""
    extra: Records = field(default_factory=dict)
    compressed: set[str] = field(default_factory=set)
    has_digests: bool = True
    signature: str = "old"
    """The signature: the "old" one, the "stranger"'s own, or the stranger's in the name of the "trusted" key."""

    def file(self, chance: random.Random) -> bytes:
        """Returns the mutant as an archive, with matching digests if it has any."""
        records = dict(self.records)
        if self.has_digests and MANIFEST in records and DIGEST in records:
            records[MANIFEST] = self._manifest(records)
            records[DIGEST] = hashlib.sha256(records[MANIFEST]).hexdigest().encode()
        if self.signature != "old":
            records.update(_signature(records, STRANGER, as_trusted=self.signature == "trusted"))
        written = io.BytesIO()
        with zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as archive:
            for name, content in [*records.items(), *self.extra.items()]:
                entry = zipfile.ZipInfo(f"archive/{name}")  # without a timestamp
                entry.compress_type = zipfile.ZIP_DEFLATED if name in self.compressed else zipfile.ZIP_STORED
                archive.writestr(entry, content)
        data = written.getvalue()
        return mutated_bytes(data, chance) if self.what == "file" else data

    @staticmethod
    def _manifest(records: Records) -> bytes:
        try:
            manifest = json.loads(records[MANIFEST])
            for name, entry in manifest["records"].items():
                if name in records and isinstance(entry, dict):
                    entry.update(sha256=hashlib.sha256(records[name]).hexdigest(), size=len(records[name]))
            return json.dumps(manifest).encode()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return records[MANIFEST]


def mutant(records: Records, number: int) -> bytes:
    """Returns the mutant with that number as a file."""
    chance = random.Random(number)
    made = Mutant(dict(records))
    code = [name for name in records if name.startswith("code/") and name.endswith(".py")]
    pickles = [name for name in records if name.endswith("pkl")]
    changes: list[Callable[[], str]] = [
        lambda: _change(made, MANIFEST, lambda text: mutated_json(text.decode(), chance).encode()),
        lambda: _change(made, chance.choice(pickles), lambda content: mutated_pickle(content, chance)),
        lambda: _change(made, chance.choice(code), lambda content: mutated_code(content, chance)),
        lambda: _change(made, chance.choice(list(records)), lambda content: mutated_bytes(content, chance)),
        lambda: _change_names(made, chance),
        lambda: "file",
    ]
    for _ in range(chance.choice([1, 1, 1, 2])):
        made.what = chance.choices(changes, weights=[6, 6, 4, 3, 2, 2])[0]()
    made.has_digests = chance.randrange(10) > 0
    if chance.randrange(16) == 0:
        made.signature = chance.choice(["stranger", "trusted"])
    return made.file(chance)


def pem(key: bytes) -> str:
    """Returns a private Ed25519 key as PKCS 8 (RFC 8410)."""
    text = base64.b64encode(bytes.fromhex("302e020100300506032b657004220420") + key).decode()
    return f"-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n"


def public_pem(key: bytes) -> bytes:
    """Returns the public key of a private one, as PEM."""
    return _openssl("pkey", "-pubout", given=pem(key))


def _openssl(*arguments: str | Path, given: str | None = None) -> bytes:
    return subprocess.run(
        ["openssl", *map(str, arguments)], input=given and given.encode(), check=True, capture_output=True
    ).stdout


@functools.cache
def _key_id(key: bytes) -> str:
    return hashlib.sha256(_openssl("pkey", "-pubout", "-outform", "DER", given=pem(key))[-32:]).hexdigest()


def _signature(records: Records, key: bytes, *, as_trusted: bool) -> Records:
    """Returns the record of a valid signature with this key. With ``as_trusted`` it claims to be the trusted key's."""
    digest = hashlib.sha256(records.get(MANIFEST, b"")).hexdigest()
    text = f"hybrid_rt bundle\nformat {records.get(VERSION, b'').decode('latin-1').strip()}\nmanifest {digest}\n"
    with tempfile.TemporaryDirectory() as directory:
        signed, private = Path(directory) / "text", Path(directory) / "key.pem"
        signed.write_bytes(text.encode("latin-1"))
        private.write_text(pem(key))
        made = _openssl("pkeyutl", "-sign", "-rawin", "-inkey", private, "-in", signed)
    name = _key_id(TRUSTED if as_trusted else key)
    entry = {"key": name, "signature": made.hex(), "algorithm": "ed25519"}
    return {f"{SIGNATURES}{name}.json": json.dumps([entry]).encode()}


def _change(made: Mutant, name: str, change: Callable[[bytes], bytes]) -> str:
    if name in made.records:
        try:
            made.records[name] = change(made.records[name])
        except (
            ValueError,
            TypeError,
            LookupError,
            RecursionError,
        ):  # an earlier change made it impossible to change this
            made.records[name] = made.records[name][:-1]
    return name


def _change_names(made: Mutant, chance: random.Random) -> str:
    name = chance.choice(list(made.records))
    what = chance.randrange(5)
    if what == 0:
        del made.records[name]
    elif what == 1:
        made.extra[chance.choice([name, "constants/99", "byteorder", "model.json", "code/x.py", "../x"])] = b"x" * 9
    elif what == 2:
        made.records[chance.choice(list(made.records))] = made.records[name]
    elif what == 3:
        made.compressed.add(name)
    else:
        made.records[name] = bytes(chance.choice([0, 1, 1 << 20, 30 << 20]))
        made.compressed.add(name)
    return f"names: {name}"


def records_of(bundle: Path) -> Records:
    """Returns the records of a bundle by name, signed with the trusted key."""
    with tempfile.TemporaryDirectory(prefix="hybrid_rt_fuzz_") as directory:
        copy, key = Path(directory) / "signed.pt", Path(directory) / "key.pem"
        shutil.copyfile(bundle, copy)
        key.write_text(pem(TRUSTED))
        hybrid_rt.sign(copy, key)
        with zipfile.ZipFile(copy) as archive:
            return {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}


def contents(data: bytes) -> list[tuple[str, bytes]]:
    """Returns the records of an archive according to its central directory alone.

    Raises:
        ValueError, struct.error, zlib.error: The fields are inconsistent.
    """
    end = data.rindex(b"PK\5\6")
    count, at = struct.unpack_from("<H4xI", data, end + 10)
    found = []
    for _ in range(count):
        method, packed, _, name, extra, comment, offset = struct.unpack_from("<H8xIIHHH8xI", data, at + 10)
        begin = offset + 30 + sum(struct.unpack_from("<HH", data, offset + 26))
        content = data[begin : begin + packed]
        record = data[at + 46 : at + 46 + name].decode("utf-8", "replace").partition("/")[2]
        found.append((record, zlib.decompress(content, -15) if method == zipfile.ZIP_DEFLATED else content))
        at += 46 + name + extra + comment
    return found


def is_as_signed(data: bytes, records: Records) -> bool:
    """Returns true if an archive has exactly the signed records, apart from signatures."""
    try:
        found = [(name, content) for name, content in contents(data) if not name.startswith(SIGNATURES)]
    except (ValueError, struct.error, zlib.error):
        return False
    return sorted(found) == sorted(item for item in records.items() if not item[0].startswith(SIGNATURES))


WORKER = """
import os, resource, sys
os.environ["OMP_NUM_THREADS"] = "1"
import warnings; warnings.simplefilter("ignore")
import torch; torch.set_num_threads(1)
import hybrid_rt

def memory(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith(name))

resource.setrlimit(resource.RLIMIT_DATA, (6 << 30, 6 << 30))  # a mutant must not take the machine's memory
trusted = sys.argv[1]
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
print("ready", file=answers, flush=True)
for line in sys.stdin:
    path, backend = line.split()
    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")
    before = memory("VmRSS")
    outcomes = []
    backend = backend.strip("-")
    for opened in (
        hybrid_rt.inspect,
        hybrid_rt.check,
        lambda file: hybrid_rt.load(file, backend=backend),
        lambda file: hybrid_rt.load(file, backend=backend, trusted_keys=[trusted]),
    ):
        try:
            opened(path)
            outcomes.append("taken")
        except hybrid_rt.HybridRTError as error:
            outcomes.append("long" if len(str(error)) > 20_000 else "refused")
        except BaseException as error:
            outcomes.append(f"raw:{type(error).__name__}")
    print(*outcomes, memory("VmHWM") - before, file=answers, flush=True)
"""


class Worker:
    """A process that opens files, one after another."""

    def __init__(self, trusted: Path) -> None:
        """Starts the process and waits until it has imported everything.

        Args:
            trusted: File of the public key that it trusts.
        """
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, trusted],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env={**os.environ, "HYBRID_RT_LOG": "error"},
        )
        self.answer(120.0)

    def answer(self, seconds: float) -> str:
        """Returns a line; empty if the process ended; "hang" if it worked or slept for that long."""
        assert self.process.stdout is not None
        stat = Path(f"/proc/{self.process.pid}/stat")
        begin, _, _ = work_of(stat)
        used, awake = begin, time.monotonic()
        while not select.select([self.process.stdout], [], [], min(0.5, seconds / 4))[0]:
            now_used, can_run, _ = work_of(stat)
            if can_run or now_used != used:
                used, awake = now_used, time.monotonic()
            if used - begin > seconds or time.monotonic() - awake > seconds:
                return "hang"
        return self.process.stdout.readline().strip()

    def open(self, path: Path, backend: str, records: Records) -> str:
        """Opens a file with each verb. Returns "taken" or "refused" for each, or the broken promise.

        Args:
            path: The file.
            backend: Backend of its engines; empty for the default choice.
            records: The signed records.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{path} {backend or '-'}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return f"signal {-self.process.wait()}"
        said = self.answer(SECONDS)
        if said == "hang":
            return said
        if not said:
            return f"signal {-self.process.wait()}"
        *outcomes, memory = said.split()
        if int(memory) > 1.5 * path.stat().st_size + MEMORY:
            return f"memory: {int(memory) >> 20} MB"
        if outcomes[-1] == "taken" and not is_as_signed(path.read_bytes(), records):
            return "taken: not as it was signed"
        return " ".join(outcomes)

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.communicate()


def is_fine(outcome: str) -> bool:
    """Returns true if the outcome keeps the promises."""
    return all(word in ("taken", "refused") for word in outcome.split())


def fuzz(bundle: Path, numbers: Any, kept: Path, seconds: float = float("inf")) -> tuple[Counter[str], dict[int, str]]:
    """Opens the mutants with these numbers. Returns the count of each outcome, and the numbers that broke a promise."""
    records = records_of(bundle)
    outcomes: Counter[str] = Counter()
    broken: dict[int, str] = {}
    with tempfile.TemporaryDirectory(prefix="hybrid_rt_fuzz_") as directory:
        trusted = Path(directory) / "trusted.pub"
        trusted.write_bytes(public_pem(TRUSTED))
        worker: Worker | None = Worker(trusted)
        until = time.monotonic() + seconds  # starting took a while
        for number in numbers:
            if time.monotonic() > until:
                break
            path = Path(directory) / "mutant.pt"
            path.write_bytes(mutant(records, number))
            worker = worker or Worker(trusted)
            outcome = worker.open(path, "" if number % 16 == 0 else "torchscript", records)
            outcomes[outcome if not outcome.startswith("memory") else "memory"] += 1
            if is_fine(outcome):
                continue
            broken[number] = outcome
            kept.mkdir(parents=True, exist_ok=True)
            path.replace(kept / f"{number}.pt")
            if worker.process.poll() is not None or outcome == "hang":
                worker.close()
                worker = None
        if worker is not None:
            worker.close()
    return outcomes, broken


def main() -> int:
    """Fuzzes and prints the findings."""
    parser = argparse.ArgumentParser(prog="tools/fuzz fuzz_bundles", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--first", type=int, default=0, help="the number of the first mutant (default: 0)")
    parser.add_argument("--number", type=int, default=2**62, help="of mutants (default: what the time allows)")
    parser.add_argument("--bundle", type=Path, help="default: the demo detector's")
    parser.add_argument("--next", type=Path, help="a file for the number of the mutant after the last one")
    parser.add_argument("--kept", type=Path, default=Path("build/fuzz/crashes/fuzz_bundles"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hybrid_rt_fuzz_") as directory:
        bundle = options.bundle or Path(directory) / "demo.pt"
        if options.bundle is None:
            subprocess.run([sys.executable, "-m", "tools.dev.make_test_bundle", str(bundle)], check=True, cwd=ROOT)
        numbers = range(options.first, options.first + options.number)
        outcomes, broken = fuzz(bundle, numbers, options.kept, options.seconds)
    if options.next is not None:
        options.next.write_text(str(options.first + outcomes.total()))
    print(f"stat::number_of_executed_units: {outcomes.total()}")
    for outcome, count in outcomes.most_common():
        print(f"{count:8} {outcome}")
    for number, outcome in broken.items():
        print(f"mutant {number}: {outcome}; kept as {options.kept / f'{number}.pt'}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
