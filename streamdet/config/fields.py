"""What the fields of an event mean."""

from typing import Literal, Self

from pydantic import Field, model_validator

from streamdet.config.section import Section, hold_against, repeated
from streamdet.errors import ConfigError
from streamdet.events import Schema

StandIn = Literal["mean", "last", "zero", "reject"]


class Features(Section):
    """Which fields of an event are judged."""

    numeric: tuple[str, ...] = Field((), description="Fields with numbers; true and false count as 1 and 0.")
    categorical: tuple[str, ...] = Field((), description="Fields with names or codes; rarity is what counts.")

    @model_validator(mode="after")
    def _some_and_distinct(self) -> Self:
        names = self.numeric + self.categorical
        if not names:
            raise ValueError(
                "name at least one numeric or categorical field, or leave `features` out to infer them"
            )
        if twice := repeated(names):
            raise ValueError(f"named more than once: {twice}")
        return self


class Transactions(Section):
    """What makes an event a transaction; judged by the habits of the entity and of its counterparts."""

    amount: str | None = Field(
        None,
        description="Field with the amount that the entity pays, in any one unit; with it, events are transactions.",
    )
    counterparts: tuple[str, ...] = Field(
        (),
        description="Fields that name who else takes part, such as the terminal or the merchant: their habits count "
        "too, and who is new to the entity. Keys, never features.",
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.counterparts and self.amount is None:
            raise ValueError(
                "counterparts without an amount: set transactions.amount to the field that has it"
            )
        if twice := repeated(self.counterparts):
            raise ValueError(f"counterparts: named more than once: {twice}")
        return self


class Missing(Section):
    """What stands for a number that an event lacks."""

    default: StandIn = Field(
        "mean",
        description="Where nothing else is said. mean: the recent mean of the entity; last: its last value; both are "
        "marked and count in no score. zero: absence means 0, a value like any other, and what is no number makes a "
        "dead letter. reject: a dead letter.",
    )
    features: dict[str, StandIn] = Field(
        {},
        description="A missing category is a category of its own. Numeric features for which something else stands, by "
        "name, such as {errors: zero}.",
    )

    @property
    def repeats(self) -> bool:
        """Whether last values are kept."""
        return "last" in (self.default, *self.features.values())

    def which(self, stand_in: StandIn, schema: Schema) -> list[bool]:
        """For which of the D numbers of a stream this one stands, D of them."""
        return [self.features.get(name, self.default) == stand_in for name in schema.numeric]

    def check(self, schema: Schema) -> None:
        """Hold the names against the features of the stream.

        Raises:
            ConfigError: one of them is no numeric feature, or there is none that the default could stand for.
        """
        if not schema.numeric and self.changed("default"):
            raise ConfigError(
                f"input.missing.default: {self.default} does nothing, as there are no numeric features and a missing "
                "category is a category of its own: leave it out"
            )
        hold_against(schema, "input.missing.features", self.features)
