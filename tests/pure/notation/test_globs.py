"""What a glob of --fetch matches, and what of a node's listing is brought back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sshgrid.errors import UsageError
from sshgrid.notation import globs
from sshgrid.notation.globs import Listing


@pytest.mark.parametrize(
    ("glob", "yes", "no"),
    [
        ("*.csv", ["a.csv", "ü b.csv"], ["a.txt", "out/a.csv", ".a.csv", "a.csv.gz"]),
        ("out/*.csv", ["out/a.csv"], ["a.csv", "out/deep/a.csv", "out/.a.csv"]),
        ("out", ["out", "out/a", "out/deep/.hidden"], ["outer", "a/out"]),
        ("./out//", ["out/a"], ["outer/a"]),
        ("out/**/*.csv", ["out/a.csv", "out/x/y/a.csv"], ["a.csv", "out/.git/a.csv"]),
        ("**/a", ["a", "x/a", "x/y/a", "x/a/below"], ["b", ".x/a"]),
        ("**", ["a", "x/y", "x/.y"], [".x", ".x/y"]),
        ("out/**", ["out/a", "out/x/y"], ["out", "a"]),
        (".", ["a", ".x/y"], []),
        (".*", [".x", ".x/y"], ["a"]),
        ("[ab]?.txt", ["a1.txt", "b/.txt"[:0] + "bx.txt"], ["c1.txt", "a.txt"]),
        ("[!a].txt", ["b.txt"], ["a.txt"]),
        ("a b/$(id)'\"", ["a b/$(id)'\""], ["a b/uid"]),
        ("A.csv", ["A.csv"], ["a.csv"]),
    ],
)
def test_a_glob_matches_as_in_a_shell_and_a_folder_is_all_that_is_in_it(
    glob: str, yes: list[str], no: list[str]
) -> None:
    assert [name for name in yes if not globs.matches(glob, name)] == []
    assert [name for name in no if globs.matches(glob, name)] == []


def test_many_wild_folders_take_no_exponential_time() -> None:
    assert not globs.matches("/".join(["**", "a"] * 40), "/".join(["a"] * 39 + ["b"] * 40))


@pytest.mark.parametrize("glob", ["", "/etc/passwd", "../x", "out/../../x", "a\nb", "a\0b", "x" * 300, "\udcff"])
def test_a_glob_that_leads_out_or_can_name_no_file_is_refused(glob: str) -> None:
    with pytest.raises(UsageError, match="--fetch"):
        globs.check(["fine", glob])


def test_too_many_globs_are_refused() -> None:
    globs.check(["*"] * globs.MAX_GLOBS)
    with pytest.raises(UsageError, match="no more than"):
        globs.check(["*"] * (globs.MAX_GLOBS + 1))


@given(st.text(st.characters(codec="utf-8"), max_size=40), st.text("ab*?[]!./-", max_size=20))
def test_whatever_is_matched_could_be_looked_for(name: str, glob: str) -> None:
    """`where` narrows what a node lists: it must never hide what matches."""
    if globs.fault(name) or not globs.matches(glob, name):
        return
    words = [word for word in globs.where([glob]) if word not in ("-o", "-path")]
    roots = [word.removesuffix("/*").replace("\\\\", "\\") for word in words]
    assert any(f"./{name}" == root or f"./{name}".startswith(f"{root}/") for root in roots)


def test_a_listing_is_read_and_what_is_no_line_of_it_is_passed_over() -> None:
    said = b"f 12 ./a b\nf x ./bad\nf 3 /etc/passwd\nnoise\n\nf 0 ./\xff\nd ./folder\no ./out\ns ./fifo\nf 7 ./cut"
    found = globs.parse_listing(said)
    assert found.files == {"a b": 12, "\udcff": 0, "cut": 7}
    assert found.others.keys() == {"folder", "out", "fifo"}
    assert "cut" not in globs.parse_listing(said, more=True).files


def test_what_cannot_come_is_named_and_the_rest_comes() -> None:
    listing = Listing(
        {"out/a": 1, "out/b\nc": 1, "out/\udcff": 1, "../x": 1, "/abs": 1, "else": 1},
        {"out/link": "is a link out of the run's folder"},
    )
    chosen, warnings = globs.choose(listing, ["out", ".", "none/*"], 100)
    assert chosen == {"out/a": 1, "else": 1}
    text = "\n".join(warnings)
    assert "--fetch none/*: nothing there" in text
    assert all(words in text for words in ("out/link", "control character", "UTF-8", "'..'", "absolute"))
    assert all(warning.isprintable() for warning in warnings)


def test_more_than_may_come_is_left_out_and_told_with_the_numbers() -> None:
    chosen, warnings = globs.choose(Listing({"a": 60, "b": 50, "c": 40}, {}), ["*"], 100)
    assert chosen == {"a": 60, "c": 40}
    assert warnings == ("not fetched: b (50B): no more than 100B and 100,000 files may come back",)
    many = globs.choose(Listing({f"{n:06}": 0 for n in range(globs.MAX_FILES + 7)}, {}, True), ["*"], 1)
    assert len(many.files) == globs.MAX_FILES
    assert "2 more" in many.warnings[-1]
    assert "more files" in many.warnings[0]
