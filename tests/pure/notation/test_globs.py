"""Globs of --fetch: what they match, and which files of a listing are fetched."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sshgrid.errors import UsageError
from sshgrid.notation import globs
from sshgrid.notation.globs import Listing


@pytest.mark.parametrize(
    ("glob", "matching", "others"),
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
        ("[ab]?.txt", ["a1.txt", "bx.txt"], ["c1.txt", "a.txt"]),
        ("[!a].txt", ["b.txt"], ["a.txt"]),
        ("a b/$(id)'\"", ["a b/$(id)'\""], ["a b/uid"]),
        ("A.csv", ["A.csv"], ["a.csv"]),
    ],
)
def test_a_glob_matches_as_in_a_shell_and_a_folder_matches_with_its_content(
    glob: str, matching: list[str], others: list[str]
) -> None:
    assert [name for name in matching if not globs.matches(glob, name)] == []
    assert [name for name in others if globs.matches(glob, name)] == []


def test_matching_many_wildcard_folders_takes_no_exponential_time() -> None:
    assert not globs.matches("/".join(["**", "a"] * 40), "/".join(["a"] * 39 + ["b"] * 40))


@pytest.mark.parametrize("glob", ["", "/etc/passwd", "../x", "out/../../x", "a\nb", "a\0b", "x" * 300, "\udcff"])
def test_a_glob_that_leads_out_of_the_folder_or_cannot_match_is_an_error(glob: str) -> None:
    with pytest.raises(UsageError, match="--fetch"):
        globs.check(["fine", glob])


def test_too_many_globs_are_an_error() -> None:
    globs.check(["*"] * globs.MAX_GLOBS)
    with pytest.raises(UsageError, match="more than the limit"):
        globs.check(["*"] * (globs.MAX_GLOBS + 1))


@given(st.text(st.characters(codec="utf-8"), max_size=40), st.text("ab*?[]!./-", max_size=20))
def test_find_arguments_select_every_file_that_matches(name: str, glob: str) -> None:
    """`find_arguments` only narrows what a node lists; it never hides a file that matches."""
    if globs.fetch_problem(name) or not globs.matches(glob, name):
        return
    words = [word for word in globs.find_arguments([glob]) if word not in ("-o", "-path")]
    roots = [word.removesuffix("/*").replace("\\\\", "\\") for word in words]
    assert any(f"./{name}" == root or f"./{name}".startswith(f"{root}/") for root in roots)


def test_parse_listing_ignores_lines_in_another_format() -> None:
    output = b"f 12 ./a b\nf x ./bad\nf 3 /etc/passwd\nnoise\n\nf 0 ./\xff\nd ./folder\no ./out\ns ./fifo\nf 7 ./cut"
    found = globs.parse_listing(output)
    assert found.files == {"a b": 12, "\udcff": 0, "cut": 7}
    assert found.unfetchable.keys() == {"folder", "out", "fifo"}
    assert "cut" not in globs.parse_listing(output, truncated=True).files


def test_files_that_cannot_be_fetched_have_warnings_and_the_others_are_chosen() -> None:
    listing = Listing(
        {"out/a": 1, "out/b\nc": 1, "out/\udcff": 1, "../x": 1, "/abs": 1, "else": 1},
        {"out/link": "is a link out of the run's folder"},
    )
    chosen, warnings = globs.choose(listing, ["out", ".", "none/*"], 100)
    assert chosen == {"out/a": 1, "else": 1}
    text = "\n".join(warnings)
    assert "--fetch none/*: no file matches" in text
    assert all(words in text for words in ("out/link", "control character", "UTF-8", "'..'", "absolute"))
    assert all(warning.isprintable() for warning in warnings)


def test_files_above_the_limit_are_left_out_with_a_warning() -> None:
    chosen, warnings = globs.choose(Listing({"a": 60, "b": 50, "c": 40}, {}), ["*"], 100)
    assert chosen == {"a": 60, "c": 40}
    assert warnings == ("not fetched: b (50B): above the limit of 100B or 100,000 files",)
    many = globs.choose(Listing({f"{n:06}": 0 for n in range(globs.MAX_FILES + 7)}, {}, True), ["*"], 1)
    assert len(many.files) == globs.MAX_FILES
    assert "2 more" in many.warnings[-1]
    assert "too many files" in many.warnings[0]
