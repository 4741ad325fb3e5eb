"""The model versions of a group: those that its trainer publishes, and those that the others take from the store."""

import logging
from collections import OrderedDict
from functools import partial
from typing import Final

import torch

from streamdet.checkpoint.background import Background
from streamdet.checkpoint.shelf import Shelf
from streamdet.clock import Clock
from streamdet.errors import CheckpointError
from streamdet.events import Schema, State
from streamdet.models.release import Release

log = logging.getLogger(__name__)

# Between two looks for a newer one.
LOOK_EVERY_S: Final = 2.0
# Lanes that judge again what others judged ask for older ones; those that are not here any more are in the store.
KEPT: Final = 8


class Releases:
    """Finds and shares releases. Nothing is shared without a shelf, as in a replay."""

    def __init__(
        self,
        shelf: Shelf | None,
        background: Background,
        schema: Schema,
        device: torch.device,
        clock: Clock,
    ) -> None:
        self._shelf = shelf
        self._background = background
        self._schema = schema
        self._device = device
        self._clock = clock
        self._known: OrderedDict[str, Release] = OrderedDict()
        self._unsaved: dict[str, State] = {}
        self._looked_at_s = clock.monotonic_s() - LOOK_EVERY_S
        self._looking = False
        self._seen: str | None = None  # the newest one that was there at the last look
        self._found: Release | None = None
        self.newest: Release | None = None

    def load(self, state: State) -> Release:
        """The release that gave this state, on this worker's device."""
        return Release.from_state(state, self._schema, self._device)

    def save(self) -> None:
        """In the background: write what is not written yet; what fails stays for the next time.

        Lanes that judge again must find what they adopted, so no state that is beyond an adoption is saved before it.
        """
        if self._shelf is not None:
            for version, state in list(self._unsaved.items()):
                self._shelf.put_release(version, state)
                del self._unsaved[version]

    def publish(self, release: Release) -> None:
        """Share a release, in the background, and go on with it here.

        One that has not seen the whole warm-up does not take the place of one that has: it is of a learner that had to
        begin anew, and nobody would be told of anomalies until it is through.
        """
        self.keep(release)
        if self.newest is not None and self.newest.warm and not release.warm:
            return
        self.newest = release
        if self._shelf is not None:
            self._unsaved[release.version.id] = release.state()
            self._background.submit("model", self.save)

    def keep(self, release: Release) -> None:
        """Have it at hand."""
        self._known[release.version.id] = release
        while len(self._known) > KEPT:
            self._known.popitem(last=False)

    def get(self, version: str) -> Release | None:
        """A release by the name of its version, None where it is not to be had any more.

        Raises:
            StoreUnavailableError: the store fails, so that nobody can tell.
        """
        if version in self._known:
            return self._known[version]
        if self._shelf is None:
            return None
        state = self._shelf.release(version)
        if state is None:
            return None
        self.keep(self.load(state))
        return self._known[version]

    def follow(self) -> None:
        """Take up what another worker published: look now and then, in the background."""
        if self._found is not None:
            self.newest, self._found = self._found, None
            self.keep(self.newest)
            log.info("model taken over version=%s", self.newest.version.id)
        now_s = self._clock.monotonic_s()
        if self._shelf is not None and not self._looking and now_s - self._looked_at_s >= LOOK_EVERY_S:
            self._looking, self._looked_at_s = True, now_s
            shelf = self._shelf
            self._background.submit("models", partial(self._look, shelf))

    def look_now(self) -> None:
        """Take up the newest one there is."""
        if self._shelf is not None:
            self._look(self._shelf)
            self.follow()

    def _look(self, shelf: Shelf) -> None:
        try:
            version = shelf.newest_release()
            if version is not None and version != self._seen:
                state = shelf.release(version)
                self._seen = version
                if state is not None:
                    self._found = self.load(state)
        except CheckpointError as error:
            # The next look may do better; a worker without any model says that itself.
            log.warning("cannot look for a newer model: %s", error)
        finally:
            self._looking = False
