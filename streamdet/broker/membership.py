"""What a consumer's place in its group needs beyond kafka-python's own interface.

A static member (`group.instance.id`) is known to Kafka by its name: one that comes back under it finds its partitions
as it left them. kafka-python does not say when another consumer has taken the name, and never lets a static member
leave. Both are mended here, by what its coordinator knows; tests on a real Kafka hold it.
"""

from typing import Any

from streamdet.config import Kafka
from streamdet.errors import BrokerError


def fenced(consumer: Any) -> bool:  # noqa: ANN401 - kafka-python is untyped
    """Whether another consumer of the group has taken this one's name.

    kafka-python learns it from a heartbeat, logs it, sends no more of them and goes on as if nothing had happened: it
    would read for ever and never commit. By that it is known: a settled member that sends no heartbeats.
    """
    coordinator = consumer._coordinator  # noqa: SLF001
    with coordinator._lock:  # noqa: SLF001 - it is held where a join ends, which changes all three
        settled = coordinator.stable() and not coordinator.need_rejoin()
        return bool(settled and not coordinator._heartbeat_enabled)  # noqa: SLF001


def leave_on_close(consumer: Any) -> None:  # noqa: ANN401
    """Let closing the consumer end its membership at once, also that of a static member.

    The request has the member's id beside its name, so that Kafka refuses it where somebody else has the name by now.
    """
    consumer._coordinator.is_dynamic_member = lambda: True  # noqa: SLF001


def name_taken(kafka: Kafka, group_id: str, name: str) -> BrokerError:
    """What a worker is told whose name another one uses."""
    return BrokerError(
        f"another worker uses the name {name!r} in group {group_id!r} on Kafka at {kafka.bootstrap_servers}, and has "
        "taken this one's place; give each worker its own input.instance_id"
    )
