"""Which slot holds the state of which entity: a bounded table, least recently seen out first."""

from collections.abc import Sequence

import numpy as np

from streamdet.events import Bools, Ints, State

# Slot 0 belongs to the stream as a whole.
FIRST_SLOT = 1


class EntityTable:
    """Maps entity names to slots. Names are compared whole, never by a hash of theirs.

    A Python dict keeps insertion order; an entity is put back at the end when it is seen, so the first is always
    the one not seen for longest. What happens depends on the order of events alone, not on batches.
    """

    def __init__(self, max_entities: int) -> None:
        self._max = max_entities
        self._slots: dict[str, int] = {}
        self.evicted_total = 0

    def __len__(self) -> int:
        return len(self._slots)

    def assign(self, names: Sequence[str]) -> tuple[Ints, Bools]:
        """Slots of n events in order, (n,), and which events are the first of a new owner of their slot, (n,).

        A slot changes hands between two events, so whoever keeps state by slot clears it at exactly that event.
        The empty name is the stream as a whole.
        """
        slots = np.zeros(len(names), np.int64)
        fresh = np.zeros(len(names), np.bool_)
        if not any(names):
            return slots, fresh
        table = self._slots
        for i, name in enumerate(names):
            if name:
                slot = table.pop(name, None)
                if slot is None:
                    slot = self._free()
                    fresh[i] = True
                table[name] = slot
                slots[i] = slot
        return slots, fresh

    def _free(self) -> int:
        if len(self._slots) < self._max:
            return len(self._slots) + FIRST_SLOT
        self.evicted_total += 1
        return self._slots.pop(next(iter(self._slots)))

    def state(self) -> State:
        """Names and slots, least recently seen first."""
        return {
            "names": list(self._slots),
            "slots": list(self._slots.values()),
            "evicted": self.evicted_total,
        }

    def restore(self, state: State) -> Ints:
        """Take back what `state` gave; of more names than there may be, those not seen for longest make room.

        Returns where the rows of the slots now in use, slot 0 included, were when the state was given, (slots,).
        """
        gone = max(0, len(state["names"]) - self._max)
        names, slots = state["names"][gone:], state["slots"][gone:]
        before = [0, *sorted(slots)]
        now = {slot: place for place, slot in enumerate(before)}
        self._slots = {name: now[slot] for name, slot in zip(names, slots, strict=True)}
        self.evicted_total = state["evicted"] + gone
        return np.array(before, np.int64)
