"""The cache that evicts what was used least recently."""

from __future__ import annotations

from sshgrid.lru import LruCache


def test_the_least_recently_used_entry_is_evicted() -> None:
    evicted: list[tuple[str, int]] = []
    cache = LruCache[str, int](2, on_evict=lambda key, value: evicted.append((key, value)))
    cache["a"] = 1
    cache["b"] = 2
    assert cache.get("a") == 1
    assert cache.peek("b") == 2
    cache["c"] = 3
    assert (list(cache), evicted) == (["a", "c"], [("b", 2)])
    assert (cache.get("b"), cache.peek("b"), cache.pop("b"), "b" in cache) == (None, None, None, False)


def test_replacing_or_popping_an_entry_is_no_eviction() -> None:
    evicted: list[str] = []
    cache = LruCache[str, int](2, on_evict=lambda key, _: evicted.append(key))
    cache["a"] = 1
    cache["a"] = 2
    cache["b"] = 3
    assert (list(cache.values()), cache.pop("a"), len(cache), evicted) == ([2, 3], 2, 1, [])


def test_the_limit_holds_for_the_sum_of_sizes_but_the_newest_entry_stays() -> None:
    cache = LruCache[str, bytes](10, size=len)
    cache["a"] = b"12345"
    cache["b"] = b"12345"
    assert list(cache) == ["a", "b"]
    cache["b"] = b"123456"
    assert list(cache) == ["b"]
    cache["c"] = bytes(20)
    assert list(cache) == ["c"]
