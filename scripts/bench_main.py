"""Benchmarks, each measured against something in the same run, as machines differ and are noisy.

A figure is the median of several rounds, with the smallest and the largest beside it; ratios are taken round by
round. What is compared takes turns, so that a machine that slows down slows both.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import bench_checkpoint
import bench_detector
import bench_latency
import bench_memory
import bench_startup
import bench_transactions
import bench_worker
from bench_common import Figures


def _quality(given: argparse.Namespace) -> Figures:
    # Imported only here: scikit-learn would count as memory of the detector in another benchmark.
    import bench_quality

    return bench_quality.measure(given)


def _explain(given: argparse.Namespace) -> Figures:
    import bench_explain

    return bench_explain.measure(given)


BENCHMARKS: dict[str, tuple[Callable[[argparse.Namespace], Figures], str]] = {
    "worker": (bench_worker.measure, "events/s from Kafka to verdicts, against a bare poll-and-decode loop"),
    "latency": (
        bench_latency.measure,
        "milliseconds from event to alert at a steady pace, while fine-tunes run",
    ),
    "detector": (
        bench_detector.measure,
        "events/s of one core from recorded rows to verdicts, against River",
    ),
    "startup": (bench_startup.measure, "seconds until --help is printed and until `run` polls"),
    "memory": (bench_memory.measure, "resident memory after 1 million and after 10 million events"),
    "checkpoint": (
        bench_checkpoint.measure,
        "what saving costs the loop, and how long and how large a save is",
    ),
    "transactions": (
        bench_transactions.measure,
        "events/s of the features of payments on one core, against those of records",
    ),
    "quality": (
        _quality,
        "how well anomalies are found in labelled recordings, beside other detectors",
    ),
    "explain": (_explain, "how often an alert names the one feature that was spoiled in a normal row"),
}


def main() -> int:
    """Run one benchmark; its exit code."""
    names = "\n".join(f"  {name:<13}{text}" for name, (_, text) in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description=__doc__, epilog=f"benchmarks:\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("name", choices=BENCHMARKS, metavar="NAME")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each side (default 5)")
    parser.add_argument("--events", type=int, help="events in a round")
    parser.add_argument("--rate", type=int, default=2000, help="events/s for latency (default 2000)")
    _quality_options(parser.add_argument_group("quality and explain"))
    given = parser.parse_args()
    figures = BENCHMARKS[given.name][0](given)
    # A benchmark with more than one table names them itself.
    text = json.dumps(figures if given.name in figures else {given.name: figures}, indent=2)
    print(text)
    if given.json is not None:
        given.json.write_text(text + "\n")
    return 0


def _quality_options(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--data", type=Path, help="folder of labelled recordings; without it, River's Shuttle")
    group.add_argument("--seeds", type=int, default=1, help="seeds of each model, from 0 (default 1)")
    group.add_argument("--families", help="families of streams, separated by commas (default: all)")
    group.add_argument(
        "--models",
        help="streamdet and its peers, separated by commas (default: all); streamdet:PRESET fixes the preset, "
        "streamdet:only-SCORER and streamdet:without-SCORER weigh the scorers",
    )
    group.add_argument(
        "--document",
        type=Path,
        help="write the tables into this document, between the comments that name them",
    )
    group.add_argument("--cache", type=Path, help="folder in which the peers' results are kept")
    group.add_argument("--whole", action="store_true", help="leave no rows out of the longest recordings")
    group.add_argument(
        "--rates", action="store_true", help="realised alert rates on streams without anomalies"
    )


if __name__ == "__main__":
    sys.exit(main())
