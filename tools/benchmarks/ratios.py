"""Prints how many times faster hybrids are than whole graphs and frozen TorchScript, in results of tools/bench.

Hybrids and TorchScript run in C++, whole graphs through the vendor's Python interface. A ratio compares medians of the
same run; of several runs of a detector, the table shows the median ratio and the range. Times of different runs are
never compared. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

PRECISIONS = ("fp32", "bf16", "int8")
RIVALS = {"whole": "whole graph", "torchscript-cpp": "frozen TorchScript"}
HYBRID = "hybrid-cpp"

Ratios = Mapping[tuple[str, str, str], Sequence[float]]
"""{(detector, rival, precision): one ratio per run}."""


def main() -> None:
    """Reads the results and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="bench.json of one or more runs")
    parser.add_argument("--engine", required=True, help="engine of the hybrids and whole graphs")
    options = parser.parse_args()
    ratios = ratios_of((json.loads(path.read_text()) for path in options.results), options.engine)
    print(markdown(ratios))


def ratios_of(runs: Iterable[Mapping[str, Any]], engine: str) -> Ratios:
    """Returns the ratios of all runs; a case that failed has none.

    Args:
        runs: contents of bench.json.
        engine: name of the backend.
    """
    found: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for run in runs:
        times = {
            (result["detector"], result["case"]["runtime"], result["case"]["engine"], result["case"]["precision"]):
            result["latency"]["median"]
            for result in run["results"] if result["latency"] is not None
        }  # fmt: skip
        for (detector, runtime, of, precision), time in times.items():
            if (runtime, of) != (HYBRID, engine):
                continue
            for rival in RIVALS:
                own = (engine, precision) if rival == "whole" else ("", "fp32")
                if (other := times.get((detector, rival, *own))) is not None:
                    found[detector, rival, precision].append(other / time)
    return found


def markdown(ratios: Ratios) -> str:
    """Returns a table with one row per detector, and the geometric mean of each column."""
    columns = [
        (rival, precision) for rival in RIVALS for precision in PRECISIONS
        if any(key[1:] == (rival, precision) for key in ratios)
    ]  # fmt: skip
    lines = [
        ["detector", *(f"{RIVALS[rival]}, {precision}" for rival, precision in columns)],
        ["---", *["---:"] * len(columns)],
    ]
    for detector in dict.fromkeys(key[0] for key in ratios):
        lines.append([detector, *(_cell(ratios.get((detector, *column), ())) for column in columns)])
    lines.append(["geometric mean", *(_mean(ratios, column) for column in columns)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "-"
    text = f"{statistics.median(values):.2f}"
    return text if len(values) == 1 else f"{text} ({min(values):.2f} to {max(values):.2f})"


def _mean(ratios: Ratios, column: tuple[str, str]) -> str:
    return f"{statistics.geometric_mean(statistics.median(v) for key, v in ratios.items() if key[1:] == column):.2f}"


if __name__ == "__main__":
    main()
