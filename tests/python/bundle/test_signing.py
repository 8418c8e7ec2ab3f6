"""Tests of signed bundles: the signature is checked before any code of the file runs."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import hybrid_rt
from helpers.bundle_surgery import change_manifest, offset_of, record_names, rewrite
from helpers.small_detectors import small_detector, small_image
from hybrid_rt import BundleError, OptionError
from hybrid_rt.cli.main import main
from hybrid_rt.common.executables import program

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")

Opened = Callable[..., Any]
Keys = dict[str, tuple[Path, Path]]


def made_key(directory: Path, name: str, *kind: str) -> tuple[Path, Path]:
    """Makes a private and a public key as a user does."""
    private, public = directory / f"{name}.pem", directory / f"{name}.pub"
    kind = kind or ("-algorithm", "ed25519")
    subprocess.run(["openssl", "genpkey", *kind, "-out", private], check=True, capture_output=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
    return private, public


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    directory = tmp_path_factory.mktemp("keys")
    return {name: made_key(directory, name) for name in ("ours", "theirs")}


@pytest.fixture
def unsigned(small_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(small_bundle, tmp_path / "model.pt"))


@pytest.fixture
def signed(unsigned: Path, keys: Keys) -> Path:
    hybrid_rt.sign(unsigned, keys["ours"][0])
    return unsigned


OPENED: dict[str, Opened] = {
    "load": hybrid_rt.load,
    "signed": lambda path, trusted_keys: hybrid_rt.load(path, trust="signed", trusted_keys=trusted_keys),
    "verify_signature": hybrid_rt.verify_signature,
}


@pytest.mark.parametrize("opened", OPENED.values(), ids=OPENED)
def test_a_signed_bundle_is_taken_by_whoever_trusts_the_key(opened: Opened, signed: Path, keys: Keys) -> None:
    assert opened(signed, trusted_keys=[keys["ours"][1]])
    assert opened(signed, trusted_keys=[keys["theirs"][1], keys["ours"][1]])
    with pytest.raises(BundleError, match=r"expected a signature of one of 1 trusted keys, got 1 that no trusted key"):
        opened(signed, trusted_keys=[keys["theirs"][1]])


@pytest.mark.parametrize("opened", OPENED.values(), ids=OPENED)
def test_a_bundle_without_a_signature_is_refused(opened: Opened, unsigned: Path, keys: Keys) -> None:
    with pytest.raises(BundleError, match=r"expected a signature of one of 1 trusted keys, got none\. Get the file"):
        opened(unsigned, trusted_keys=[keys["ours"][1]])


def test_a_signed_bundle_computes_what_it_did(signed: Path, small_bundle: Path) -> None:
    expected = hybrid_rt.load(small_bundle)(small_image())
    assert all(map(torch.equal, hybrid_rt.load(signed)(small_image()), expected))
    assert hybrid_rt.check(signed)


def test_several_sign_and_each_is_enough(signed: Path, keys: Keys) -> None:
    hybrid_rt.sign(signed, keys["theirs"][0])
    before = signed.read_bytes()
    hybrid_rt.sign(signed, keys["theirs"][0])  # signing again adds nothing
    assert signed.read_bytes() == before
    public = [keys["theirs"][1], keys["ours"][1]]
    assert hybrid_rt.verify_signature(signed, public) == list(map(str, public))
    assert hybrid_rt.verify_signature(signed, public[1:]) == [str(public[1])]


def test_a_detached_signature_leaves_the_bundle_as_it_is(unsigned: Path, keys: Keys) -> None:
    before = unsigned.read_bytes()
    for name in ("ours", "theirs", "ours"):
        hybrid_rt.sign(unsigned, keys[name][0], detached=True)
    assert unsigned.read_bytes() == before
    assert len(json.loads((unsigned.parent / "model.pt.sig").read_text())) == 2
    for _, public in keys.values():
        assert hybrid_rt.load(unsigned, trusted_keys=[public])
    (unsigned.parent / "model.pt.sig").unlink()
    with pytest.raises(BundleError, match="got none"):
        hybrid_rt.load(unsigned, trusted_keys=[keys["ours"][1]])


@pytest.mark.parametrize("content", [b"", b"no JSON", b"[5]", b'[{"key": 1, "signature": []}]', b"[" * 70_000])
def test_an_invalid_file_of_signatures_signs_nothing(content: bytes, unsigned: Path, keys: Keys) -> None:
    (unsigned.parent / "model.pt.sig").write_bytes(content)
    with pytest.raises(BundleError, match="got none"):
        hybrid_rt.load(unsigned, trusted_keys=[keys["ours"][1]])


def test_a_signature_of_another_bundle_does_not_fit(
    signed: Path, small_bundle: Path, tmp_path: Path, keys: Keys
) -> None:
    hybrid_rt.sign(signed, keys["ours"][0], detached=True)
    other = rewrite(
        small_bundle, tmp_path / "other.pt", {"extra/hybrid_rt/manifest.json": change_manifest(lambda m: m.update(x=1))}
    )
    shutil.copy(f"{signed}.sig", f"{other}.sig")
    with pytest.raises(BundleError, match="got 1 that no trusted key has made for this file"):
        hybrid_rt.load(other, trusted_keys=[keys["ours"][1]])


def test_an_altered_signature_does_not_fit(unsigned: Path, keys: Keys) -> None:
    hybrid_rt.sign(unsigned, keys["ours"][0], detached=True)
    beside = unsigned.parent / "model.pt.sig"
    text = beside.read_text()
    (entry,) = json.loads(text)
    for altered in (entry["signature"][:-2], entry["signature"][:-1] + "g", "0" * 128, "", entry["signature"].upper()):
        beside.write_text(json.dumps([{**entry, "signature": altered}]))
        with pytest.raises(BundleError, match="no trusted key"):
            hybrid_rt.load(unsigned, trusted_keys=[keys["ours"][1]])
    beside.write_text(text)
    assert hybrid_rt.load(unsigned, trusted_keys=[keys["ours"][1]])


def test_a_record_that_was_altered_after_signing_is_found_in_every_record(
    signed: Path, tmp_path: Path, keys: Keys
) -> None:
    """This includes engines and the golden sample, which a load without keys reads only later."""
    for i, name in enumerate(record_names(signed)):
        if name.endswith(".debug_pkl") or name.startswith("extra/hybrid_rt/"):
            continue
        data = bytearray(signed.read_bytes())
        position = offset_of(signed, name, 0.5)
        data[position] ^= 1
        altered = tmp_path / f"{i}.pt"
        altered.write_bytes(data)
        with pytest.raises(BundleError):
            hybrid_rt.load(altered, trusted_keys=[keys["ours"][1]])


def test_a_change_drops_signatures_and_signing_again_restores_them(signed: Path, tmp_path: Path, keys: Keys) -> None:
    changed = tmp_path / "changed.pt"
    hybrid_rt.remove_variant(signed, "torchscript", changed)
    with pytest.raises(BundleError, match="got none"):
        hybrid_rt.load(changed, trusted_keys=[keys["ours"][1]])
    hybrid_rt.sign(changed, keys["ours"][0])
    assert hybrid_rt.load(changed, trusted_keys=[keys["ours"][1]])


def key_of(private: Path) -> str:
    """Returns the SHA-256 of the public key's 32 bytes, computed by openssl."""
    der = subprocess.run(
        ["openssl", "pkey", "-in", private, "-pubout", "-outform", "DER"], check=True, capture_output=True
    ).stdout
    return hashlib.sha256(der[-32:]).hexdigest()


def test_convert_signs_what_it_saves(tmp_path: Path, keys: Keys) -> None:
    path = tmp_path / "new.pt"
    private = [keys[name][0] for name in ("ours", "theirs")]
    result = hybrid_rt.convert(
        small_detector(), (small_image(),), path, segments="backbone", measure=False, sign=private
    )
    assert result.report.signed_with == [key_of(key) for key in private]
    assert not result.report.signatures_dropped
    assert f"signed with the key {key_of(private[0])}" in str(result.report)
    for _, public in keys.values():
        assert hybrid_rt.load(path, trusted_keys=[public])
    assert sorted(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("key", ["missing.pem", "text.pem"])
def test_an_invalid_key_is_refused_before_any_work(key: str, tmp_path: Path) -> None:
    (tmp_path / "text.pem").write_text("no key")
    progress: list[str] = []

    class Watched(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            progress.append("called")
            return x

    with pytest.raises(OptionError, match="expected a PEM file with an Ed25519 private key, got"):
        hybrid_rt.convert(Watched().eval(), (torch.zeros(1, 3, 8, 8),), tmp_path / "x.pt", sign=tmp_path / key)
    assert not progress
    assert not (tmp_path / "x.pt").exists()


def test_a_key_that_is_named_twice_is_refused(tmp_path: Path, small_bundle: Path, keys: Keys) -> None:
    copy = shutil.copy(keys["ours"][0], tmp_path / "copy.pem")
    with pytest.raises(OptionError, match="sign: expected each key once"):
        hybrid_rt.remove_variant(small_bundle, "torchscript", tmp_path / "x.pt", sign=[keys["ours"][0], copy])


EDITS: dict[str, Callable[[Path, Path, Any], Any]] = {
    "remove": lambda path, output, sign: hybrid_rt.remove_variant(path, "openvino", output, sign=sign),
    "add": lambda path, output, sign: hybrid_rt.add_variant(path, "torchscript:bf16", output, sign=sign),
    "swap": lambda path, output, sign: hybrid_rt.swap_backbone(
        path, small_detector().backbone, output, engine="torchscript", sign=sign
    ),
}


@pytest.mark.parametrize("is_in_place", [True, False])
@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_changes_of_a_signed_bundle_are_reported_or_signed(
    edit: Callable[[Path, Path, Any], Any], is_in_place: bool, signed: Path, tmp_path: Path, keys: Keys
) -> None:
    hybrid_rt.sign(signed, keys["theirs"][0], detached=True)
    private, public = keys["ours"]
    output = signed if is_in_place else tmp_path / "changed.pt"
    report = edit(signed, output, private)
    assert hybrid_rt.load(output, trusted_keys=[public])
    assert f"signed with the key {key_of(private)}" in report.notes
    theirs = key_of(keys["theirs"][0])
    assert f"signatures that do not hold any more were left out: {theirs}." in str(report)
    assert Path(f"{signed}.sig").exists() is not is_in_place
    with pytest.raises(BundleError, match="trusted key"):
        hybrid_rt.load(output, trusted_keys=[keys["theirs"][1]])


def test_a_change_without_a_key_names_the_dropped_signatures(signed: Path, keys: Keys) -> None:
    report = hybrid_rt.remove_variant(signed, "openvino")
    (note,) = report.notes
    assert note.startswith(f"signatures that do not hold any more were left out: {key_of(keys['ours'][0])}. Sign it")
    with pytest.raises(BundleError, match="got none"):
        hybrid_rt.load(signed, trusted_keys=[keys["ours"][1]])
    assert not hybrid_rt.add_variant(signed, "torchscript:bf16").notes  # there was no signature to lose


def test_a_conversion_over_a_signed_bundle_names_the_dropped_signatures(signed: Path, keys: Keys) -> None:
    hybrid_rt.sign(signed, keys["theirs"][0], detached=True)
    result = hybrid_rt.convert(small_detector(), (small_image(),), signed, segments="backbone", measure=False)
    gone = sorted(key_of(keys[name][0]) for name in ("ours", "theirs"))
    assert result.report.signatures_dropped == gone
    assert "signatures that do not hold any more were left out" in str(result.report)
    assert not Path(f"{signed}.sig").exists()


def test_a_foreign_file_beside_the_bundle_stays(unsigned: Path) -> None:
    other = Path(f"{unsigned}.sig")
    other.write_bytes(b"untrusted comment: a signature of another program\n")
    hybrid_rt.remove_variant(unsigned, "torchscript")
    assert other.exists()


def test_the_verbs_sign(unsigned: Path, keys: Keys, capsys: pytest.CaptureFixture[str]) -> None:
    names = [str(private) for private, _ in keys.values()]
    signs = ["--sign", names[0], "--sign", names[1]]
    assert main(["remove-variant", str(unsigned), "--engine", "openvino", *signs]) == 0
    assert capsys.readouterr().out.count("signed with the key ") == 2
    for _, public in keys.values():
        assert main(["verify-signature", str(unsigned), "--trusted-keys", str(public)]) == 0


def test_the_environment_asks_everything_that_runs_a_bundle(
    signed: Path,
    small_bundle: Path,
    tmp_path: Path,
    keys: Keys,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HYBRID_RT_TRUSTED_KEYS", f"{keys['theirs'][1]}:{keys['ours'][1]}")
    assert hybrid_rt.load(signed)
    assert hybrid_rt.open_engine(signed, "backbone")
    assert hybrid_rt.verify_golden(signed).passed
    runs: list[Opened] = [
        hybrid_rt.load,
        hybrid_rt.check,
        lambda path: hybrid_rt.open_engine(path, "backbone"),
        hybrid_rt.verify_golden,
        lambda path: hybrid_rt.remove_variant(path, "torchscript", tmp_path / "out.pt"),
    ]
    for opened in runs:
        with pytest.raises(BundleError, match="trusted keys, got none"):
            opened(small_bundle)
    assert hybrid_rt.inspect(small_bundle)  # inspecting runs no code


def test_nothing_is_unpickled_before_the_signature_is_right(small_bundle: Path, tmp_path: Path, keys: Keys) -> None:
    """The head's pickle is invalid, with matching digests."""
    broken = rewrite(small_bundle, tmp_path / "broken.pt", {"data.pkl": lambda _: b"no pickle"})
    with pytest.raises(BundleError, match=r"data\.pkl': expected a program that only computes"):
        hybrid_rt.load(broken)
    with pytest.raises(BundleError, match="trusted keys, got none"):
        hybrid_rt.load(broken, trusted_keys=[keys["ours"][1]])


def test_invalid_keys(signed: Path, tmp_path: Path, keys: Keys) -> None:
    rsa, rsa_public = made_key(tmp_path, "rsa", "-algorithm", "rsa", "-pkeyopt", "rsa_keygen_bits:2048")
    (tmp_path / "text.pem").write_text("no key")
    locked = tmp_path / "locked.pem"
    subprocess.run(
        ["openssl", "pkey", "-in", keys["ours"][0], "-aes256", "-passout", "pass:x", "-out", locked],
        check=True,
        capture_output=True,
    )
    for key in (rsa, tmp_path / "text.pem", tmp_path / "missing.pem", locked, keys["ours"][1]):
        with pytest.raises(OptionError, match="expected a PEM file with an Ed25519 private key, got"):
            hybrid_rt.sign(signed, key)
    for key in (rsa_public, tmp_path / "text.pem", tmp_path / "missing.pem", keys["ours"][0]):
        with pytest.raises(OptionError, match="expected a PEM file with an Ed25519 public key, got"):
            hybrid_rt.load(signed, trusted_keys=[key])
    with pytest.raises(OptionError, match="trusted_keys: expected at least one public key, got none"):
        hybrid_rt.load(signed, trust="signed")
    with pytest.raises(OptionError, match="at least one public key"):
        hybrid_rt.verify_signature(signed, [])


def test_incomplete_bundles_are_not_signed(signed: Path, tmp_path: Path, keys: Keys) -> None:
    data = bytearray(signed.read_bytes())
    data[offset_of(signed, "constants/0", 0.5)] ^= 1
    altered = tmp_path / "altered.pt"
    altered.write_bytes(data)
    with pytest.raises(BundleError, match="constants/0"):
        hybrid_rt.sign(altered, keys["ours"][0])
    assert altered.read_bytes() == data


def test_the_command_line_signs_and_checks(unsigned: Path, keys: Keys, capsys: pytest.CaptureFixture[str]) -> None:
    private, public = keys["ours"]
    assert main(["verify-signature", str(unsigned), "--trusted-keys", str(public)]) == 1
    assert main(["sign", str(unsigned), "--key", str(private), "--detached"]) == 0
    assert f"{unsigned}.sig: signed with the key " in capsys.readouterr().out
    assert main(["sign", str(unsigned), "--key", str(private)]) == 0
    assert main(["verify-signature", str(unsigned), "--trusted-keys", str(public)]) == 0
    assert f"{unsigned}: signed with {public}, every record matches its digest" in capsys.readouterr().out


@pytest.mark.slow
def test_the_programs_take_only_signed_bundles(
    demo_bundle: Path, demo_image_path: Path, tmp_path: Path, keys: Keys
) -> None:
    private, public = keys["ours"]
    path = Path(shutil.copy(demo_bundle, tmp_path / "demo.pt"))
    trust = ["--trusted-keys", str(public)]
    command = [program("hybrid-rt-detect", "test"), str(path), str(demo_image_path), "--json", *trust]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert refused.returncode == 4
    assert "expected a signature of one of 1 trusted keys, got none" in refused.stderr
    served = [program("hybrid-rt-serve", "test"), str(path), "--port", "0", *trust]
    refused = subprocess.run(served, capture_output=True, text=True, timeout=120, check=False)
    assert refused.returncode != 0
    assert "trusted keys, got none" in refused.stderr
    hybrid_rt.sign(path, private)
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["detections"]
