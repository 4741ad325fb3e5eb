"""Seconds until `streamdet --help` has printed, and until `streamdet run` has its lanes and polls."""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_common import Figures, say, spread
from kafka import KafkaAdminClient
from kafka_local import running_kafka

STREAMDET = (sys.executable, "-m", "streamdet")


def measure(given: argparse.Namespace) -> Figures:
    """Whole processes, one after the other; the first of each is not counted, as it fills the caches."""
    with tempfile.TemporaryDirectory() as folder, running_kafka(Path(folder) / "kafka") as kafka:
        servers = kafka.bootstrap_servers
        client = KafkaAdminClient(bootstrap_servers=servers)
        client.create_topics({"sensors": {"num_partitions": 1, "replication_factor": 1}})
        client.close()
        config = Path(folder) / "streamdet.yaml"
        config.write_text(
            f"kafka: {{bootstrap_servers: '{servers}'}}\n"
            "input: {topics: [sensors], features: {numeric: [a, b]}}\n"
            f"checkpoint: {{url: '{folder}/state'}}\n"
        )
        helps = [_help_s() for _ in range(given.rounds + 1)][1:]
        polls = [_polling_s(config) for _ in range(given.rounds + 1)][1:]
        bare = [_import_torch_s() for _ in range(given.rounds + 1)][1:]
    return {"help_s": spread(helps), "run_polling_s": spread(polls), "import_torch_s": spread(bare)}


def _help_s() -> float:
    started_s = time.perf_counter()
    subprocess.run([*STREAMDET, "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started_s


def _import_torch_s() -> float:
    started_s = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.perf_counter() - started_s


def _polling_s(config: Path) -> float:
    started_s = time.perf_counter()
    with subprocess.Popen(
        [*STREAMDET, "run", "-c", str(config)], stderr=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stderr is not None
        for line in worker.stderr:
            if "lanes changed gained=sensors/0" in line:
                seconds = time.perf_counter() - started_s
                worker.terminate()
                worker.stderr.read()
                say(f"polling after {seconds:.2f} s")
                return seconds
    raise RuntimeError("the worker ended before it polled")
