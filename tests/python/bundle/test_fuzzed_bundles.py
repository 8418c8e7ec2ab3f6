"""Tests that mutated bundles with matching digests load or give an error of this package, in bounded time and memory.

`tools/fuzz --hours N fuzz_bundles` runs the same mutations for longer.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.dev import fuzz_bundles

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning"),
]

MUTANTS = 2000
SECONDS = 25.0


def test_mutated_bundles_end_no_process(small_bundle: Path, tmp_path: Path) -> None:
    outcomes, broken = fuzz_bundles.fuzz(small_bundle, range(MUTANTS), tmp_path, SECONDS)
    assert not broken, {number: (outcome, tmp_path / f"{number}.pt") for number, outcome in broken.items()}
    assert sum(count for outcome, count in outcomes.items() if "refused" in outcome) > 20
    assert any("taken" in outcome for outcome in outcomes)
    # The records are as they were signed.
    assert outcomes["taken taken taken taken"], outcomes


def test_a_mutant_depends_only_on_its_number(small_bundle: Path) -> None:
    records = fuzz_bundles.records_of(small_bundle)
    made = [fuzz_bundles.mutant(records, number) for number in (*range(40), *range(40))]
    assert made[:40] == made[40:]
    assert len(set(made)) > 30


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("os.kill(os.getpid(), 11)", "signal 11"),
        ("raise KeyError('x')", "raw:KeyError"),
        ("time.sleep(60)", "hang"),
        ("held.append(b'x' * (400 << 20))", "memory"),
        # A reader that does not ask for a signature.
        ("pass\nload = hybrid_rt.load\nhybrid_rt.load = lambda path, **options: 1", "taken: not as it was signed"),
    ],
)
def test_mutants_that_break_a_promise_are_kept(
    code: str, outcome: str, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This is a reader that does so."""
    broken = f"\nimport time\nheld = []\ndef inspect(path): {code}\nhybrid_rt.inspect = inspect\n"
    monkeypatch.setattr(fuzz_bundles, "SECONDS", 2.0)
    monkeypatch.setattr(
        fuzz_bundles, "WORKER", fuzz_bundles.WORKER.replace("import hybrid_rt\n", f"import hybrid_rt\n{broken}")
    )
    outcomes, numbers = fuzz_bundles.fuzz(small_bundle, [7], tmp_path / "kept")
    assert not any(map(fuzz_bundles.is_fine, outcomes)), outcomes
    assert outcome in numbers[7]
    assert (tmp_path / "kept" / "7.pt").read_bytes() == fuzz_bundles.mutant(fuzz_bundles.records_of(small_bundle), 7)
