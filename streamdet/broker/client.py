"""What source, sink and subscriber share of Kafka: how to connect, how to wait, what its errors mean.

kafka-python's errors end here: what waiting may mend is waited for (`Outage.persist`), what it will not mend
becomes a `BrokerError` that says what to do. kafka-python itself repeats a refused login until its time is up and
then reports a timeout, and its clients leave a thread behind when they cannot be constructed; therefore every
client here is made after `topics_of` has spoken to a broker, and is closed if its construction fails.
"""

import logging
import re
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from kafka import KafkaAdminClient, KafkaProducer, errors
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.net.compat import KafkaNetClient
from kafka.protocol.metadata import MetadataRequest

from streamdet.clock import Clock
from streamdet.config import Kafka
from streamdet.errors import BrokerError, BrokerUnavailableError, ConfigError

log = logging.getLogger(__name__)

T = TypeVar("T")
Stopped = Callable[[], bool]

# Between attempts to reach a broker that is away.
BACKOFF_MIN_S: Final = 0.1
BACKOFF_MAX_S: Final = 5.0
# No wait is longer than this without a look at whether a stop was requested.
SLICE_S: Final = 0.25
# A broker that is silent without closing its connections holds up everything for so long.
REQUEST_TIMEOUT_MS: Final = 10_000
# Between two looks of a producer's thread for a coordinator that is not there.
NOT_READY_S: Final = 0.05
# A first answer: long enough for a distant broker with TLS and a login.
ANSWER_S: Final = 10.0

# Kafka's own default of what a topic takes in one batch.
TOPIC_BYTES_MAX: Final = 1_048_588

SERVER: Final = re.compile(r"\S+:\d{1,5}")

LOGIN_ERRORS: Final = (
    errors.SaslAuthenticationFailedError,
    errors.UnsupportedSaslMechanismError,
    errors.IllegalSaslStateError,
)
# kafka-python calls these final, but they pass: a broker that is starting, or a producer that starts anew.
PASSING_ERRORS: Final = (
    errors.BrokerNotAvailableError,
    errors.InvalidProducerEpochError,
    errors.InvalidProducerIdMappingError,
    errors.OutOfOrderSequenceNumberError,
    errors.RebalanceInProgressError,
    errors.UnknownBrokerIdError,
    errors.UnknownError,
    errors.UnknownProducerIdError,
)
# A position that is missing or no longer there: whoever reads must decide where to go on.
POSITION_ERRORS: Final = (
    errors.LogTruncationError,
    errors.NoOffsetForPartitionError,
    errors.OffsetOutOfRangeError,
)
TOO_LARGE_ERRORS: Final = (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError)
# What was refused, and what the user can do about it.
REMEDIES: Final = (
    (TOO_LARGE_ERRORS, "a record as too large", "raise the topic's max.message.bytes"),
    (
        errors.InvalidSessionTimeoutError,
        "input.session_timeout_ms",
        "choose it between the brokers' group.min.session.timeout.ms and group.max.session.timeout.ms",
    ),
)


def never() -> bool:
    """The stop request of a caller who never stops."""
    return False


def arguments(kafka: Kafka) -> dict[str, Any]:
    """What every kafka-python client is constructed with.

    Raises:
        ConfigError: a server is not host:port, or a file named in the security settings cannot be read.
    """
    security = kafka.security
    servers = [server.strip() for server in kafka.bootstrap_servers.split(",")]
    for server in servers:
        if not SERVER.fullmatch(server):
            raise ConfigError(
                f"kafka.bootstrap_servers: expected host:port, such as localhost:9092, got {server!r}"
            )
    given: dict[str, Any] = {
        "bootstrap_servers": servers,
        "security_protocol": security.protocol,
        # The default of 30 s would make a broker's return unnoticed for half a minute.
        "reconnect_backoff_max_ms": 1_000,
        "request_timeout_ms": REQUEST_TIMEOUT_MS,
        "receive_message_max_bytes": 100_000_000,
    }
    if security.protocol.endswith("SSL"):
        given["ssl_cafile"] = _file(security.ca_file, "ca_file")
        given["ssl_certfile"] = _file(security.cert_file, "cert_file")
        given["ssl_keyfile"] = _file(security.key_file, "key_file")
    if security.protocol.startswith("SASL"):
        given["sasl_mechanism"] = security.mechanism
        given["sasl_plain_username"] = security.username
        given["sasl_plain_password"] = security.secret()
    return given


def _file(path: Path | None, setting: str) -> str | None:
    if path is None:
        return None
    try:
        path.open("rb").close()
    except OSError as error:
        raise ConfigError(f"kafka.security.{setting}: cannot read it: {error}") from error
    return str(path)


def refusal(error: BaseException, kafka: Kafka) -> BrokerError | None:
    """What the user must mend; None where the error may pass by itself."""
    servers, user = kafka.bootstrap_servers, kafka.security.username
    tls = error if isinstance(error, ssl.SSLError) else error.__context__
    if isinstance(error, LOGIN_ERRORS):
        return BrokerError(
            f"Kafka at {servers} refused the login of {user!r} by {kafka.security.mechanism}: {text(error)}; "
            "check kafka.security (mechanism, username, password or password_file)"
        )
    if isinstance(tls, ssl.SSLError) and not isinstance(tls, ssl.SSLEOFError):
        return BrokerError(
            f"no TLS connection to Kafka at {servers}: {tls}; "
            "check kafka.security.protocol and ca_file, and that the port is the broker's TLS listener"
        )
    if isinstance(error, errors.AuthorizationError) or "AuthorizationFailed" in str(error):
        return _forbidden(error, kafka)
    for kinds, what, remedy in REMEDIES:
        if isinstance(error, kinds):
            return BrokerError(f"Kafka at {servers} refused {what}: {text(error)}; {remedy}")
    if isinstance(error, (errors.RetriableError, OSError, *PASSING_ERRORS)):
        return None
    return BrokerError(f"Kafka at {servers} refused a request: {text(error)}")


def _forbidden(error: BaseException, kafka: Kafka) -> BrokerError:
    who = kafka.security.username or "this client"
    named = error.args[0] if error.args else ""
    names = ", ".join(sorted(map(str, named))) if isinstance(named, set | frozenset) else str(named)
    if isinstance(error, errors.TopicAuthorizationFailedError):
        what = f"topic {names}" if names else "a topic"
    elif isinstance(error, errors.GroupAuthorizationFailedError):
        what = f"consumer group {names}" if names else "the consumer group"
    else:
        what = f"the cluster ({text(error)})"
    return BrokerError(
        f"Kafka at {kafka.bootstrap_servers} does not let {who} use {what}; "
        "ask for the access (kafka-acls.sh --add --allow-principal ...)"
    )


def text(error: BaseException) -> str:
    """What an error says, without kafka-python's numbers and class names where it says anything."""
    said = next((str(a) for a in error.args if a), "").removeprefix(f"{type(error).__name__}: ")
    said = said or getattr(error, "description", None) or type(error).__name__
    if "disconnected" in said or "EOF" in said:
        # A broker closes a connection that speaks another protocol than its listener, and says no more.
        said += " (if this lasts: do kafka.security.protocol and mechanism match the broker's listener?)"
    return said


class Outage:
    """Waits for a broker that is away, and tells: once when it goes, once when it is back.

    `stopped` ends a wait within half a second.
    """

    def __init__(self, kafka: Kafka, clock: Clock, stopped: Stopped = never, client: str = "client") -> None:
        self._kafka = kafka
        self._client = client  # who tells; each has connections of its own
        self._clock = clock
        self._stopped = stopped
        self._since_s: float | None = None
        self._backoff_s = BACKOFF_MIN_S

    @property
    def away(self) -> bool:
        """Whether the last thing heard of was a failure."""
        return self._since_s is not None

    def began(self, why: object) -> None:
        """Note that Kafka does not answer."""
        if self._since_s is None:
            self._since_s = self._clock.monotonic_s()
            servers = self._kafka.bootstrap_servers
            log.warning("kafka away client=%s servers=%s reason=%s", self._client, servers, why)

    def ended(self) -> None:
        """Note that Kafka answers."""
        if self._since_s is not None:
            away_s = self._clock.monotonic_s() - self._since_s
            servers = self._kafka.bootstrap_servers
            log.warning("kafka back client=%s servers=%s away_s=%.1f", self._client, servers, away_s)
        self._since_s = None
        self._backoff_s = BACKOFF_MIN_S

    def pause(self) -> None:
        """Wait before the next attempt: 0.1 s at first, doubling up to 5 s.

        Raises:
            BrokerUnavailableError: a stop was requested.
        """
        end_s = self._clock.monotonic_s() + self._backoff_s
        self._backoff_s = min(self._backoff_s * 2, BACKOFF_MAX_S)
        while True:
            if self._stopped():
                raise self.unavailable()
            left_s = end_s - self._clock.monotonic_s()
            if left_s <= 0:
                return
            self._clock.sleep_s(min(left_s, SLICE_S))

    def unavailable(self) -> BrokerUnavailableError:
        """What a caller gets who cannot wait any longer."""
        return BrokerUnavailableError(
            f"Kafka at {self._kafka.bootstrap_servers} does not answer; gave up because a stop was requested"
        )

    def persist(self, attempt: Callable[[], T]) -> T:
        """The result of an attempt that is repeated until Kafka answers.

        Raises:
            BrokerError: it answered with a refusal.
            BrokerUnavailableError: a stop was requested meanwhile.
        """
        while True:
            try:
                result = attempt()
            except POSITION_ERRORS:
                raise
            except (errors.KafkaError, OSError) as error:
                self.failed(error)
                self.pause()
            else:
                self.ended()
                return result

    def failed(self, error: BaseException) -> None:
        """Note a failure that may pass; raise `BrokerError` for one that will not."""
        refused = refusal(error, self._kafka)
        if refused is not None:
            raise refused from error
        self.began(text(error))


def topics_of(
    kafka: Kafka, topics: Iterable[str], clock: Clock, stopped: Stopped = never
) -> Mapping[str, int]:
    """Ask any of the bootstrap servers for the number of partitions of each topic; absent ones are left out.

    One attempt, in which each server has 10 s to answer. Creates nothing.

    Raises:
        KafkaError: no server answered; the last reason.
        BrokerError: a server refused.
        BrokerUnavailableError: a stop was requested meanwhile.
    """
    names = list(topics)
    client = KafkaNetClient(**arguments(kafka))
    try:
        last: BaseException = errors.KafkaTimeoutError("no answer")
        for server in client.cluster.bootstrap_brokers():
            asked = client.send(
                server.node_id,
                MetadataRequest(
                    topics=[MetadataRequest.MetadataRequestTopic(name=name) for name in names],
                    allow_auto_topic_creation=False,
                ),
            )
            end_s = clock.monotonic_s() + ANSWER_S
            while not asked.is_done and clock.monotonic_s() < end_s:
                client.poll(timeout_ms=SLICE_S * 1000, future=asked)
                if stopped() and not asked.is_done:
                    raise Outage(kafka, clock).unavailable()
            if asked.is_done and asked.exception is None:
                return _partitions(asked.value, kafka)
            last = asked.exception or last
            refused = refusal(last, kafka)
            if refused is not None:
                raise refused from last
        raise last
    finally:
        client.close()


def _partitions(response: Any, kafka: Kafka) -> dict[str, int]:  # noqa: ANN401 - kafka-python is untyped
    found = {}
    for topic in response.topics:
        error = errors.for_code(topic.error_code)
        if error is errors.NoError:
            found[topic.name] = len(topic.partitions)
        elif issubclass(error, errors.TopicAuthorizationFailedError):
            raise _forbidden(error({topic.name}), kafka)
        elif error is errors.InvalidTopicError:
            raise BrokerError(f"Kafka does not allow {topic.name!r} as the name of a topic")
        elif error is not errors.UnknownTopicOrPartitionError:
            raise error(topic.name)
    return found


def topic_bytes_max(client: Any, topic: str) -> int:  # noqa: ANN401 - a KafkaAdminClient, which is untyped
    """How large a batch of records a topic takes, in bytes; Kafka's default where this client may not ask.

    Raises:
        KafkaError: Kafka did not answer, or the broker that was asked has not heard of a topic that was just created.
    """
    asked = ConfigResource(ConfigResourceType.TOPIC, topic, {"max.message.bytes": None})
    try:
        answer = client.describe_configs([asked], config_filter="all")
    except errors.AuthorizationError:
        return TOPIC_BYTES_MAX
    found = answer["topic"][topic].get("max.message.bytes")
    if found is None:
        raise errors.UnknownTopicOrPartitionError(topic)
    return int(found["value"])


def missing_topic(topic: str, kafka: Kafka) -> BrokerError:
    """What is said of a topic that should be there."""
    return BrokerError(
        f"topic {topic!r} does not exist on Kafka at {kafka.bootstrap_servers}; create it with "
        f"`kafka-topics.sh --bootstrap-server {kafka.bootstrap_servers} --create --topic {topic}`, "
        "or correct its name in the configuration"
    )


class _Net(KafkaNetClient):  # type: ignore[misc]
    """The network client, without a way to lose a request."""

    def await_ready(self, node_id: Any, timeout_ms: float = 30_000) -> bool:  # noqa: ANN401
        """Whether the node can be sent to.

        The producer's thread forgets a transactional request where this raises, as it does of a broker that was just
        killed, and waits for its answer for ever; told False, it looks the coordinator up again and repeats it.
        """
        try:
            ready: bool = super().await_ready(node_id, timeout_ms)
        except errors.KafkaError:
            time.sleep(NOT_READY_S)  # its thread asks again at once
            return False
        return ready


class Clients:
    """Makes the network client of a kafka-python client, and keeps it to ask it and to close it."""

    def __init__(self) -> None:
        self.made: list[Any] = []

    def __call__(self, **configs: Any) -> Any:  # noqa: ANN401 - passed on to kafka-python
        """Called by kafka-python, with the configuration of the client being constructed."""
        client = _Net(**configs)
        # kafka-python 3.0 takes this as an argument of consumer and producer, and forgets to pass it on.
        client.cluster.config["allow_auto_create_topics"] = False
        self.made.append(client)
        return client

    def build(self, kind: Callable[..., Any], given: Mapping[str, Any]) -> Any:  # noqa: ANN401
        """Construct a kafka-python client that leaves nothing behind when that fails."""
        try:
            return kind(kafka_client=self, bootstrap_timeout_ms=ANSWER_S * 1000, **given)
        except BaseException:
            while self.made:
                self.made.pop().close()
            raise


def admin(kafka: Kafka) -> Any:  # noqa: ANN401 - kafka-python is untyped
    """A `KafkaAdminClient`, to be closed. Raises what kafka-python raises."""
    return Clients().build(KafkaAdminClient, arguments(kafka))


def producer(kafka: Kafka, **options: Any) -> Any:  # noqa: ANN401
    """A `KafkaProducer` with these options. Raises what kafka-python raises."""
    return Clients().build(KafkaProducer, {**arguments(kafka), **options})
