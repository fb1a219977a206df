"""Changed files, taken up while the server runs: model files and the file of keys."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from pocketdx_runtime.errors import PocketDxError
from pocketdx_runtime.model import Model
from pocketdx_serve.models import GOLDEN, Stamp, State, prepare

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pocketdx_runtime.image import Limits
    from pocketdx_serve.keys import KeyRing
    from pocketdx_serve.metrics import Metrics
    from pocketdx_serve.models import Models, Slot

log = logging.getLogger("pocketdx.serve")

Stamps = tuple[Stamp | None, ...]


class Reloader:
    """Looks at the files every ``interval`` seconds and when `poke` is called.

    A changed file is taken up once it is the same at two looks, so that one that is being copied is left alone.
    It is opened and tested beside the old one, which answers until then, and for ever if the new one is bad;
    whatever is in work finishes with the file that it began with.

    Args:
        models: whose files are watched.
        keys: whose file is watched, if there is one.
        limits: for new engines.
        metrics: where it is counted.
        interval: seconds, above 0.
        ready: told of each slot that has a new file.
    """

    def __init__(
        self,
        models: Models,
        keys: KeyRing | None,
        limits: Limits,
        metrics: Metrics,
        interval: float,
        ready: Callable[[Slot], None],
    ) -> None:
        self._slots = [slot for slot in models if slot.path is not None]
        self._keys = keys
        self._limits = limits
        self._metrics = metrics
        self._interval = interval
        self._ready = ready
        self._poked = asyncio.Event()
        self._tried: dict[Path, Stamps] = {path: _stamps(path) for path in self._paths()}
        self._seen: dict[Path, Stamps] = {}

    def _paths(self) -> list[Path]:
        paths = [slot.path for slot in self._slots if slot.path is not None]
        return [*paths, self._keys.path] if self._keys is not None and self._keys.path is not None else paths

    def poke(self) -> None:
        """Look now, and do not wait for a second look. For the event loop's thread."""
        self._poked.set()

    async def run(self) -> None:
        """Look for ever."""
        while True:
            try:
                async with asyncio.timeout(self._interval):
                    await self._poked.wait()
            except TimeoutError:
                pass
            at_once = self._poked.is_set()
            self._poked.clear()
            await self.look(at_once=at_once)

    async def look(self, *, at_once: bool = False) -> None:
        """Take up what has changed."""
        for slot in self._slots:
            if slot.path is not None and slot.state is not State.STARTING and self._changed(slot.path, at_once):
                await self._take_up(slot, slot.path)
        if self._keys is not None and self._keys.path is not None and self._changed(self._keys.path, at_once):
            try:
                self._keys.reload()
            except PocketDxError as error:
                self._failed("keys", str(error))
            else:
                self._metrics.reloads.of("keys", "done").total += 1
                log.info("keys reloaded", extra={"fields": {"keys": len(self._keys)}})

    def _changed(self, path: Path, at_once: bool) -> bool:
        """Whether there is something new that has not been tried; notes that it now is."""
        now = _stamps(path)
        settled = at_once or self._seen.get(path) == now
        self._seen[path] = now
        if now == self._tried[path] or now[0] is None or not settled:
            return False
        self._tried[path] = now
        return True

    async def _take_up(self, slot: Slot, path: Path) -> None:
        try:
            model = Model(path, threads=slot.model.threads)
            loaded = await asyncio.to_thread(prepare, model, self._limits)
        except PocketDxError as error:
            self._failed(slot.name, str(error))
        except Exception:
            log.exception("reload failed", extra={"fields": {"model": slot.name}})
            self._failed(slot.name, "see above")
        else:
            slot.fill(loaded)
            self._metrics.reloads.of(slot.name, "done").total += 1
            self._ready(slot)

    def _failed(self, what: str, why: str) -> None:
        self._metrics.reloads.of(what, "failed").total += 1
        log.error("reload failed, what was there before stays: %s", why, extra={"fields": {"what": what}})


def _stamps(path: Path) -> Stamps:
    """Of a file and the golden inputs beside it: a bundle may arrive file by file, and its test needs both."""
    return Stamp.of(path), Stamp.of(path.with_name(GOLDEN))
