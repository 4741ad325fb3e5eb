"""The configuration that `streamdet init` writes: loads, says what was seen, and leaves the rest at its default."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from streamdet import config
from streamdet.errors import ConfigError, RecordingError
from streamdet.initial import configuration_for_recording
from streamdet.sampled import columns_of, entity_candidate
from streamdet.sink.recording import RecordingWriter

ROWS = [
    {
        "event_time": f"2026-01-01T00:{i // 60:02d}:{i % 60:02d}Z",
        "deviceId": f"m-{i % 7}",
        "temp": 20 + i % 5,
        "pressure": None if i % 4 == 0 else 1.5,
        "site": "north" if i % 3 else "south",
        "serial": f"x{i:05d}",
        "label": i % 2,
        "never": None,
        "detail": {"a": 1},
    }
    for i in range(200)
]
PAYMENTS = [
    {
        "ts": f"2026-01-01T00:{i // 60:02d}:{i % 60:02d}Z",
        "card_id": 4_000 + i % 9,
        "merchantId": f"m{i % 11}",
        "terminal_id": i % 13,
        "amount": 1.5 + i % 40,
        "fee": 0.1 * (i % 7),
    }
    for i in range(200)
]


def written(tmp_path: Path, rows: Sequence[Mapping[str, object]], name: str = "sensors.jsonl") -> str:
    path = tmp_path / name
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return configuration_for_recording(path)


def loaded(tmp_path: Path, text: str) -> config.Settings:
    path = tmp_path / "streamdet.yaml"
    path.write_text(text)
    return config.load(path)


def with_all_taken_away(text: str) -> str:
    """The file without the marks of what is left at its default: those with an even number of blanks behind."""
    lines = []
    for line in text.splitlines():
        mark = re.match(r"( *)#((?:  )*)(?! )(.*)", line)
        lines.append(f"{mark[1]}{mark[2]}{mark[3]}" if mark else line)
    return "\n".join(lines)


def test_what_was_found_is_set(tmp_path: Path) -> None:
    settings = loaded(tmp_path, written(tmp_path, ROWS))
    assert settings.input.topics == ("sensors",)
    assert settings.input.timestamp == "event_time"
    assert settings.input.entity is None
    assert settings.input.features == config.Features(numeric=("temp", "pressure"), categorical=("site",))


def test_everything_else_is_at_its_default(tmp_path: Path) -> None:
    settings = loaded(tmp_path, written(tmp_path, ROWS))
    found = {"topics", "timestamp", "features"}
    defaults = config.Settings()
    assert settings.model_dump(exclude={"input": found}) == defaults.model_dump(exclude={"input": found})


def test_taking_the_marks_away_changes_nothing_but_the_suggested_entity(tmp_path: Path) -> None:
    text = written(tmp_path, ROWS)
    settings, bare = loaded(tmp_path, text), loaded(tmp_path, with_all_taken_away(text))
    assert bare.input.entity == "deviceId"
    kept = bare.model_copy(update={"input": bare.input.model_copy(update={"entity": None})})
    assert kept.model_dump() == settings.model_dump()


def marked_sections(text: str) -> list[tuple[str, str]]:
    """For each line with a mark that begins a section or a setting: its name, and the file without the marks of it
    and of what is nested in it."""
    lines = text.splitlines()
    found = []
    for i, line in enumerate(lines):
        if (mark := re.match(r"( *)#(?! )(\w+):", line)) is None:
            continue
        end = i + 1
        while end < len(lines) and re.match(rf"{mark[1]}#  ", lines[end]):
            end += 1
        bare = [lines[k].replace("#", "", 1) for k in range(i, end)]
        found.append((mark[2], "\n".join([*lines[:i], *bare, *lines[end:]])))
    return found


@pytest.mark.parametrize("rows", [ROWS, PAYMENTS])
def test_each_mark_taken_away_alone_changes_nothing_but_what_was_suggested(
    tmp_path: Path, rows: list[dict[str, object]]
) -> None:
    text = written(tmp_path, rows)
    settings, sections = loaded(tmp_path, text), marked_sections(text)
    assert {name for name, _ in sections} >= {
        *(set(config.Settings.model_fields) - {"input"}),
        *(set(config.Input.model_fields) - {"topics", "timestamp", "features"}),
    }
    for name, bare in sections:
        if name == "transactions" and rows is PAYMENTS:
            with pytest.raises(ConfigError, match="input: transactions needs entity: set it to"):
                loaded(tmp_path, bare)
        elif name == "entity":
            assert loaded(tmp_path, bare).input.entity in rows[0]
        else:
            assert loaded(tmp_path, bare) == settings, name


def test_every_setting_is_there_with_its_sentence(tmp_path: Path) -> None:
    text = " ".join(line.strip(" #") for line in written(tmp_path, ROWS).splitlines())

    def check(section: type[config.Section]) -> None:
        for name, field in section.model_fields.items():
            assert f"{name}:" in text
            assert field.description is not None
            assert field.description.rstrip(".") in text
            for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
                if isinstance(kind, type) and issubclass(kind, config.Section):
                    check(kind)

    check(config.Settings)


def test_the_comments_say_what_was_seen(tmp_path: Path) -> None:
    text = written(tmp_path, ROWS)
    flowing = " ".join(line.strip(" #") for line in text.splitlines())
    assert "from 200 records" in text
    assert "- pressure  # always 1.5; 25% missing" in text
    assert "- temp  # 20 to 24" in text
    assert "- site  # 2 values such as south, north" in text
    assert "deviceId looks like one (7 values such as m-0, m-1, m-2)" in flowing
    assert "serial (a different one in every event)" in flowing
    assert "label (a label)" in flowing
    assert "never (never has a value)" in flowing
    assert "detail (objects or lists)" in flowing


def test_records_that_are_no_events_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "mixed.jsonl"
    path.write_text('{"x": 1}\nnot json\n[1]\n{"x": 2}\n')
    assert "from 4 records, of which 2 are events" in configuration_for_recording(path)


def test_names_that_yaml_would_misread_come_back_as_they_were(tmp_path: Path) -> None:
    names = ["yes", "1", "a: b", "#x", "null", "ä 温度", "- y", "{z}", "line\nbreak", "'quoted'", '"', "%"]
    text = written(tmp_path, [{name: i + k for k, name in enumerate(names)} for i in range(20)])
    features = loaded(tmp_path, text).input.features
    assert features is not None
    assert features.numeric == tuple(names)


def test_values_of_the_data_cannot_end_a_comment(tmp_path: Path) -> None:
    text = written(tmp_path, [{"a": f"x\n{i % 3}: y\u2028z\x85" + "long" * 50, "n": i} for i in range(60)])
    assert loaded(tmp_path, text).input.features == config.Features(numeric=("n",), categorical=("a",))


def test_a_csv_and_its_compressed_name_give_the_topic(tmp_path: Path) -> None:
    path = tmp_path / "plant 7.csv"
    path.write_text("ts,x\n" + "".join(f"{1_700_000_000 + i},{i}\n" for i in range(50)))
    settings = loaded(tmp_path, configuration_for_recording(path))
    assert settings.input.topics == ("plant-7",)
    assert settings.input.timestamp == "ts"


def test_a_lossless_recording_names_its_own_topic(tmp_path: Path) -> None:
    with RecordingWriter(tmp_path / "r") as writer:
        for i in range(50):
            writer.write("machines", 0, i, 1_000 * i, None, b'{"x": %d}' % i)
    assert loaded(tmp_path, configuration_for_recording(tmp_path / "r")).input.topics == ("machines",)


def test_nothing_to_judge_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no column to judge among detail"):
        written(tmp_path, [{"detail": {"a": 1}}])
    with pytest.raises(RecordingError, match="none of the first 2 records"):
        written(tmp_path, ["a", "b"])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("name", "values", "is_one"),
    [
        ("device", ["a", "b"] * 20, True),
        ("cardNumber", [4000 + i % 9 for i in range(40)], True),
        ("customer_id", [i % 9 for i in range(40)], True),
        ("machine", [i % 9 for i in range(40)], True),
        ("sensor_1", [i % 9 for i in range(40)], False),  # a measurement
        ("host_load", [i % 9 for i in range(40)], False),
        ("device_id", [0.5 * (i % 9) for i in range(40)], False),
        ("transaction_id", [f"t{i}" for i in range(40)], False),  # every event has its own
        ("device", ["always"] * 40, False),
        ("device", ["a", "b", None, None] * 10, False),  # what lacks it would be rejected
        ("temperature", ["a", "b"] * 20, False),
    ],
)
def test_an_entity_is_called_so_and_comes_again(name: str, values: list[object], is_one: bool) -> None:
    columns = columns_of([{name: value} for value in values])
    assert entity_candidate(columns, len(values)) == (name if is_one else None)


def test_the_most_telling_name_is_preferred() -> None:
    columns = columns_of([{"id": f"{i % 5}", "account": f"{i % 3}", "card": f"{i % 4}"} for i in range(40)])
    assert entity_candidate(columns, 40) == "card"


# --- Transactions ---------------------------------------------------------------------------------------------------


def test_what_looks_like_transactions_is_proposed_with_the_reason(tmp_path: Path) -> None:
    text = written(tmp_path, PAYMENTS)
    settings, bare = loaded(tmp_path, text), loaded(tmp_path, with_all_taken_away(text))
    assert settings.input.transactions == config.Transactions()
    assert settings.input.features == config.Features(numeric=("amount", "fee"))
    assert bare.input.entity == "card_id"
    expected = config.Transactions(amount="amount", counterparts=("merchantId", "terminal_id"))
    assert bare.input.transactions == expected
    said = " ".join(line.strip(" #") for line in text.splitlines())
    assert (
        "These look like transactions: amount (1.5 to 40.5), merchantId (11 values such as m0, m1, m2)"
        in said
    )


@pytest.mark.parametrize(
    "change",
    [
        {"amount": None},
        {"amount": -1.0},
        {"card_id": None},
        {"amount": 5},  # always the same
    ],
)
def test_without_an_amount_or_a_payer_nothing_is_proposed(tmp_path: Path, change: dict[str, object]) -> None:
    rows = [{**row, **change} for row in PAYMENTS]
    assert "look like transactions" not in written(tmp_path, rows)


def test_measurements_with_amounts_are_no_transactions(tmp_path: Path) -> None:
    rows = [{"pump": f"p{i % 5}", "amount": 1.5 + i % 40, "store": f"s{i % 3}"} for i in range(200)]
    text = written(tmp_path, rows)
    assert "look like transactions" not in text
    assert loaded(tmp_path, text).input.features == config.Features(
        numeric=("amount",), categorical=("store",)
    )
