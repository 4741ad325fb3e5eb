"""What `streamdet check` finds without Kafka: all of it at once, and nothing is changed by looking."""

import socket
from pathlib import Path
from typing import Any

import pytest

from streamdet.checkpoint.store import CheckpointFolder
from streamdet.config import parse
from streamdet.errors import ConfigError
from streamdet.preflight import Findings, examine, memory_estimate_bytes


def checked(tmp_path: Path, **given: Any) -> Findings:
    """What an offline check says of a configuration that is fine but for what is given."""
    settings: dict[str, Any] = {
        "input": {"topics": ["sensors"], "features": {"numeric": ["x"]}},
        "checkpoint": {"url": str(tmp_path / "state")},
        "model": {"device": "cpu"},
    }
    for section, values in given.items():
        settings[section] = {**settings.get(section, {}), **values}
    return examine(parse(settings), offline=True)


def one_error(findings: Findings) -> str:
    assert len(findings.errors) == 1, findings.errors
    return findings.errors[0]


def checkpoint(group_id: str = "streamdet", entity: str | None = None) -> dict[str, Any]:
    schema = {"timestamp": None, "entity": entity, "numeric": ["x"], "categorical": []}
    return {"group_id": group_id, "schema": schema}


def test_a_sound_configuration_has_no_errors_and_leaves_no_trace(tmp_path: Path) -> None:
    findings = checked(tmp_path)
    assert findings.errors == []
    assert findings.notes[0] == "device: cpu"
    assert any(note.startswith("memory: about ") for note in findings.notes)
    assert list(tmp_path.iterdir()) == []


def test_everything_wrong_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    findings = checked(
        tmp_path,
        input={"topics": ["a b"]},
        checkpoint={"url": str(tmp_path / "file")},
        kafka={"security": {"ca_file": str(tmp_path / "nowhere.pem")}},
    )
    assert len(findings.errors) == 3


def test_no_topics_are_an_error(tmp_path: Path) -> None:
    assert "input.topics is empty" in one_error(checked(tmp_path, input={"topics": []}))


def test_a_name_that_kafka_does_not_allow_is_an_error(tmp_path: Path) -> None:
    assert "'wrong!' is no name of a topic" in one_error(checked(tmp_path, alerts={"topic": "wrong!"}))


@pytest.mark.parametrize("setting", ["timestamp", "entity"])
def test_a_field_of_two_meanings_is_an_error(tmp_path: Path, setting: str) -> None:
    with pytest.raises(ConfigError, match="x: a field is the timestamp, the entity or a feature"):
        checked(tmp_path, input={setting: "x"})


def test_features_to_be_inferred_are_noted(tmp_path: Path) -> None:
    findings = checked(tmp_path, input={"features": None})
    assert findings.errors == []
    assert any(note.startswith("features: none configured") for note in findings.notes)


def test_a_device_that_is_not_there_is_a_note_or_if_strict_an_error(tmp_path: Path) -> None:
    missing = "cuda:99"
    findings = checked(tmp_path, model={"device": missing})
    assert findings.errors == []
    assert any("scoring on the CPU" in note for note in findings.notes)
    assert missing in one_error(checked(tmp_path, model={"device": missing, "strict": True}))


@pytest.mark.parametrize("inside", ["", "/deeper/state"])
def test_a_file_in_place_of_the_folder_is_an_error(tmp_path: Path, inside: str) -> None:
    (tmp_path / "file").touch()
    error = one_error(checked(tmp_path, checkpoint={"url": f"{tmp_path}/file{inside}"}))
    assert "checkpoint.url: cannot write to" in error


def test_a_folder_elsewhere_is_an_error(tmp_path: Path) -> None:
    assert "only folders of this machine" in one_error(checked(tmp_path, checkpoint={"url": "s3://bucket/x"}))


def test_a_checkpoint_of_this_stream_is_noted(tmp_path: Path) -> None:
    path = CheckpointFolder(tmp_path / "state", 3).save(checkpoint())
    findings = checked(tmp_path)
    assert findings.errors == []
    assert f"checkpoint: the worker goes on from {path}" in findings.notes


def test_an_older_checkpoint_stands_in_for_a_torn_one(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "state", 3)
    sound, torn = folder.save(checkpoint()), folder.save(checkpoint())
    torn.write_bytes(torn.read_bytes()[:20])
    findings = checked(tmp_path)
    assert findings.errors == []
    assert any(str(torn) in note for note in findings.notes)
    assert f"checkpoint: the worker goes on from {sound}" in findings.notes


def test_torn_checkpoints_alone_are_an_error(tmp_path: Path) -> None:
    CheckpointFolder(tmp_path / "state", 3).save(checkpoint()).write_bytes(b"torn")
    assert "none of the 1 checkpoints" in one_error(checked(tmp_path))


def test_a_checkpoint_of_another_stream_is_an_error(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "state", 3)
    folder.save(checkpoint(group_id="theirs"))
    assert "is of group 'theirs', not 'streamdet'" in one_error(checked(tmp_path))
    folder.save(checkpoint(entity="device"))
    assert "was made with entity 'device', not None" in one_error(checked(tmp_path))


def test_an_address_in_use_is_an_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert f"cannot listen on {address}" in one_error(checked(tmp_path, serve={"http": address}))
    assert checked(tmp_path, serve={"http": address}).errors == []


@pytest.mark.parametrize("address", ["127.0.0.1:99999", "nowhere.invalid:8080"])
def test_an_address_that_is_none_is_an_error(tmp_path: Path, address: str) -> None:
    assert f"cannot listen on {address}" in one_error(checked(tmp_path, serve={"http": address}))


def test_every_file_that_is_missing_is_named(tmp_path: Path) -> None:
    files = {name: str(tmp_path / name) for name in ("ca_file", "cert_file", "key_file", "password_file")}
    findings = checked(tmp_path, kafka={"security": files})
    assert len(findings.errors) == 4
    assert all(any(f"kafka.security.{name}: " in error for error in findings.errors) for name in files)


def test_a_file_that_is_no_certificate_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("not a certificate")
    findings = checked(tmp_path, kafka={"security": {"ca_file": str(tmp_path / "ca.pem")}})
    assert "kafka.security.ca_file: expected PEM" in one_error(findings)


def test_memory_grows_with_entities_and_partitions_as_measured() -> None:
    def estimate_mb(partitions: int, **given: Any) -> float:
        features = {"numeric": list("abcdefgh")}
        settings = parse({"input": {"topics": ["sensors"], "features": features, **given}})
        return memory_estimate_bytes(settings, partitions, imported_bytes=675_000_000) / 1e6

    # Measured at the peak of a worker on 90,000 events of 30,000 devices in 3 partitions: 808 MB and 1,178 MB.
    assert estimate_mb(3) == pytest.approx(808, rel=0.05)
    assert estimate_mb(3, entity="device") == pytest.approx(1_178, rel=0.05)
    assert estimate_mb(6, entity="device") > estimate_mb(3, entity="device") + 300
    assert estimate_mb(3, entity="device", max_entities=100) < estimate_mb(3) + 10
