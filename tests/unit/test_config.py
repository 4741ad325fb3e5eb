"""A configuration is checked wholly, its faults are named with what to do, and its secrets stay in it."""

import logging
import re
import traceback
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from streamdet.app import configured_schema, foreign_schema, inferred_schema
from streamdet.config import EXCEEDANCES_MIN, Limit, Settings, load, parse
from streamdet.errors import ConfigError
from streamdet.events import Schema

SECRET = "hunter2-hunter2"
SASL = {"protocol": "SASL_SSL", "mechanism": "PLAIN", "username": "me"}


def refusal(tree: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(tree)
    return str(caught.value)


def with_security(**security: Any) -> dict[str, Any]:
    return {"kafka": {"security": SASL | security}}


# --- Faults ---------------------------------------------------------------------------------------


def test_two_lines_are_enough() -> None:
    settings = parse({"kafka": {"bootstrap_servers": "broker:9092"}, "input": {"topics": ["sensors"]}})
    assert settings.alerts_topic == "sensors.alerts"
    assert settings.dead_letters_topic == "sensors.dead-letters"


def test_every_unusable_setting_is_listed_with_its_path_in_one_error() -> None:
    text = refusal(
        {
            "input": {"topics": ["a", "a"], "batch": {"max_events": 0}, "features": {"numeric": ["x", "x"]}},
            "limit": {"alert_rate": 2},
            "learning": {"every": 300, "lag": 300},
            "model": {"device": "tpu", "sed": 1},
            "delivery": "exactly-twice",
            "checkpoint": {"keep": "many"},
            "limits": {},
        }
    )
    for path in (
        "input.topics:",
        "input.batch.max_events:",
        "input.features:",
        "limit.alert_rate:",
        "learning:",
        "model.device:",
        "model.sed:",
        "delivery:",
        "checkpoint.keep:",
        "limits:",
    ):
        assert f"\n  {path} " in text
    assert len(text.splitlines()) == 11


def test_a_value_that_cannot_be_used_is_shown() -> None:
    assert "got 'tpu'" in refusal({"model": {"device": "tpu"}})
    assert "got 0" in refusal({"input": {"batch": {"max_events": 0}}})


@pytest.mark.parametrize(
    ("tree", "known"),
    [
        ({"limits": {}}, ["limit", "input", "kafka"]),
        ({"limit": {"rate": 0.1}}, ["alert_rate", "window"]),
        ({"input": {"batch": {"max": 1}}}, ["max_events", "max_bytes", "max_wait_ms"]),
        ({"input": {"features": {"numeric": ["a"], "names": []}}}, ["numeric", "categorical"]),
        ({"learning": {"gate": {"loss": 1}}}, ["loss_ratio_max"]),
        ({"kafka": {"security": {"user": "me"}}}, ["username", "password_file"]),
        ({"noise": {"cooldown_s": 60}}, ["k", "n", "cool_down_s", "worse", "features"]),
        ({"noise": {"features": {"heat": {"dir": "up"}}}}, ["direction", "min_deviation", "range"]),
    ],
)
def test_an_unknown_key_is_refused_with_the_known_ones(tree: dict[str, Any], known: list[str]) -> None:
    text = refusal(tree)
    assert "unknown key; known here:" in text
    assert all(key in text for key in known)


@pytest.mark.parametrize(
    ("noise", "told"),
    [
        ({"k": 3}, "noise: k (3) of n (1) can never be: set n to 3 or more, or a smaller k"),
        ({"k": 65, "n": 65}, "noise.n: Input should be less than or equal to 64"),
        ({"worse": 0.9}, "noise.worse: Input should be greater than or equal to 1"),
        ({"cool_down_s": -1}, "noise.cool_down_s: Input should be greater than or equal to 0"),
        ({"features": {"heat": {"range": [120, 0]}}}, "noise.features.heat: range is from the smallest"),
        (
            {"features": {"heat": {"range": [float("nan"), 0]}}},
            "noise.features.heat.range.0: Input should be a finite number",
        ),
        ({"features": {"heat": {"range": [120]}}}, "noise.features.heat.range"),
        ({"features": {"heat": {"direction": "sideways"}}}, "noise.features.heat.direction"),
        ({"features": {"heat": {"min_deviation": float("inf")}}}, "noise.features.heat.min_deviation"),
    ],
)
def test_noise_rules_that_cannot_be_are_refused(noise: dict[str, Any], told: str) -> None:
    assert told in refusal({"noise": noise})


IDLE: list[tuple[dict[str, Any], str]] = [
    (
        {"limit": {"rule": "spot", "contaminated": True}},
        "limit: contaminated does nothing under rule spot: set rule to controlled, or leave contaminated out",
    ),
    (
        {"noise": {"n": 5}},
        "noise: n (5) does nothing with a k of 1, which alerts at once: set k to 2 or more",
    ),
    (
        {"noise": {"k": 2, "n": 4, "worse": 2}},
        "noise: worse does nothing without a cool-down: set cool_down_s",
    ),
    (
        {"noise": {"features": {"heat": {}}}},
        "noise: features: heat: holds nothing back and forbids nothing: set",
    ),
    (
        {"noise": {"features": {"heat": {"range": [None, None]}}}},
        "noise: features: heat: holds nothing back",
    ),
    (
        {"kafka": {"security": {"username": "me", "password": SECRET}}},
        "kafka.security: protocol PLAINTEXT does not log in, and would not use username, password: set protocol",
    ),
    ({"kafka": {"security": {"protocol": "SSL", "password_file": "x"}}}, "would not use password_file: set"),
    (
        {"kafka": {"security": {"ca_file": "x"}}},
        "kafka.security: protocol PLAINTEXT does not encrypt, and would not use ca_file: set protocol to SSL",
    ),
    (
        with_security(protocol="SASL_PLAINTEXT", password=SECRET, cert_file="x"),
        "would not use cert_file: set",
    ),
    ({"kafka": {"security": {"protocol": "SSL", "key_file": "x"}}}, "key_file without the certificate"),
    (
        {"input": {"max_entities": 5}},
        "input: max_entities does nothing without entity: set entity to the field",
    ),
    (
        {"delivery": "at-least-once", "commit": {"every_ms": 5, "transaction_timeout_ms": 1_000}},
        "commit: every_ms, transaction_timeout_ms: does nothing with delivery at-least-once",
    ),
]


@pytest.mark.parametrize(("tree", "told"), IDLE)
def test_what_would_do_nothing_is_refused_with_what_to_do(tree: dict[str, Any], told: str) -> None:
    text = refusal(tree)
    assert told in text
    assert re.search(r"\b(set|leave|take)\b", text)


@pytest.mark.parametrize(
    "tree",
    [
        {"limit": {"rule": "controlled", "contaminated": True}},
        {"limit": {"rule": "spot", "contaminated": False}},
        {"noise": {"k": 2, "n": 5}},
        {"noise": {"cool_down_s": 60, "worse": 2}},
        {"noise": {"k": 1, "n": 1, "worse": 1.2, "features": {}}},
        {"noise": {"features": {"heat": {"range": [None, 120]}}}},
        {"kafka": {"security": {"protocol": "PLAINTEXT", "username": None}}},
        {"kafka": {"security": {"protocol": "SSL", "ca_file": "x", "cert_file": "x"}}},
        {"input": {"entity": "device", "max_entities": 5}},
        {"input": {"max_entities": 10_000}},
        {"delivery": "at-least-once", "commit": {"every_ms": 100, "offsets_every_ms": 0, "every_events": 9}},
    ],
)
def test_what_does_something_or_is_the_default_spelt_out_is_taken(tree: dict[str, Any]) -> None:
    parse(tree)


def test_a_stand_in_that_no_feature_can_make_use_of_is_refused() -> None:
    missing = parse({"input": {"missing": {"default": "reject"}}}).input.missing
    missing.check(Schema(None, None, ("heat",), ("site",)))
    with pytest.raises(ConfigError, match=r"input\.missing\.default: reject does nothing.*leave it out"):
        missing.check(Schema(None, None, (), ("site",)))


def test_a_rate_that_the_window_cannot_resolve_is_refused_with_what_to_set() -> None:
    text = refusal({"limit": {"rule": "rolling", "alert_rate": 0.0001, "window": 10_000}})
    assert "set window to 100000 or more, or alert_rate to 0.001 or more" in text
    assert "limit:" in text


@given(st.floats(1e-6, 0.1), st.integers(100, 10_000_000))
def test_following_the_advice_about_rate_and_window_is_always_enough(rate: float, window: int) -> None:
    try:
        settings = Limit(rule="rolling", alert_rate=rate, window=window)
    except ValueError as error:
        need = int(str(error).split("set window to ")[1].split(" ")[0])
        assert need > window
        settings = Limit(rule="rolling", alert_rate=rate, window=max(need, 100))
    assert settings.window * settings.alert_rate >= EXCEEDANCES_MIN * (1 - 1e-6)


def test_a_conformal_limit_refuses_what_its_window_cannot_resolve_and_says_who_would_not() -> None:
    text = refusal({"limit": {"rule": "conformal"}})
    assert "set window to 10000 or more" in text
    assert "rule to controlled, spot or dspot, which extrapolate as conformal does not" in text


@pytest.mark.parametrize("rule", ["controlled", "spot", "dspot"])
def test_a_limit_that_extrapolates_takes_any_rate_whatever_its_window(rule: str) -> None:
    assert not Limit.model_validate({"alert_rate": 1e-6, "window": 100, "rule": rule}).resolved


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1.0, 0.0, "a lot"])
@pytest.mark.parametrize("name", ["alert_rate"])
def test_numbers_that_are_none_are_refused(name: str, number: object) -> None:
    assert f"limit.{name}" in refusal({"limit": {name: number}})


def test_sasl_without_a_login_says_all_that_is_missing() -> None:
    text = refusal({"kafka": {"security": {"protocol": "SASL_SSL"}}})
    assert "mechanism, username, password or password_file" in text
    assert "not both" in refusal(with_security(password="a", password_file="b"))


@pytest.mark.parametrize(
    "tree", [{1: 2}, {"input": []}, {"input": None}, {"kafka": "localhost:9092"}, {"serve": {"http": 8080}}]
)
def test_sections_of_another_shape_are_refused_in_a_sentence(tree: dict[str, Any]) -> None:
    assert "cannot be used" in refusal(tree)


@given(
    st.dictionaries(
        st.sampled_from([*Settings.model_fields, "other"]),
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
            lambda inner: st.one_of(
                st.lists(inner, max_size=2),
                st.dictionaries(
                    st.sampled_from(["topics", "window", "security", "batch", "gate", "features", "x", ""]),
                    inner,
                ),
            ),
            max_leaves=5,
        ),
    )
)
def test_any_tree_is_either_settings_or_a_list_of_faults(tree: dict[str, Any]) -> None:
    try:
        settings = parse(tree)
    except ConfigError as error:
        assert len(str(error).splitlines()) >= 2 or "not set in the environment" in str(error)  # noqa: PT017
    else:
        assert isinstance(settings, Settings)


def test_topics_are_named_unless_they_follow_from_the_first_input_topic() -> None:
    settings = parse(
        {"input": {"topics": ["a", "b"]}, "alerts": {"topic": "x"}, "dead_letters": {"topic": "y"}}
    )
    assert (settings.alerts_topic, settings.dead_letters_topic) == ("x", "y")


@pytest.mark.parametrize("setting", ["alerts", "dead_letters"])
def test_a_worker_that_would_judge_its_own_output_is_refused(setting: str) -> None:
    assert f"{setting}.topic 'b' is also an input" in refusal(
        {"input": {"topics": ["a", "b"]}, setting: {"topic": "b"}}
    )


def test_alerts_and_dead_letters_in_one_topic_are_refused() -> None:
    tree = {"input": {"topics": ["a"]}, "alerts": {"topic": "x"}, "dead_letters": {"topic": "x"}}
    assert "name two topics" in refusal(tree)


def test_features_that_name_nothing_or_one_field_twice_are_refused() -> None:
    assert "name at least one" in refusal({"input": {"features": {}}})
    assert "more than once: x" in refusal({"input": {"features": {"numeric": ["x"], "categorical": ["x"]}}})


# --- Files ----------------------------------------------------------------------------------------


def test_a_file_is_read_and_named_in_its_faults(tmp_path: Path) -> None:
    path = tmp_path / "streamdet.yaml"
    path.write_text("input: {topics: [sensors]}\nlimit: {alert_rate: 0.01}\n")
    assert load(path).limit.alert_rate == 0.01
    path.write_text("input: {topcs: [sensors]}\n")
    with pytest.raises(ConfigError, match=r"streamdet\.yaml cannot be used"):
        load(path)


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"input: [", "not valid YAML"),
        (b"", "must hold a mapping"),
        (b"- a\n", "must hold a mapping"),
        (b"\xff\xfe", "cannot read"),
        (b"a: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused_in_a_sentence(
    tmp_path: Path, content: bytes, hint: str
) -> None:
    path = tmp_path / "streamdet.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=hint) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        load(tmp_path / "missing.yaml")


# --- The environment ------------------------------------------------------------------------------


def test_variables_are_put_in_anywhere_and_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMDET_TEST_HOST", "broker")
    monkeypatch.setenv("STREAMDET_TEST_PASSWORD", "${STREAMDET_TEST_HOST}")
    settings = parse(
        {
            "kafka": {
                "bootstrap_servers": "${STREAMDET_TEST_HOST}:1,${STREAMDET_TEST_HOST}:2",
                "security": SASL | {"password": "${STREAMDET_TEST_PASSWORD}"},
            },
            "input": {"topics": ["a", "${STREAMDET_TEST_HOST}"]},
        }
    )
    assert settings.kafka.bootstrap_servers == "broker:1,broker:2"
    assert settings.kafka.security.secret() == "${STREAMDET_TEST_HOST}"
    assert settings.input.topics == ("a", "broker")


def test_a_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STREAMDET_TEST_HOST", raising=False)
    with pytest.raises(ConfigError, match=r"\$\{STREAMDET_TEST_HOST\}.*not set"):
        parse({"kafka": {"bootstrap_servers": "${STREAMDET_TEST_HOST}"}})


def test_a_number_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMDET_TEST_WINDOW", "20000")
    assert parse({"limit": {"window": "${STREAMDET_TEST_WINDOW}"}}).limit.window == 20_000


# --- Secrets --------------------------------------------------------------------------------------


def test_the_password_comes_from_the_file_without_its_line_end(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text(SECRET + "\n")
    assert parse(with_security(password_file=str(path))).kafka.security.secret() == SECRET
    assert parse(with_security(password=SECRET)).kafka.security.secret() == SECRET
    assert Settings().kafka.security.secret() is None


def test_a_password_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name in ("missing", "binary"):
        security = parse(with_security(password_file=str(tmp_path / name))).kafka.security
        with pytest.raises(ConfigError, match=r"kafka\.security\.password_file"):
            security.secret()


def test_a_secret_is_in_no_text_made_of_the_settings(caplog: pytest.LogCaptureFixture) -> None:
    settings = parse(with_security(password=SECRET))
    with caplog.at_level(logging.INFO):
        logging.getLogger("test").info("settings %s %r", settings, settings.kafka.security)
    texts = [str(settings), repr(settings), f"{settings.kafka}", settings.model_dump_json(), caplog.text]
    texts.append(str(settings.model_dump()))
    assert not any(SECRET in text for text in texts)


@pytest.mark.parametrize(
    "tree",
    [
        with_security(password=123456789),
        with_security(password=[SECRET]),
        with_security(password={"value": SECRET}),
        with_security(password=SECRET, mechanism="OTHER"),
        with_security(password=SECRET, usrname="me"),
        with_security(password=SECRET, password_file="x"),
        with_security(pasword=SECRET),
        {"kafka": {"security": {"protocol": "SASL_SSL", "password": SECRET}}},
        {"kafka": {"password": SECRET}},
        {"kafka": {"security": SECRET}},
        {"kafka": {"security": [SECRET]}},
    ],
)
def test_a_secret_is_in_no_error_and_in_no_trace_of_one(tree: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(tree)
    shown = str(caught.value) + "".join(traceback.format_exception(caught.value))
    assert SECRET not in shown
    assert "123456789" not in shown


# --- Documentation --------------------------------------------------------------------------------


def sections(model: type[BaseModel]) -> list[type[BaseModel]]:
    found = [model]
    for field in model.model_fields.values():
        for candidate in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                found += sections(candidate)
    return found


def test_every_setting_says_in_a_sentence_what_it_is() -> None:
    for section in sections(Settings):
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name}"
            assert field.description.endswith("."), f"{section.__name__}.{name}"
            assert field.description[0].isupper() or field.description.startswith(("host", "auto")), name


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().limit.window = 5  # type: ignore[misc]


# --- Transactions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ({"transactions": {"amount": "amount"}}, "transactions needs entity"),
        ({"entity": "card", "transactions": {"counterparts": ["shop"]}}, "set transactions.amount"),
        ({"entity": "card", "transactions": {"amount": "card"}}, "card: a field is"),
        ({"entity": "card", "timestamp": "ts", "transactions": {"amount": "ts"}}, "ts: a field is"),
        (
            {"entity": "card", "transactions": {"amount": "amount", "counterparts": ["card"]}},
            "card: a field is",
        ),
        (
            {"entity": "card", "transactions": {"amount": "amount", "counterparts": ["amount"]}},
            "amount: a field is",
        ),
        (
            {"entity": "card", "transactions": {"amount": "amount", "counterparts": ["shop", "shop"]}},
            "named more than once: shop",
        ),
        (
            {
                "entity": "card",
                "features": {"numeric": ["amount"], "categorical": ["shop"]},
                "transactions": {"amount": "amount", "counterparts": ["shop"]},
            },
            "shop: a field is",
        ),
        (
            {
                "entity": "card",
                "features": {"categorical": ["amount"]},
                "transactions": {"amount": "amount"},
            },
            "move it to features.numeric",
        ),
        ({"entity": "card", "transactions": {"amount": "amount", "terminals": ["t"]}}, "counterparts"),
    ],
)
def test_transactions_that_make_no_sense_are_refused_with_what_to_do(
    given: dict[str, Any], hint: str
) -> None:
    assert hint in refusal({"input": given})


def test_the_preset_of_transactions_and_their_fields_belong_together() -> None:
    paid = {"entity": "card", "transactions": {"amount": "amount"}}
    assert "set input.transactions.amount" in refusal({"model": {"preset": "transactions"}})
    assert "set model.preset to auto" in refusal({"model": {"preset": "records"}, "input": paid})
    for preset in ("auto", "transactions"):
        assert parse({"model": {"preset": preset}, "input": paid}).input.transactions.amount == "amount"


def test_the_amount_is_a_feature_whether_it_is_named_as_one_or_not() -> None:
    paid = {"entity": "card", "transactions": {"amount": "amount", "counterparts": ["shop"]}}
    for numeric, expected in (
        (["tip"], ("tip", "amount")),
        (["amount", "tip"], ("amount", "tip")),
    ):
        settings = parse({"input": {**paid, "features": {"numeric": numeric}}})
        schema = configured_schema(settings.input)
        assert schema is not None
        assert (schema.numeric, schema.amount, schema.counterparts) == (expected, "amount", ("shop",))
        assert Schema.from_state(schema.as_state()) == schema


def test_keys_are_no_features_where_these_are_inferred() -> None:
    paid = {"entity": "card", "transactions": {"amount": "amount", "counterparts": ["shop"]}}
    settings = parse({"input": paid})
    sample = [{"card": "c", "shop": i % 3, "amount": 1.5, "tip": 0.1, "label": 0} for i in range(9)]
    assert inferred_schema(sample, "label", settings.input).columns == ("amount", "tip")


@pytest.mark.parametrize(
    ("paid", "told"),
    [
        (
            {"amount": "amout"},
            "no record has the field 'amout'; there are amount, card, note, shop: mend the name",
        ),
        ({"amount": "amount", "counterparts": ["shops"]}, "no record has the field 'shops'"),
        ({"amount": "note"}, "note holds text in the first records: name another field"),
    ],
)
def test_what_transactions_are_made_of_must_be_in_the_first_records(paid: dict[str, Any], told: str) -> None:
    settings = parse({"input": {"entity": "card", "transactions": paid}})
    sample = [{"card": "c", "shop": i % 3, "amount": 1.5, "note": "some text"} for i in range(9)]
    with pytest.raises(ConfigError, match=re.escape(told)):
        inferred_schema(sample, "label", settings.input)


def test_a_checkpoint_of_other_transactions_is_another_streams() -> None:
    paid = {"entity": "card", "transactions": {"amount": "amount", "counterparts": ["shop"]}}
    settings = parse({"input": {**paid, "features": {"numeric": ["amount"]}}})
    schema = configured_schema(settings.input)
    assert schema is not None
    assert foreign_schema(settings, schema.as_state()) is None
    without = Schema(None, "card", ("amount",), ())
    assert "amount" in (foreign_schema(settings, without.as_state()) or "")
    plain = parse({"input": {"entity": "card", "features": {"numeric": ["amount"]}}})
    assert foreign_schema(plain, without.as_state()) is None
    assert "amount" in (foreign_schema(plain, schema.as_state()) or "")
