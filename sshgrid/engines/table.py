"""The engines that a node can have, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from sshgrid.clock import SYSTEM_CLOCK, Clock
from sshgrid.engines import Engine
from sshgrid.engines.build_cache import BuildCache
from sshgrid.engines.direct import direct_engine
from sshgrid.engines.hosts import EngineHost


class MakeEngine(Protocol):
    """Returns the engine of one node; `direct.direct_engine` describes the arguments."""

    def __call__(
        self,
        host: EngineHost,
        blob: Callable[[str], Path],
        patience: Callable[[float], float],
        builds: BuildCache,
        clock: Clock = SYSTEM_CLOCK,
    ) -> Engine: ...


ENGINES: Mapping[str, MakeEngine] = {"direct": direct_engine}
DEFAULT_ENGINE = "direct"
