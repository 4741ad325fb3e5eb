"""What is asked of a Kafka while it is broken on purpose: by `scripts/chaos`, and by the tests of faults."""

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from kafka import KafkaConsumer, TopicPartition
from kafka.admin import KafkaAdminClient, OffsetSpec
from kafka.errors import KafkaError

T = TypeVar("T")

WITHIN_S = 60.0
ASK_AGAIN_S = 0.2


def arrived(servers: str, topic: str) -> list[Any]:
    """All records of a topic as a subscriber sees them: those of transactions once they are committed."""
    given = {"bootstrap_servers": servers.split(","), "fetch_max_wait_ms": 50}
    reader = KafkaConsumer(**given, max_partition_fetch_bytes=2**26, isolation_level="read_committed")
    with contextlib.closing(reader), contextlib.closing(KafkaConsumer(**given)) as of_anything:
        partitions = [TopicPartition(topic, p) for p in sorted(reader.partitions_for_topic(topic))]
        reader.assign(partitions)
        reader.seek_to_beginning()
        # Where all that was ever written ends, so that a transaction that is still open is waited for.
        ends = of_anything.end_offsets(partitions)
        records: list[Any] = []
        end_s = time.monotonic() + WITHIN_S
        while any(reader.position(tp) < end for tp, end in ends.items()):
            if time.monotonic() > end_s:
                raise TimeoutError(f"{topic} is not to be read to its end: is a transaction open?")
            for polled in reader.poll(timeout_ms=200).values():
                records += polled
    return records


class Asking:
    """Questions to a cluster whose brokers come and go: each is asked until somebody answers."""

    def __init__(self, servers: str) -> None:
        self.servers = servers
        self._admin: Any = None
        self._lock = threading.Lock()

    def ask(self, question: Callable[[Any], T], within_s: float = WITHIN_S) -> T:
        """The answer to a question to a `KafkaAdminClient`.

        Raises:
            KafkaError: nobody answers in time.
        """
        end_s = time.monotonic() + within_s
        with self._lock:
            while True:
                try:
                    return question(self._client())
                # kafka-python answers with other errors too when a connection breaks at the wrong moment.
                except (KafkaError, OSError, KeyError, AssertionError):
                    self._forget()
                    if time.monotonic() > end_s:
                        raise
                    time.sleep(ASK_AGAIN_S)

    def _client(self) -> Any:  # noqa: ANN401 - kafka-python is untyped
        if self._admin is None:
            self._admin = KafkaAdminClient(
                bootstrap_servers=self.servers.split(","),
                bootstrap_timeout_ms=5_000,
                request_timeout_ms=5_000,
            )
        return self._admin

    def _forget(self) -> None:
        if self._admin is not None:
            with contextlib.suppress(KafkaError, OSError):
                self._admin.close()
        self._admin = None

    def close(self) -> None:
        """Release the connections."""
        self._forget()

    def committed(self, group: str, topic: str, partitions: int, within_s: float = WITHIN_S) -> list[int]:
        """Where a group goes on in each partition; -1 where it has committed nothing."""
        lanes = [TopicPartition(topic, p) for p in range(partitions)]
        found = self.ask(lambda admin: admin.list_group_offsets({group: lanes})[group], within_s)
        return [int(found[lane].offset) if lane in found else -1 for lane in lanes]

    def ends(self, topic: str, partitions: int) -> list[int]:
        """Where the records of each partition end."""
        lanes = {TopicPartition(topic, p): OffsetSpec.LATEST for p in range(partitions)}
        found = self.ask(lambda admin: admin.list_partition_offsets(lanes))
        return [int(found[lane].offset) for lane in lanes]

    def leader(self, topic: str, partition: int = 0) -> int:
        """The broker that leads a partition."""

        def found(admin: Any) -> int:  # noqa: ANN401
            (described,) = admin.describe_topics([topic])
            (one,) = [p for p in described["partitions"] if p["partition_index"] == partition]
            if one["leader_id"] < 1:
                raise KafkaError(f"{topic}/{partition} has no leader")
            return int(one["leader_id"])

        return self.ask(found)

    def group_coordinator(self, group: str) -> int:
        """The broker that a consumer group talks to: it leads the group's partition of the offsets."""
        return self._coordinator("__consumer_offsets", group)

    def transaction_coordinator(self) -> int:
        """The broker that a transactional producer talks to: that of the first one that is known."""
        return self._coordinator("__transaction_state", min(self.transactional_ids()))

    def transactional_ids(self) -> list[str]:
        """Of all producers that have, or had, transactions."""
        by_broker = self.ask(lambda admin: admin.list_transactions())
        return sorted(one.transactional_id for listed in by_broker.values() for one in listed)

    def _coordinator(self, topic: str, name: str) -> int:
        (described,) = self.ask(lambda admin: admin.describe_topics([topic]))
        return self.leader(topic, (java_hash(name) & 0x7FFFFFFF) % len(described["partitions"]))


def java_hash(text: str) -> int:
    """Java's String.hashCode, by which Kafka chooses the partition of a group or a producer."""
    value = 0
    for unit in text:
        value = (31 * value + ord(unit)) & 0xFFFFFFFF
    return value
