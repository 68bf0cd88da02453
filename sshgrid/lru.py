"""A mapping that evicts the least recently used entries."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class LruCache(Generic[K, V]):
    """Keeps entries while the sum of their sizes is at most `limit`, and always the newest one.

    `size` returns the size of a value, 1 by default. `on_evict` receives each entry after its eviction, but no entry
    that is popped or replaced.
    """

    def __init__(
        self,
        limit: int,
        size: Callable[[V], int] = lambda _: 1,
        on_evict: Callable[[K, V], None] = lambda _key, _value: None,
    ) -> None:
        self._limit = limit
        self._size_of = size
        self._on_evict = on_evict
        self._entries: OrderedDict[K, V] = OrderedDict()
        self._size = 0

    def get(self, key: K) -> V | None:
        """Return the value and mark it as used now."""
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key]

    def peek(self, key: K) -> V | None:
        """Return the value without marking it as used."""
        return self._entries.get(key)

    def __setitem__(self, key: K, value: V) -> None:
        self.pop(key)
        self._entries[key] = value
        self._size += self._size_of(value)
        while self._size > self._limit and len(self._entries) > 1:
            oldest, evicted = self._entries.popitem(last=False)
            self._size -= self._size_of(evicted)
            self._on_evict(oldest, evicted)

    def pop(self, key: K) -> V | None:
        """Remove an entry and return its value."""
        if key not in self._entries:
            return None
        value = self._entries.pop(key)
        self._size -= self._size_of(value)
        return value

    def values(self) -> Iterator[V]:
        return iter(self._entries.values())

    def __iter__(self) -> Iterator[K]:
        """Iterate over the keys, the least recently used first."""
        return iter(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)
