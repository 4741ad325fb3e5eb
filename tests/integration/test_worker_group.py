"""Two workers share a group and a store: what one leaves the other takes, and nothing is lost or told twice."""

import threading
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fakes import QUICK, SCHEMA, counted, readings
from kafka_broker import MakeTopic
from kafka_local import Kafka
from live import alerts_in, committed, publish, until

from streamdet.app import build, connect_delivery
from streamdet.checkpoint.shelf import Shelf
from streamdet.checkpoint.store import open_store
from streamdet.clock import SystemClock
from streamdet.codec.json import JsonCodec
from streamdet.config import Settings, parse
from streamdet.parts import Part
from streamdet.source.kafka import KafkaSource
from streamdet.worker import Worker, run

pytestmark = pytest.mark.integration

PARTITIONS = 4
EACH = 2_400
SPIKES = range(700, EACH, 150)


class Seen:
    """What a worker judged: coordinates of events and rejects, and the ids of flagged events."""

    def __init__(self) -> None:
        self.records: list[tuple[int, int]] = []
        self.flagged: list[str] = []

    def judged(self, parts: Sequence[Part]) -> None:
        for part in parts:
            events, partition = part.decoded.events, part.lane.partition
            self.records += [(partition, offset) for offset in events.offsets.tolist()]
            self.records += [(partition, reject.offset) for reject in part.decoded.rejects]
            self.flagged += [f"{part.lane}/{o}" for o in events.offsets[part.verdicts.flagged].tolist()]


class Member:
    """A worker in a thread. It is the process' own loop; only the signals are missing."""

    def __init__(self, settings: Settings, name: str) -> None:
        self.requested = False
        self.seen = Seen()
        clock = SystemClock()
        self.source = KafkaSource(settings, clock, self._stopped, instance=name)
        self.worker: Worker = build(
            settings,
            schema=SCHEMA,
            source=self.source,
            delivery=connect_delivery(settings, self.source, name, clock, self._stopped),
            codec=JsonCodec(SCHEMA),
            clock=clock,
            shelf=Shelf(open_store(settings.checkpoint.url), settings.input.group_id, 3, clock),
            observers=[self.seen],
        )

    def _stopped(self) -> bool:
        return self.requested

    @property
    def lanes(self) -> int:
        return len(self.source.lanes)

    @contextmanager
    def running(self) -> Iterator["Member"]:
        """Judge; on leaving, stop as a signal would and fail if the worker failed."""
        with ThreadPoolExecutor(1) as thread:
            done = thread.submit(run, self.worker, self)
            try:
                yield self
            except AssertionError:
                if done.done():  # what was waited for did not come because the worker had failed
                    done.result()
                raise
            finally:
                self.requested = True
            done.result(timeout=30)


def test_two_workers_share_a_topic_and_one_leaves_in_the_middle(
    kafka: Kafka, kafka_admin: Any, make_topic: MakeTopic, tmp_path: Path
) -> None:
    """Each record counts once, whoever judged it. A lane moves with its state: so planted anomalies are found in all of
    them once the warm-up is over, right after a move too.
    """
    topic, servers = make_topic(PARTITIONS), kafka.bootstrap_servers
    settings = parse(
        {
            **QUICK,
            "kafka": {"bootstrap_servers": servers},
            "checkpoint": {"url": str(tmp_path), "every_s": 1},
            "input": {
                "topics": [topic],
                "group_id": f"g-{uuid.uuid4().hex[:8]}",
                "timestamp": "ts",
                "entity": "device",
                "batch": {"max_events": 200},
            },
        }
    )
    streams = [readings(EACH, seed=p, spikes=SPIKES) for p in range(PARTITIONS)]
    streams[1][400] = b"garbage"

    def publish_all(start: int, stop: int) -> None:
        for partition, values in enumerate(streams):
            publish(servers, topic, values[start:stop], partition)

    def all_committed(offset: int) -> bool:
        return committed(kafka_admin, settings.input.group_id, topic, PARTITIONS) == [offset] * PARTITIONS

    publish_all(0, 800)
    first, second = Member(settings, "first"), None
    with first.running():
        until(lambda: first.lanes == PARTITIONS and len(first.seen.records) > 400, "the first at work on all")
        second = Member(settings, "second")
        with second.running():
            writer = threading.Thread(target=publish_all, args=(800, 1_200))
            writer.start()
            until(lambda: first.lanes == second.lanes == PARTITIONS // 2, "two lanes each")
            writer.join()
            publish_all(1_200, 1_600)
            until(lambda: all_committed(1_600), "the middle judged")
            assert len(second.seen.records) >= 400 * PARTITIONS // 2
            first.requested = True  # leaves, as on SIGTERM, while more is coming
            publish_all(1_600, EACH)
            until(lambda: second.lanes == PARTITIONS, "all lanes for the second")
            until(lambda: all_committed(EACH), "everything judged")

    judged = first.seen.records + second.seen.records
    assert set(judged) == {(p, offset) for p in range(PARTITIONS) for offset in range(EACH)}
    finals = [member.worker.delivery.records_final for member in (first, second)]
    assert sum(finals) == PARTITIONS * EACH
    assert min(finals) > EACH
    assert counted(second.worker, "streamdet_cold_starts_total") == 0
    for member in (first, second):
        polled = counted(member.worker, "streamdet_records_polled_total")
        assert polled == len(member.seen.records)
        assert polled == counted(member.worker, "streamdet_events_judged_total") + counted(
            member.worker, "streamdet_records_rejected_total"
        )
    flagged = first.seen.flagged + second.seen.flagged
    ids = [alert.id for alert in alerts_in(servers, settings.alerts_topic)]
    assert len(ids) == len(set(ids))
    # What was judged, but not committed when its lane moved, was judged again by the other.
    assert set(ids) <= set(flagged)
    assert {f"{topic}/{p}/{offset}" for p in range(PARTITIONS) for offset in SPIKES if offset > 1_000} <= set(
        ids
    )
    kafka_admin.delete_topics([settings.alerts_topic, settings.dead_letters_topic])
