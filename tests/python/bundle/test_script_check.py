"""Tests that TorchScript archives that do more than compute are refused before torch reads them."""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import hybrid_rt
from helpers.bundle_surgery import read_record, record_names, rewrite, save_with_backends, small_artifact
from hybrid_rt import BundleError, _native
from hybrid_rt.bundle import archive as bundle
from hybrid_rt.torchscript import jit

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")


def archive_of(records: dict[str, bytes]) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for name, content in {"version": b"3\n", **records}.items():
            archive.writestr(f"archive/{name}", content)
    return written.getvalue()


def got_of(records: dict[str, bytes]) -> str:
    """Returns what is refused in an archive, or "" if it is accepted."""
    try:
        _native.check_script(archive_of(records), "x.pt")
    except BundleError as error:
        found = re.search(r"expected a program that only computes, got (.*?)\. hybrid_rt", str(error))
        return found[1] if found else f"another message: {error}"
    return ""


def got_of_code(text: str) -> str:
    return got_of({"code/__torch__/head.py": text.encode()})


def got_of_pickle(content: bytes, **storages: bytes) -> str:
    return got_of({"data.pkl": content, **{f"data/{name}": data for name, data in storages.items()}})


def file_operators() -> list[str]:
    """Returns calls of torch's and torchvision's operators that take a file name."""
    found = set()
    for schema in torch._C._jit_get_all_schemas():
        names = {argument.name for argument in schema.arguments if str(argument.type) == "str"}
        if names & {"filename", "file", "file_name", "path", "url", "address"}:
            found.add(schema.name)
    return sorted(found)


def test_every_file_operator_of_torch_is_refused() -> None:
    names = file_operators()
    assert {"aten::save", "aten::from_file", "image::read_file", "image::write_file"} <= set(names)
    for name in names:
        space, operator = name.split("::")
        called = f"torch.{operator}" if space == "aten" else f"ops.{space}.{operator}"
        text = f'class A(Module):\n  def forward(self) -> Tensor:\n    return {called}("/etc/passwd")\n'
        assert got_of_code(text) == f"the operator {operator}"


@pytest.mark.parametrize(
    ("line", "got"),
    [
        ("x = torch.save(x, 'a')", "the operator save"),
        ("x = torch . \\\n  save(x, 'a')", "the operator save"),
        ("x = torch.\n    save(x, 'a')", "the operator save"),
        ("x = x.save('a')", "the operator save"),
        ("x = getattr(torch, 'save')(x, 'a')", "getattr of 'save'"),
        ("x = getattr(torch, 's\\x61v' 'e')(x, 'a')", "getattr of 'save'"),
        ("x = getattr(torch, 's\\141v' \"e\")(x, 'a')", "getattr of 'save'"),
        ("x = getattr(ops, '''inductor''')", "getattr of 'inductor'"),
        ("x = ops.c10d.send(x)", "operators or classes of c10d"),
        ("x = ops.inductor._reinterpret_tensor(x, [9], [1], 0)", "operators or classes of inductor"),
        ("x = rpc_async('worker', f)", "the operator rpc_async"),
        ("x = __torch__.torch.classes.dist_rpc.Thing()", "operators or classes of dist_rpc"),
        ("x = 5 # type: torch.save", "the operator save"),
        ("x = 'without an end", "a string without an end"),
        ("x = " + "(" * 300 + "1" + ")" * 300, "brackets that are nested too deeply"),
        ("x = " + "-" * 2000 + "1", "an expression that is nested too deeply"),
        ("x = " + "1 + " * 2000 + "1", "an expression that is nested too deeply"),
        ("x = " + "not " * 2000 + "True", "an expression that is nested too deeply"),
        ("x = a" + ".a" * 2000, "an expression that is nested too deeply"),
        ("x = a" + "[0]" * 2000, "an expression that is nested too deeply"),
        ("\n".join(" " * i + "if True:" for i in range(4, 700)), "blocks that are nested too deeply"),
        ("x = torch.add(x, 1)\n    " * 70_000, "more than 500000 names, numbers and operators"),
        ("if a:\n      pass\n" + "    elif a:\n      pass\n" * 200, "branches that are nested too deeply"),
    ],
)
def test_code_that_does_more_than_compute(line: str, got: str) -> None:
    assert (
        got_of_code(f"class A(Module):\n  def forward(self, x: Tensor) -> Tensor:\n    {line}\n    return x\n") == got
    )


def test_methods_that_run_while_the_file_is_read() -> None:
    text = "class A(Module):\n  def __setstate__(self, x: int) -> None:\n    pass\n"
    assert got_of_code(text) == "a method __setstate__"


@pytest.mark.parametrize(
    "line",
    [
        "save = torch.add(x, 1)",
        "x = ['save', \"torch.save(x)\", 'it\\'s from_file', '''c10d''']",
        "x = getattr(self, '0')",
        "# it's a comment with one quote, and save",
        "x = [" + ", ".join(["-1"] * 5000) + "]",
        "x = torch.add(x, 1)\n    " * 5000,
        "x = 'a string that ends in a backslash \\\\'",
    ],
)
def test_code_that_only_computes(line: str) -> None:
    text = f"class A(Module):\n  def forward(self, x: Tensor) -> Tensor:\n    {line}\n    return x\n"
    assert got_of_code(text) == ""


class Opened(nn.Module):
    """Sets its state with code from the archive, which creates a file."""

    def __init__(self, target: str) -> None:
        super().__init__()
        self.target = target

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.target, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.target = state[0]
        self.training = state[1]
        if torch.from_file(self.target, shared=True, size=4).numel() != 4:
            self.training = False

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_an_archive_that_writes_a_file_on_load(tmp_path: Path) -> None:
    target, path = tmp_path / "written", tmp_path / "x.pt"
    module = torch.jit.script(Opened(str(target)))
    archive = jit.to_bytes(module)
    assert not target.exists()
    torch.jit.load(io.BytesIO(archive))
    assert target.exists(), "torch itself runs it: else this test shows nothing"
    target.unlink()

    with pytest.raises(BundleError, match=r"only computes, got (a method __setstate__|the operator from_file)"):
        bundle.save(module, path, bundle.Manifest(()))
    assert not path.exists()
    path.write_bytes(archive)  # as a third-party tool would
    bundle._append_manifest(path, bundle.Manifest(()), *bundle._records(archive, bundle.Manifest(())), None)
    assert hybrid_rt.inspect(path)
    for opened in (hybrid_rt.load, hybrid_rt.check, lambda p: hybrid_rt.remove_variant(p, "openvino")):
        with pytest.raises(BundleError, match=r"only computes, got (a method __setstate__|the operator from_file)"):
            opened(path)
    assert not target.exists()


def test_the_torchscript_variant_is_compared_too(tmp_path: Path) -> None:
    """The variant is an archive within the archive."""
    artifact = small_artifact()
    written = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(artifact.blobs["module"].numpy().tobytes())) as old,
        zipfile.ZipFile(written, "w") as new,
    ):
        for name in old.namelist():
            content = old.read(name)
            if name.endswith(".py"):
                content = re.sub(rb"torch\.\w+\(", b"torch.save(", content, count=1)
            new.writestr(name, content)
    blob = torch.frombuffer(bytearray(written.getvalue()), dtype=torch.uint8).clone()
    path = save_with_backends(tmp_path / "x.pt", [replace(artifact, blobs={**artifact.blobs, "module": blob})])
    with pytest.raises(hybrid_rt.BackendError, match="only computes, got the operator save"):
        hybrid_rt.load(path)
    with pytest.raises(BundleError, match="only computes, got the operator save"):
        hybrid_rt.add_variant(path, "openvino")


PROTO = b"\x80\x02"


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def tensor(elements: int, offset: int, sizes: tuple[int, ...], strides: tuple[int, ...], kind: str = "Float") -> bytes:
    """Returns the pickle of a tensor as torch writes it, with a storage of that many elements in record "0"."""

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"J" + value.to_bytes(4, "little", signed=True) for value in values) + b"t"

    storage = b"(" + text("storage") + f"ctorch\n{kind}Storage\n".encode() + text("0") + text("cpu")
    storage += b"\x8a\x08" + elements.to_bytes(8, "little", signed=True) + b"tQ"
    made = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"J" + offset.to_bytes(4, "little", signed=True)
    made += numbers(sizes) + numbers(strides) + b"\x89ccollections\nOrderedDict\n)RtR"
    return PROTO + made + b"."


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (tensor(6, 0, (2, 3), (3, 1)), ""),
        (tensor(6, 3, (3,), (1,)), ""),
        (tensor(6, 0, (0, 99), (1, 1)), ""),
        (tensor(6, 0, (1000,), (0,)), ""),
        (tensor(6, 5, (), ()), ""),
        (tensor(12, 0, (12,), (1,), "Half"), ""),
        (tensor(7, 0, (2, 3), (3, 1)), "a tensor that is longer than its record"),
        (tensor(1 << 62, 0, (2, 3), (3, 1)), "a tensor that is longer than its record"),
        (tensor(6, 0, (6,), (1,), "Double"), "a tensor that is longer than its record"),
        (tensor(-1, 0, (2, 3), (3, 1)), "an object of another file"),
        (tensor(6, 0, (2, 4), (3, 1)), "a tensor that reaches beyond its storage"),
        (tensor(6, 1, (2, 3), (3, 1)), "a tensor that reaches beyond its storage"),
        (tensor(6, 6, (), ()), "a tensor that reaches beyond its storage"),
        (tensor(6, 0, (2**31 - 1,) * 4, (2**31 - 1,) * 4), "a tensor that reaches beyond its storage"),
        (tensor(6, 0, (2, 3), (-3, 1)), "a tensor of negative sizes"),
        (tensor(6, 0, (2, 3), (1,)), "a tensor of other sizes than strides"),
        (tensor(6, 0, (1,) * 65, (1,) * 65), "a tensor of too many dimensions"),
        (tensor(6, 0, (2, 3), (3, 1), "Strange"), "a tensor of an unknown type"),
    ],
)
def test_tensors_lie_within_their_records(content: bytes, got: str) -> None:
    """The reader of torch does not check sizes and strides."""
    assert got_of_pickle(content, **{"0": bytes(24)}) == got


def doubled(times: int) -> bytes:
    """Returns nested tuples, each containing the previous one twice."""
    content = PROTO + b")"
    for i in range(times):
        content += b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86"
    return content + b"."


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (PROTO + b"N.", ""),
        (PROTO + b"(" + b"K\x01" * 100_000 + b"t.", ""),
        (PROTO + b")" + b"\x85" * 300 + b".", "objects that are nested too deeply"),
        (PROTO + b"]" * 100_000 + b"a" * 99_999 + b".", "objects that are nested too deeply"),
        (doubled(60), "objects that are nested too deeply"),
        (doubled(20), ""),
        (PROTO + b"]q\x00h\x00a.", "an object that holds itself"),
        (PROTO + b"]" * ((1 << 20) + 1) + b".", "a pickle of more than 1048576 objects"),
        (PROTO + b"N" * ((4 << 20) + 1) + b".", "a pickle with more than 4194304 values at the same time"),
        (PROTO + b"cos\nsystem\n.", "the class os.system"),
        (PROTO + b"c__torch__.torch.classes.c10d\nStore\n.", "a class of c10d"),
        (PROTO + b"c__torch__.torch.classes.hybrid_rt\nEngine\n.", ""),
        (PROTO + b"Nr\xff\xff\xff\xff.", "a pickle that numbers its objects otherwise than torch"),
        (PROTO + b"h\x00.", "a pickle that takes a missing value"),
        (PROTO + b"a.", "a pickle that takes a missing value"),
        (PROTO + b"NNa.", "a pickle that adds to a value that is not a container"),
        (PROTO + b"X\xff\xff\xff\xffa.", "a pickle that ends too early"),
        (PROTO + b"K\x01", "a pickle that ends too early"),
        (PROTO + b"\x93.", "an instruction that torch does not write (147)"),
        (pickle.dumps({"a": 1.5}, protocol=2), ""),
    ],
)
def test_pickles_are_such_as_torch_writes(content: bytes, got: str) -> None:
    assert got_of_pickle(content) == got


def test_the_code_of_an_archive_is_bounded_in_all() -> None:
    """Parsing 2.7 MB of it took 476 MB."""
    code = (
        "class A(Module):\n  def forward(self, x: Tensor) -> Tensor:\n"
        + "    x = torch.add(x, 1)\n" * 35_000
        + "    return x\n"
    )
    assert got_of({"code/a.py": code.encode()}) == ""
    refused = "more than 500000 names, numbers and operators"
    assert got_of({"code/a.py": code.encode(), "code/b.py": code.encode()}) == refused


@pytest.mark.parametrize(
    ("number", "name", "got"),
    [
        (b"K\x01", b"K\x00", ""),
        (b"K\x02", b"K\x00", "the index of a missing string"),
        (b"J\xff\xff\xff\xff", b"K\x00", "the index of a missing string"),
        (b"\x8a\x07" + bytes(6) + b"\x20", b"K\x00", "the index of a missing string"),
        (b"K\x01", b"J\xff\xff\xff\x7f", "the index of a missing string"),
    ],
)
def test_texts_of_source_ranges_are_in_their_table(number: bytes, name: bytes, got: str) -> None:
    """The reader of torch looks up texts by these numbers; two mutants crashed the process."""
    table = b"(" + text("a") + text("b") + b"t"
    source = b"(ctorch.jit._pickle\nbuild_intlist\n(](K\x00" + number + b"etR" + name + b"K\x00t"
    content = PROTO + b"(" + text("FORMAT_WITH_STRING_TABLE") + table + b"(" + source + b"tt."
    assert got_of({"code/__torch__/a.py.debug_pkl": content}) == got


def test_a_file_of_torchs_first_format_is_refused() -> None:
    assert got_of({"model.json": b"{}"}) == "a record of torch's first format"


def test_torch_reads_the_rest_of_an_altered_bundle(small_bundle: Path, tmp_path: Path) -> None:
    """The digests match, because an attacker can compute them."""
    (code,) = [name for name in record_names(small_bundle) if name.endswith(".py")][:1]
    changes: list[tuple[str, Callable[[bytes], bytes], str]] = [
        (code, lambda content: content.replace(b"torch.conv2d(", b"torch.save(", 1), "got the operator save"),
        ("data.pkl", lambda content: content[:-1], "a pickle that ends too early"),
        ("data.pkl", lambda _: b"no pickle", "only computes, got"),
    ]
    for i, (name, change, got) in enumerate(changes):
        changed = rewrite(small_bundle, tmp_path / f"{i}.pt", {name: change})
        assert read_record(changed, name) != read_record(small_bundle, name)
        for opened in (hybrid_rt.load, hybrid_rt.check):
            with pytest.raises(BundleError, match=got):
                opened(changed)
