"""What settings become for kafka-python, what its errors become for the user, and how an outage is waited for."""

import logging
import re
import ssl
from pathlib import Path
from typing import Any

import pytest
from kafka import errors

from streamdet.broker.client import (
    BACKOFF_MAX_S,
    TOPIC_BYTES_MAX,
    Outage,
    arguments,
    refusal,
    topic_bytes_max,
)
from streamdet.config import Kafka
from streamdet.errors import BrokerUnavailableError, ConfigError

KAFKA = Kafka(bootstrap_servers="one:9092")


class HandClock:
    """A clock that moves when somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.naps: list[float] = []

    def now_ms(self) -> int:
        return int(self.now_s * 1000)

    def monotonic_s(self) -> float:
        return self.now_s

    def sleep_s(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.now_s += seconds


def secured(**security: object) -> Kafka:
    return Kafka.model_validate({"bootstrap_servers": "one:9092, two:9093", "security": security})


def test_a_login_over_tls_becomes_kafka_pythons_arguments(tmp_path: Path) -> None:
    password, authority = tmp_path / "password", tmp_path / "ca.pem"
    password.write_text("secret\n")
    authority.write_text("-----BEGIN CERTIFICATE-----")
    kafka = secured(
        protocol="SASL_SSL",
        mechanism="SCRAM-SHA-512",
        username="me",
        password_file=password,
        ca_file=authority,
    )
    given = arguments(kafka)
    assert given["bootstrap_servers"] == ["one:9092", "two:9093"]
    assert given["security_protocol"] == "SASL_SSL"
    assert given["sasl_mechanism"] == "SCRAM-SHA-512"
    assert (given["sasl_plain_username"], given["sasl_plain_password"]) == ("me", "secret")
    assert (given["ssl_cafile"], given["ssl_certfile"]) == (str(authority), None)


def test_without_security_nothing_is_said_of_it() -> None:
    assert not [name for name in arguments(KAFKA) if name.startswith(("ssl", "sasl"))]


def test_a_certificate_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"kafka\.security\.ca_file: cannot read it"):
        arguments(secured(protocol="SSL", ca_file=tmp_path / "none.pem"))


@pytest.mark.parametrize("servers", ["localhost", "localhost:port", "one:9092,,two:9092", "http://one:9092/"])
def test_what_is_no_server_is_refused(servers: str) -> None:
    with pytest.raises(ConfigError, match=r"expected host:port"):
        arguments(Kafka(bootstrap_servers=servers))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            errors.SaslAuthenticationFailedError("bad password"),
            "refused the login of None.*bad password.*check",
        ),
        (errors.UnsupportedSaslMechanismError(), "refused the login.*does not support.*mechanism"),
        (errors.TopicAuthorizationFailedError({"b", "a"}), "use topic a, b; ask for"),
        (errors.GroupAuthorizationFailedError("plant"), "use consumer group plant"),
        (errors.ClusterAuthorizationFailedError(), "use the cluster"),
        (errors.KafkaError("InitProducerId: [Error 31] ClusterAuthorizationFailedError"), "use the cluster"),
        (errors.MessageSizeTooLargeError(), "too large.*raise the topic's max.message.bytes"),
        (errors.InvalidTopicError("a b"), "refused a request: a b"),
        (ssl.SSLCertVerificationError("self-signed certificate"), "no TLS connection.*self-signed.*ca_file"),
    ],
)
def test_what_waiting_does_not_mend_is_said_with_its_remedy(error: Exception, said: str) -> None:
    refused = refusal(error, KAFKA)
    assert refused is not None
    assert "one:9092" in str(refused)
    assert re.search(said, str(refused))


@pytest.mark.parametrize(
    "error",
    [
        errors.KafkaConnectionError("111 ECONNREFUSED"),
        errors.KafkaTimeoutError(),
        errors.NodeNotReadyError(),
        errors.CoordinatorLoadInProgressError(),
        errors.NotEnoughReplicasError(),
        errors.BrokerNotAvailableError(),
        ConnectionResetError(),
        ssl.SSLEOFError("EOF"),
    ],
)
def test_what_may_pass_is_no_refusal(error: Exception) -> None:
    assert refusal(error, KAFKA) is None


def test_a_handshake_that_fails_for_its_certificate_is_a_refusal() -> None:
    # As kafka-python raises it: the cause is only its context.
    error = errors.KafkaConnectionError("Handshake failed: expired")
    error.__context__ = ssl.SSLCertVerificationError("expired")
    assert "no TLS connection" in str(refusal(error, KAFKA))


def test_an_outage_is_told_of_once_and_its_end_with_its_length(caplog: pytest.LogCaptureFixture) -> None:
    clock = HandClock()
    failures = [errors.KafkaConnectionError("refused")] * 5

    def attempt() -> str:
        if failures:
            raise failures.pop()
        return "answer"

    with caplog.at_level(logging.INFO, "streamdet"):
        assert Outage(KAFKA, clock, client="sink").persist(attempt) == "answer"
    assert [r.getMessage() for r in caplog.records] == [
        "kafka away client=sink servers=one:9092 reason=refused",
        "kafka back client=sink servers=one:9092 away_s=3.1",
    ]


def test_pauses_double_up_to_a_bound_and_begin_anew_after_an_answer() -> None:
    clock = HandClock()
    outage = Outage(KAFKA, clock)

    def pause_s() -> float:
        before_s = clock.now_s
        outage.pause()
        return round(clock.now_s - before_s, 3)

    assert [pause_s() for _ in range(8)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, BACKOFF_MAX_S, BACKOFF_MAX_S]
    outage.ended()
    assert pause_s() == 0.1


def test_a_stop_ends_a_pause_within_half_a_second() -> None:
    clock = HandClock()
    outage = Outage(KAFKA, clock, stopped=lambda: clock.now_s >= 10)

    def attempt() -> None:
        raise errors.KafkaConnectionError("refused")

    with pytest.raises(BrokerUnavailableError, match="a stop was requested"):
        outage.persist(attempt)
    assert 10 <= clock.now_s <= 10.5


def test_the_callers_own_errors_are_not_waited_for() -> None:
    def attempt() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError):
        Outage(KAFKA, HandClock()).persist(attempt)


class Configured:
    """An admin client that knows topics by what they take; one it has not heard of has no settings."""

    def __init__(self, topics: dict[str, str] | None) -> None:
        self._topics = topics

    def describe_configs(self, asked: list[Any], **_: object) -> dict[str, Any]:
        if self._topics is None:
            raise errors.ClusterAuthorizationFailedError
        (resource,) = asked
        known = self._topics.get(resource.name)
        settings = {} if known is None else {"max.message.bytes": {"value": known}}
        return {"topic": {resource.name: settings}}


def test_what_a_topic_takes_is_asked_for_and_where_that_is_not_allowed_kafkas_default_holds() -> None:
    assert topic_bytes_max(Configured({"alerts": "1000"}), "alerts") == 1_000
    assert topic_bytes_max(Configured(None), "alerts") == TOPIC_BYTES_MAX


def test_a_topic_that_the_broker_has_not_heard_of_yet_is_asked_for_again() -> None:
    with pytest.raises(errors.UnknownTopicOrPartitionError) as raised:
        topic_bytes_max(Configured({}), "alerts")
    assert refusal(raised.value, KAFKA) is None  # an outage, which is waited for
