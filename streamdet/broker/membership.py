"""What a consumer's place in its group needs beyond kafka-python's own interface.

A static member (`group.instance.id`) is known to Kafka by its name: one that comes back under it finds its partitions
as it left them. kafka-python does not say when another consumer has taken the name, never lets a static member leave,
lets one that was expelled claim what it had, and may forget that it is joining. That is mended here; tests on a real
Kafka hold it.
"""

from collections.abc import Callable, Iterable
from typing import Any, Final

from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor

from streamdet.config import Kafka
from streamdet.errors import BrokerError

# Of a member that has not joined yet, or was expelled.
NO_GENERATION: Final = -1


class HonestAssignor(CooperativeStickyAssignor):  # type: ignore[misc]
    """Shares out as its parent does, but claims nothing for a member that was expelled.

    Its parent claims what the member was assigned last. The leader believes it, and gives it partitions that others
    have by now, before they have given them up.

    `member` is to be the consumer's `group_metadata`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.member: Callable[[], Any] | None = None

    def metadata(self, topics: Iterable[str]) -> Any:  # noqa: ANN401
        """What the member tells when it joins: topics and claims."""
        if self.member is not None and self.member().generation_id == NO_GENERATION:
            self.member_assignment = None
        return super().metadata(topics)


def fenced(consumer: Any) -> bool:  # noqa: ANN401 - kafka-python is untyped
    """Whether another consumer of the group has taken this one's name.

    kafka-python learns it from a heartbeat, logs it, sends no more of them and goes on as if nothing had happened: it
    would read for ever and never commit. By that it is known: a settled member that sends no heartbeats.

    It need not have been another consumer: where brokers fail over, Kafka may take the name from a member for its own
    attempt to join again.
    """
    coordinator = consumer._coordinator  # noqa: SLF001
    with coordinator._lock:  # noqa: SLF001 - it is held where a join ends, which changes all three
        settled = coordinator.stable() and not coordinator.need_rejoin()
        return bool(settled and not coordinator._heartbeat_enabled)  # noqa: SLF001


def finish_join(consumer: Any) -> None:  # noqa: ANN401
    """Join again where kafka-python has forgotten that it is about to join.

    A leader joins when topics change, and takes note of the change while it shares out the partitions. If a poll's time
    is up before Kafka confirms that, the next one sees no change to join for: what was shared out is never taken
    over, no heartbeat is sent, and the worker would be alive and idle for good.
    """
    coordinator = consumer._coordinator  # noqa: SLF001
    if coordinator.rebalance_in_progress() and not coordinator.need_rejoin():
        coordinator.request_rejoin()


def join_anew(consumer: Any) -> None:  # noqa: ANN401
    """Join as somebody who has never been there; what the member had is lost to it."""
    consumer._coordinator.reset_generation()  # noqa: SLF001


def share_out_again(consumer: Any) -> None:  # noqa: ANN401
    """Ask for a rebalance, for a member that has just come under a name.

    Kafka gives one that comes back what it had, without asking the others. If it was killed between the two steps of a
    rebalance (KIP-429), a partition that was taken from it in the first one would be nobody's until the next rebalance.
    """
    consumer._coordinator.request_rejoin()  # noqa: SLF001


def leave_on_close(consumer: Any) -> None:  # noqa: ANN401
    """Let closing the consumer end its membership at once, also that of a static member.

    The request has the member's id beside its name, so that Kafka refuses it where somebody else has the name by now.
    """
    consumer._coordinator.is_dynamic_member = lambda: True  # noqa: SLF001


def name_taken(kafka: Kafka, group_id: str, name: str) -> BrokerError:
    """What a worker is told whose name another one uses."""
    return BrokerError(
        f"another worker uses the name {name!r} in group {group_id!r} on Kafka at {kafka.bootstrap_servers}, and keeps "
        "taking this one's place; give each worker its own input.instance_id"
    )
