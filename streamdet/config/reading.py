"""From a file to settings, or to one error that lists all its faults."""

import os
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from streamdet.config.settings import Settings
from streamdet.errors import ConfigError

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def load(path: Path) -> Settings:
    """Read and check a configuration file.

    Raises:
        ConfigError: the file cannot be read, is no YAML, or has unusable settings (all are listed).
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from error
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{path} must hold a mapping such as `input: {{topics: [sensors]}}`, not {type(tree).__name__}"
        )
    return parse(tree, name=str(path))


def parse(tree: dict[str, Any], name: str = "configuration") -> Settings:
    """Check a configuration that has already been read.

    Raises:
        ConfigError: with a line for every setting that cannot be used.
    """
    try:
        return Settings.model_validate(_expand(tree, name))
    except ValidationError as error:
        lines = [f"  {_where(e['loc'])}: {_what(e)}" for e in error.errors()]
        # Not `from error`: it shows all that was given, a password too.
        raise ConfigError(f"{name} cannot be used:\n" + "\n".join(lines)) from None


def _expand(node: object, name: str) -> Any:  # noqa: ANN401 - a YAML tree
    if isinstance(node, dict):
        return {key: _expand(value, name) for key, value in node.items()}
    if isinstance(node, list):
        return [_expand(value, name) for value in node]
    if not isinstance(node, str):
        return node
    unset = [v for v in _VARIABLE.findall(node) if v not in os.environ]
    if unset:
        raise ConfigError(f"{name} uses ${{{unset[0]}}}, which is not set in the environment")
    return _VARIABLE.sub(lambda match: os.environ[match[1]], node)


def _where(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location) or "(top level)"


def _what(error: Any) -> str:  # noqa: ANN401 - pydantic's ErrorDetails
    if error["type"] == "extra_forbidden":
        known = _known_keys(error["loc"][:-1])
        return f"unknown key; known here: {', '.join(known)}"
    message = str(error["msg"]).removeprefix("Value error, ")
    shown = error.get("input")
    hidden = isinstance(shown, dict | BaseModel) or _may_hold_a_secret(error["loc"])
    return message if hidden else f"{message} (got {shown!r})"


def _may_hold_a_secret(location: tuple[int | str, ...]) -> bool:
    return location[:2] == ("kafka", "security") and location[2:3] in ((), ("password",))


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    section: type[BaseModel] = Settings
    for part in location:
        declared = section.model_fields.get(str(part))
        if declared is None:  # the name of a feature, whose rules are the section
            continue
        annotation = declared.annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        section = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return list(section.model_fields)
