"""What the sections of the configuration have in common."""

from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict

from streamdet.errors import ConfigError
from streamdet.events import Schema


class Section(BaseModel):
    """A part of the configuration.

    What would be given and do nothing is refused, as whoever gave it expects something of it; but never for a value
    that is the default, which a file may spell out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    def changed(self, *settings: str) -> list[str]:
        """Those of these settings that are not at their default."""
        return [name for name in settings if getattr(self, name) != type(self).model_fields[name].default]


def repeated(names: Sequence[str]) -> str:
    """Those that are named more than once, with commas; empty if there are none."""
    return ", ".join(sorted({name for name in names if names.count(name) > 1}))


def hold_against(schema: Schema, setting: str, names: Iterable[str]) -> None:
    """Hold names in this setting against the numeric features of the stream.

    Raises:
        ConfigError: one of them is none.
    """
    for name in names:
        if name not in schema.numeric:
            why = "it is categorical" if name in schema.categorical else "there is no such feature"
            numeric = ", ".join(schema.numeric) or "none"
            raise ConfigError(
                f"{setting}.{name}: {why}; the numeric ones are {numeric}: take it out, or mend the name"
            )
