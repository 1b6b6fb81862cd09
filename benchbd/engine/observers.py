"""Call observers; one that fails is named once and does not stop the run."""

from __future__ import annotations

import logging
from typing import Any

from benchbd.base.errors import is_interrupt, named
from benchbd.base.isolation import isolated
from benchbd.registry import Registry

log = logging.getLogger("benchbd")


class Observers:
    """The observers that the plugins of a registry offer."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self._complained: set[str] = set()

    def tell(self, hook: str, **facts: Any) -> None:
        """Call the observers; one that fails is named, once, and does not stop the run."""
        for impl in getattr(self.registry.manager.hook, hook).get_hookimpls():
            try:
                with isolated(f"observer {impl.plugin_name}"):
                    impl.function(*(facts[name] for name in impl.argnames))
            except BaseException as error:
                if is_interrupt(error):
                    raise
                self.complain(f"observer {impl.plugin_name}: {hook}", f"raised {named(error)}")

    def complain(self, who: str, what: str) -> None:
        """Warn of a plugin, once."""
        if who not in self._complained:
            log.warning("%s %s", who, what)
        self._complained.add(who)
