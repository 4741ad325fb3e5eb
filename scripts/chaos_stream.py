"""The events that flow while things break: a steady pace, over several partitions, with spikes whose ids are known."""

import json
import threading
from collections.abc import Sequence

import numpy as np
from kafka import KafkaProducer

TICK_S = 0.05
SPIKE_EVERY = 250
BAD_EVERY = 1_000
# Sixty would be far out too, and yet, where limits have just risen, with one seed in three below one of them.
SPIKE = 600.0
FEATURES = {"numeric": ["temperature", "pressure", "flow"], "categorical": ["site"]}
DEVICES = 8


class Feed:
    """Writes events to the partitions of a topic; notes where spikes came to lie, by what Kafka answers."""

    def __init__(self, servers: str, topic: str, partitions: int, seed: int) -> None:
        self.topic, self.partitions = topic, partitions
        self.planted: set[str] = set()
        self.error: BaseException | None = None
        self._rng = np.random.default_rng(seed)
        self._counts = [0] * partitions
        self._producer = KafkaProducer(
            bootstrap_servers=servers.split(","),
            acks="all",
            enable_idempotence=True,
            linger_ms=5,
            request_timeout_ms=5_000,  # a silent broker is left sooner
            delivery_timeout_ms=600_000,
            max_block_ms=60_000,
        )

    def write(self, n: int, partitions: Sequence[int], *, spikes: bool = True) -> None:
        """So many events to each of these partitions; they have arrived after `flush`."""
        for partition in partitions:
            for _ in range(n):
                self._send(partition, spikes=spikes)

    def flush(self) -> None:
        """Return when Kafka has all that was written."""
        self._producer.flush()

    def flow(self, rate: float, end: threading.Event) -> None:
        """Write so many events a second, taking turns among the partitions, until told to end."""
        due, turn = 0.0, 0
        while not end.wait(TICK_S):
            due += rate * TICK_S
            for _ in range(int(due)):
                turn = (turn + 1) % self.partitions
                self._send(turn, spikes=True)
            due -= int(due)
        self.flush()

    def close(self) -> None:
        """Release the connections."""
        self._producer.close()

    def _send(self, partition: int, *, spikes: bool) -> None:
        self._counts[partition] += 1
        i = self._counts[partition]
        if spikes and i % BAD_EVERY == 0:
            self._producer.send(self.topic, b"garbage", key=b"bad", partition=partition)
            return
        spike = spikes and i % SPIKE_EVERY == 0
        future = self._producer.send(self.topic, self._event(i, spike=spike), key=b"k", partition=partition)
        if spike:
            future.add_callback(lambda sent: self.planted.add(f"{self.topic}/{sent.partition}/{sent.offset}"))
            future.add_errback(self._failed)

    def _failed(self, error: BaseException) -> None:
        self.error = error

    def _event(self, i: int, *, spike: bool) -> bytes:
        noise = self._rng.standard_normal(4)
        device = int(self._rng.integers(DEVICES))
        load = float(np.sin(i / 50 + device) + 0.1 * noise[0])
        fields = {
            "ts": 1_750_000_000_000 + 1_000 * i,
            "device": f"d{device}",
            "temperature": round(60 + 5 * load + 0.3 * float(noise[1]) + SPIKE * spike, 3),
            "pressure": round(3 + 0.5 * load + 0.02 * float(noise[2]), 3),
            "flow": round(10 - 2 * load + 0.1 * float(noise[3]), 3),
            "site": "north" if device % 2 else "south",
        }
        return json.dumps(fields).encode()
