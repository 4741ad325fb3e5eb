"""Java, and the jars of the Apache Kafka that `deploy/kafka/pom.xml` pins.

Guaranteed: a folder of jars that `kafka_libs` returns was downloaded completely with Maven's checksums verified, and
belongs to the pom.xml as it is now: the folder's name carries the pom's digest and appears by a rename at the very end.
Two processes that need it at once download it once. Not guaranteed: that nobody changed the jars afterwards.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

from kafka_progress import Progress

ROOT = Path(__file__).resolve().parent.parent
POM = ROOT / "deploy" / "kafka" / "pom.xml"
LIBS = ROOT / ".kafka" / "libs"

JAVA_MIN = 17  # the oldest that a Kafka 4 broker runs on
DOWNLOAD_FILES = 340  # what Maven fetches for this pom with an empty cache: 65 MB, its own plugins included
DOWNLOAD_USUAL_S = 15.0
DOCKER_ANSWER_S = 5
DOWNLOAD_MAX_S = 1800.0  # 65 MB on a line of 300 kbit/s; whatever takes longer hangs

INSTALL_JAVA = "Install it (Debian: apt-get install openjdk-17-jre-headless) or point JAVA_HOME to it"


class KafkaUnavailable(Exception):  # noqa: N818 - a state of this machine, and the name that callers know
    """No Kafka can be had here. The message is one line for the user: what is missing and what to do."""


def kafka_version() -> str:
    """The version that the pom pins."""
    match = re.search(r"<kafka\.version>(.+?)</kafka\.version>", POM.read_text())
    if match is None:
        raise KafkaUnavailable(f"{POM} has no <kafka.version>; restore it from git")
    return match.group(1)


def find_java() -> Path:
    """The first Java that is new enough: of JAVA_HOME, then of PATH."""
    home, on_path = os.environ.get("JAVA_HOME"), shutil.which("java")
    candidates = [Path(home) / "bin" / "java"] if home else []
    candidates += [Path(on_path)] if on_path else []
    found = []
    for java in dict.fromkeys(candidates):
        version = _java_version(java)
        if version is not None and version >= JAVA_MIN:
            return java
        if version is not None:
            found.append(f"{java} is Java {version}")
    what = f"but {' and '.join(found)}" if found else "and there is no java in JAVA_HOME or on PATH"
    raise KafkaUnavailable(f"Kafka needs Java {JAVA_MIN} or newer, {what}. {INSTALL_JAVA}{_way_out()}")


def _java_version(java: Path) -> int | None:
    # A java on PATH may be a stub that only says where to buy one, so it has to run.
    try:
        answer = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r'version "(?:1\.)?(\d+)', answer.stderr)
    return int(match.group(1)) if match else None


def docker_answers() -> bool:
    """Whether a Docker engine answers within a few seconds (a docker command alone proves nothing)."""
    import docker  # type: ignore[import-untyped]
    from docker.errors import DockerException  # type: ignore[import-untyped]

    try:
        return bool(docker.from_env(timeout=DOCKER_ANSWER_S).ping())
    except (DockerException, OSError):
        return False


def _way_out() -> str:
    if not docker_answers():
        return "."
    return (
        "; or use the Docker engine that answers here: tests and demo take it by themselves, and "
        f"`docker run --rm -p 9092:9092 apache/kafka:{kafka_version()}` is a broker on 127.0.0.1:9092."
    )


def kafka_libs() -> Path:
    """The folder of Kafka's jars; downloads them the first time, and again when the pom changed."""
    digest = hashlib.sha256(POM.read_bytes()).hexdigest()[:8]
    libs = LIBS / f"{kafka_version()}-{digest}"
    if libs.is_dir():
        return libs
    LIBS.mkdir(parents=True, exist_ok=True)
    with locked(LIBS / "lock"):
        if not libs.is_dir():
            _download(libs)
    return libs


def class_archive() -> Path:
    """Where the classes of a broker are kept as a JVM has them in memory; there or not."""
    libs = kafka_libs()
    return libs.with_name(f"{libs.name}.jsa")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file: other processes wait. The kernel lets go of it however this process ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _download(libs: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise KafkaUnavailable(
            "Apache Kafka is not downloaded yet and that needs Maven, but there is no mvn on PATH. "
            f"Install it (Debian: apt-get install maven){_way_out()}"
        )
    for left in LIBS.glob(".part-*"):
        shutil.rmtree(left)  # of a download that was killed: nobody else is at it while we hold the lock
    with tempfile.TemporaryDirectory(prefix=".part-", dir=LIBS) as part:
        jars = Path(part) / "jars"
        _copy_dependencies(maven, jars)
        _verify(jars)
        jars.rename(libs)


def _copy_dependencies(maven: str, jars: Path) -> None:
    progress = Progress(f"Downloading Apache Kafka {kafka_version()} (up to 65 MB, once)", DOWNLOAD_USUAL_S)
    command = [maven, "--batch-mode", "--strict-checksums", "-Dstyle.color=never", "-f", str(POM)]
    command += ["dependency:copy-dependencies", f"-DoutputDirectory={jars}"]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        if process.stdout is None:
            raise AssertionError("stdout was asked for as a pipe")
        limit = threading.Timer(DOWNLOAD_MAX_S, process.kill)
        limit.start()
        files, errors = 0, list[str]()
        try:
            for line in process.stdout:
                files += "Downloaded from" in line
                if line.startswith("[ERROR]") and len(line) > 10:
                    errors.append(line.removeprefix("[ERROR]").strip())
                progress.tick(files / DOWNLOAD_FILES)
        except BaseException:
            process.kill()
            raise
        finally:
            limit.cancel()
    if process.returncode != 0:
        progress.done("failed")
        reason = errors[0][:400] if errors else f"Maven ended with exit code {process.returncode}"
        raise KafkaUnavailable(
            f"downloading Apache Kafka {kafka_version()} with Maven failed: {reason} - check the network "
            "(a proxy or mirror belongs in Maven's settings.xml), then run this again"
        )
    progress.done()


def _verify(jars: Path) -> None:
    if not (jars / f"kafka_2.13-{kafka_version()}.jar").is_file():
        raise KafkaUnavailable(f"Maven left no kafka_2.13-{kafka_version()}.jar; check {POM}")
    for jar in jars.glob("*.jar"):
        with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(jar) as archive:
            if archive.testzip() is None:
                continue
        raise KafkaUnavailable(
            f"the download of {jar.name} is damaged; clear Maven's repository and run this again"
        )
