"""A model of certificate files that are renewed while generations of workers use them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from servo.arbiter.core.certificate_watch import GRACE_S, CertificateWatch

INTERVAL_S = 4.0
# The first look finds the change, and the second finds that the files change no more.
_LOOKS = 2

Stamps = dict[str, tuple[int, ...]]


class Certificates:
    """A certificate and its key on a disk, and the pair that each generation uses.

    files    name -> the number of the pair that the file belongs to; a pair works if they are equal
    used     generation -> the number of the pair that it uses
    renewed  how often a generation has begun to use another pair
    errors   how often an error was logged
    """

    def __init__(self) -> None:
        self.files = {"certificate": 1, "key": 1}
        self.used: dict[int, int] = {}
        self.renewed = 0
        self.errors = 0
        self._writes = {"certificate": 0, "key": 0}
        self._changed_at = 0.0
        # By generation, the looks that should have found the newest files.
        self._looks: Counter[int] = Counter()
        # When each watch has begun, in seconds.
        self._since: dict[int, float] = {}
        self._watches: dict[int, CertificateWatch] = {}
        # By generation, the stamps of the files that it uses, and of those that were complained of.
        self._loaded: dict[int, Stamps] = {}
        self._complained: dict[int, Stamps] = {}

    @property
    def usable(self) -> bool:
        """Whether certificate and key belong together."""
        return len({*self.files.values()}) == 1

    def write(self, name: str, pair: int, now: float) -> None:
        """Write one of the files.

        name  "certificate" or "key"
        pair  the number of the pair that it belongs to
        now   in seconds
        """
        self.files[name] = pair
        self._writes[name] += 1
        self._changed_at = now
        self._looks.clear()

    def load(self, generation: int) -> None:
        """Read the files for a generation. They must be usable."""
        assert self.usable
        self.used[generation] = self.files["key"]
        self._loaded[generation] = self._stamps()

    def copy(self, old: int, new: int) -> None:
        """A refork makes a new generation with the contexts of an old one."""
        self.used[new] = self.used[old]
        self._loaded[new] = self._loaded[old]

    def restart(self, generation: int) -> None:
        """Another program takes over. It reads the files for its first generation."""
        self.used.clear()
        self._watches.clear()
        self.load(generation)

    def tick(self, generations: Collection[int], now: float) -> None:
        """Look at the files, as the arbiter does once a second, and check the outcome."""
        for generation in self.used.keys() - {*generations}:
            del self.used[generation]
            self._watches.pop(generation, None)
        for generation in self.used:
            self._look(generation, now)
        for generation, pair in self.used.items():
            since = max(self._changed_at, self._since[generation])
            self._looks[generation] += now - since > INTERVAL_S
            if self.usable and self._looks[generation] > _LOOKS:
                assert pair == self.files["key"], "an old certificate stays in use"

    def _look(self, generation: int, now: float) -> None:
        watch = self._watches.get(generation)
        if watch is None:
            watch = CertificateWatch(INTERVAL_S, self._loaded[generation], now)
            self._watches[generation] = watch
            self._since[generation] = now
            self._looks[generation] = 0
        stamps = self._stamps()
        if not watch.is_due(now) or not watch.look(stamps, now):
            return
        assert stamps != self._loaded[generation], "files are read that have not changed"
        if self.usable:
            watch.used()
            self.load(generation)
            self.renewed += 1
        elif watch.failed(now):
            assert now - self._changed_at >= GRACE_S, "an error during a renewal"
            assert stamps != self._complained.get(generation), "the same error again"
            self._complained[generation] = stamps
            self.errors += 1

    def _stamps(self) -> Stamps:
        return {name: (writes,) for name, writes in self._writes.items()}
