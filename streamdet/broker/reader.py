"""A kafka-python consumer that waits for brokers, and says which of its errors are the user's.

What the source of the worker and the subscriber to alerts have in common.
"""

import logging
import math
from collections import deque
from collections.abc import Callable, Set
from typing import Any, Final, TypeVar

from kafka import ConsumerRebalanceListener, KafkaConsumer, errors
from kafka.structs import MemberState, TopicPartition

from streamdet.broker.client import POSITION_ERRORS, SLICE_S, Clients, Outage, arguments, refusal, text
from streamdet.broker.membership import fenced, finish_join, join_anew, leave_on_close, name_taken
from streamdet.clock import Clock
from streamdet.config import Kafka

log = logging.getLogger(__name__)

T = TypeVar("T")

# What a call may take while a broker is connected, and while none is.
CALL_MS: Final = 5_000
CALL_AWAY_MS: Final = 400
# What it may take once a broker that is connected has not answered in that time.
CALL_SLOW_MS: Final = 30_000
# Poll without a connected broker for this long: the broker counts as away. Reconnecting takes less.
UNREACHED_S: Final = 1.0
# A rebalance waits for all members. kafka-python throws its result away and joins anew, which makes the others join
# anew too, if it comes while nobody polls; so there is a poll nearly all the time.
JOIN_S: Final = 1.0
# Who loses its name joins anew. If it loses it again this soon, there is another one who does the same: each takes it
# from the other within two heartbeats.
NAME_LOST_AGAIN_S: Final = 10.0
# With a heartbeat a member also learns that another one has come: a rebalance takes up to two of them.
HEARTBEAT_MS: Final = 1_000


class Revocations(ConsumerRebalanceListener):  # type: ignore[misc]
    """Notes which partitions were taken away.

    Called on the loop that also sends the heartbeats, so it does no more than that.
    """

    def __init__(self) -> None:
        self._noted: deque[TopicPartition] = deque()

    def on_partitions_revoked(self, revoked: Set[TopicPartition]) -> None:
        """Note them; those that were lost without notice come here too."""
        self._noted.extend(revoked)

    def on_partitions_assigned(self, assigned: Set[TopicPartition]) -> None:
        """Nothing to note: the assignment can be asked for."""

    def seen(self) -> set[TopicPartition]:
        """What was taken away since the last `take`."""
        return set(self._noted)

    def take(self) -> set[TopicPartition]:
        """What was taken away since the last `take`, which it forgets."""
        return {self._noted.popleft() for _ in range(len(self._noted))}


class Reader:
    """A `KafkaConsumer` that waits for brokers, and says which errors are the user's.

    It never commits by itself, never creates a topic, and sees committed transactions only. Positions that are
    missing or out of range are the caller's to settle: `poll` and `call` let `POSITION_ERRORS` through.

    Args:
        kafka: the cluster.
        outage: waits.
        clock: for waits.
        stays: whether a static member keeps its place when it is closed, until the session timeout.
        options: more of kafka-python's.
    """

    def __init__(
        self,
        kafka: Kafka,
        outage: Outage,
        clock: Clock,
        *,
        stays: bool = False,
        **options: Any,  # noqa: ANN401
    ) -> None:
        given = {
            **arguments(kafka),
            "enable_auto_commit": False,
            "auto_offset_reset": "none",
            "isolation_level": "read_committed",
            "allow_auto_create_topics": False,
            "metrics_enabled": False,
            "heartbeat_interval_ms": HEARTBEAT_MS,
            **options,
        }
        clients = Clients()
        self._kafka = kafka
        self._outage = outage
        self._name_lost_s = -math.inf
        self._clock = clock
        self.consumer = outage.persist(lambda: clients.build(KafkaConsumer, given))
        self._network = clients.made[-1]
        self._unreached_s: float | None = None
        self._group_id: str | None = options.get("group_id")
        self._name: str | None = options.get("group_instance_id")
        self._stays = stays
        self._settled = True

    @property
    def reached(self) -> bool:
        """Whether any broker is connected at the moment."""
        return any(self._network.connected(b.node_id) for b in self._network.cluster.brokers())

    @property
    def call_ms(self) -> int:
        """How long a call may block: little while no broker is there, so that a stop is heeded."""
        return CALL_MS if self.reached else CALL_AWAY_MS

    def poll(self, wait_s: float, records_max: int) -> dict[TopicPartition, list[Any]]:
        """What `KafkaConsumer.poll` gives; blocks for at most a quarter of a second, or a second in a rebalance.

        Raises:
            BrokerError: Kafka refused, or another member of the group uses this one's name.
            BrokerUnavailableError: a stop was requested while waiting after an error.
        """
        # Not asked for each poll, but after one that brought nothing: a rebalance brings nothing.
        wait_s = min(max(wait_s, 0.0), SLICE_S) if self._settled else JOIN_S
        try:
            polled: dict[TopicPartition, list[Any]] = self.consumer.poll(
                timeout_ms=wait_s * 1000, max_records=records_max
            )
        except POSITION_ERRORS:
            raise
        except errors.FencedInstanceIdError as error:
            self.name_lost(error)
            return {}
        except (errors.KafkaError, OSError) as error:
            self._outage.failed(error)
            self._outage.pause()
            return {}
        if self._group_id is not None:
            finish_join(self.consumer)
        if self._name is not None and fenced(self.consumer):
            self.name_lost(None)
        if polled:
            self._settled = True
            self._unreached_s = None
            self._outage.ended()
        else:
            self._watch()
        return polled

    def _watch(self) -> None:
        """Find out whether an empty poll means a quiet topic or a broker that is away: poll itself tells neither."""
        reached = self.reached
        joining = (
            self._group_id is not None and self.consumer.group_metadata().state == MemberState.REBALANCING
        )
        self._settled = not (reached and joining)
        if reached:
            self._unreached_s = None
            self._outage.ended()
            return
        now_s = self._clock.monotonic_s()
        if self._unreached_s is None:
            self._unreached_s = now_s
        elif now_s - self._unreached_s >= UNREACHED_S:
            self._outage.began("no broker is connected")

    def call(self, attempt: Callable[[int], T]) -> T:
        """The result of a call that takes a timeout in milliseconds, repeated until Kafka answers.

        Raises:
            BrokerError: it answered with a refusal.
            BrokerUnavailableError: a stop was requested meanwhile.
        """
        return self._outage.persist(lambda: self._answer(attempt))

    def _answer(self, attempt: Callable[[int], T]) -> T:
        try:
            return attempt(self.call_ms)
        except errors.KafkaTimeoutError:
            if not self.reached:
                raise
            # Kafka is there, only slow: it may wait for other members of the group to join.
            return attempt(CALL_SLOW_MS)

    def name_lost(self, error: BaseException | None) -> None:
        """Join anew under the name that Kafka gave to somebody else.

        Raises:
            BrokerError: that was done just before; so there is another worker that does the same.
        """
        now_s = self._clock.monotonic_s()
        if now_s - self._name_lost_s < NAME_LOST_AGAIN_S:
            raise name_taken(self._kafka, str(self._group_id), str(self._name)) from error
        self._name_lost_s = now_s
        log.warning("name=%s was taken by another member of the group: joining anew", self._name)
        join_anew(self.consumer)

    def once(self, attempt: Callable[[int], T], timeout_ms: int) -> T | None:
        """The result of such a call if Kafka gives it in time, else None; for who comes back to it after a poll.

        Raises:
            BrokerError: it answered with a refusal.
        """
        if not self.reached:
            return None
        try:
            return attempt(timeout_ms)
        except (errors.KafkaError, OSError) as error:
            refused = refusal(error, self._kafka)
            if refused is not None:
                raise refused from error
            log.debug("kafka gave no answer reason=%s", text(error))
            return None

    def learn(self, partitions: Set[TopicPartition]) -> dict[TopicPartition, int]:
        """Know these partitions before joining a group; gives their ends.

        kafka-python joins at once, and a leader that has no metadata yet assigns nothing to anybody: the group would
        be complete, and idle until the next rebalance.
        """
        ends: dict[TopicPartition, int] = self.call(
            lambda ms: self.consumer.end_offsets(list(partitions), timeout_ms=ms)
        )
        return ends

    def partitions(self, topic: str) -> set[TopicPartition]:
        """The partitions of a topic, as of the newest metadata; none where it is not there."""
        return {TopicPartition(topic, p) for p in self._network.cluster.partitions_for_topic(topic) or ()}

    def topic_id(self, topic: str) -> str:
        """What tells a topic from a later one of the same name; empty where it is not there or Kafka is too old."""
        known = self._network.cluster.topic_id(topic)
        return known.hex if known is not None and known.int else ""

    def close(self) -> None:
        """Leave the group at once, but for a static member that stays; without a broker, give up."""
        if self._name is not None and not self._stays:
            leave_on_close(self.consumer)
        try:
            self.consumer.close(autocommit=False, timeout_ms=1_000 if self.reached else 100)
        except (errors.KafkaError, OSError) as error:
            log.info("kafka close reason=%s", text(error))
