"""Java's main is found in any text, with any comments, strings and annotations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sshgrid import toolchains
from sshgrid.errors import UsageError
from sshgrid.toolchains import java_source
from tests.pure.toolchains.programs import is_refused, recipe_of

# --- Java ------------------------------------------------------------------------------------------------------------

MAIN = "public static void main(String[] args) { }"


@pytest.mark.parametrize(
    ("source", "package", "stem", "main"),
    [
        ("public class A { " + MAIN + " }", "", "A", "A"),
        ("package a.b . c;\npublic class A { " + MAIN + " }", "a.b.c", "A", "a.b.c.A"),
        ("class A { " + MAIN + " }", "", "prog", "A"),
        ("class A { } class B { " + MAIN + " }", "", "prog", "B"),
        ("public class A { } class B { " + MAIN + " }", "", "A", "B"),
        ("// class X { " + MAIN + " }\n/* class Y { " + MAIN + " } */ class B { " + MAIN + " }", "", "prog", "B"),
        ('class A { String s = "} class X { ' + MAIN + '"; } class B { ' + MAIN + " }", "", "prog", "B"),
        (
            'class A { String s = """\n } class X { " ' + MAIN + ' \\""" """; } class B { ' + MAIN + " }",
            "",
            "prog",
            "B",
        ),
        ("class A { char c = '\\''; char d = '\"'; char e = '{'; } class B { " + MAIN + " }", "", "prog", "B"),
        ('@X({"{", "}"}) @y.Z public final class A { ' + MAIN + " }", "", "A", "A"),
        ("@Deprecated\npackage p;\n@X(A.class) public class A { @Y(1) " + MAIN + " }", "p", "A", "p.A"),
        ("public record R(int x, @A({1}) int y) { " + MAIN + " }", "", "R", "R"),
        ("record R<T>(T x) { " + MAIN + " }", "", "prog", "R"),
        ("public enum E { A { void f() { } }, B; " + MAIN + " }", "", "E", "E"),
        ("public interface I { static void main(String... args) { } }", "", "I", "I"),
        ("public @interface N { } class M { " + MAIN + " }", "", "N", "M"),
        ("public sealed class S permits T { " + MAIN + " } non-sealed class T extends S { }", "", "S", "S"),
        ("public abstract class G<T extends Comparable<T>> implements I { " + MAIN + " }", "", "G", "G"),
        ("class A { class Inner { " + MAIN + " } } class B { " + MAIN + " }", "", "prog", "B"),
        ("class A { void f() { class L { " + MAIN + " } } } class B { " + MAIN + " }", "", "prog", "B"),
        (
            "class A { int main(String[] a) { return 1; } } class B { static public void main(final String a[]) { } }",
            "",
            "prog",
            "B",
        ),
        ("class A { static void main(int x) { } } class B { " + MAIN + " }", "", "prog", "B"),
        ("class A { void main() { } } class B { " + MAIN + " }", "", "prog", "B"),
        ("class A { } class B { void main() { } }", "", "prog", "B"),
        ("class A { Runnable r = () -> { }; static final int[] X = { 1, 2 }; " + MAIN + " }", "", "prog", "A"),
        ("import a.b.*;\nimport static c.D.main;\nclass A { " + MAIN + " throws Exception { } }", "", "prog", "A"),
        ("class A { static void main(java.lang.String[] a) throws E { } }", "", "prog", "A"),
        ("\ufeffpublic class A { " + MAIN + " }", "", "A", "A"),
        ("public class \u00c4rger { " + MAIN + " }", "", "\u00c4rger", "\u00c4rger"),
        ("void main() { System.out.println(1); }", "", "prog", "prog"),
        ("record P(int x) { }\nvoid main() { }\nclass Q { }", "", "prog", "prog"),
        ("", "", "prog", "prog"),
        ("public class", "", "prog", "prog"),
        ("class A {", "", "prog", "A"),
        ("}}} class A { " + MAIN + " }", "", "prog", "A"),
    ],
)
def test_package_file_name_and_main_of_a_java_file_are_found(source: str, package: str, stem: str, main: str) -> None:
    assert java_source.find_main(source.encode(), "prog.java") == java_source.JavaSource(package, stem, main)


def test_a_java_file_is_placed_where_javac_expects_it_and_messages_show_the_user_s_name() -> None:
    recipe = recipe_of("java", "my prog.java", source=b"package a.b; public class Main { }")
    assert [path for path, _ in recipe.layout] == ["a/b/Main.java"]
    assert recipe.compile[1][-1] == "a/b/Main.java"
    assert recipe.run[-1] == b"a.b.Main"
    said = b"a/b/Main.java:3: error: x\n  DomaMain.java xa/b/Main.java a/b/Main.javax\n"
    assert toolchains.restore_names(said, recipe) == (
        b"my prog.java:3: error: x\n  DomaMain.java xa/b/Main.java a/b/Main.javax\n"
    )


def test_a_java_file_does_not_overwrite_another_of_the_same_name() -> None:
    recipe = recipe_of("java", "x.java", "A.java", source=b"public class A { }")
    assert [path for path, _ in recipe.layout] == ["A.java", "entry/A.java"]


def test_a_well_named_java_file_stays_where_it_is() -> None:
    recipe = recipe_of("java", "src/a/A.java", source=b"package a; public class A { }")
    assert [path for path, _ in recipe.layout] == ["src/a/A.java"]
    assert recipe.renamed == ()


_java_words = st.sampled_from(
    [
        *[
            "class",
            "record",
            "enum",
            "interface",
            "@",
            "public",
            "static",
            "void",
            "main",
            "(",
            ")",
            "{",
            "}",
            "String",
            "[]",
            ";",
            "package",
            "a.b",
            "A",
        ],
        *"\"'\\.=\n ",
        "@interface",
        "/*",
        "*/",
        "//",
        '"' * 3,
    ]
)
_java_text = st.one_of(st.text(), st.lists(_java_words, max_size=60).map(" ".join), st.lists(_java_words).map("".join))


@given(_java_text, st.text(max_size=20))
def test_any_java_text_gives_a_recipe_or_a_usage_error(text: str, stem: str) -> None:
    source = text.encode("utf-8", "surrogatepass")
    try:
        recipe = recipe_of("java", f"{stem}.java", source=source)
    except UsageError:
        assert is_refused(f"{stem}.java")
        return
    ((path, _),) = recipe.layout
    toolchains.check_name(path)
    assert path.endswith(".java")
    assert recipe == recipe_of("java", f"{stem}.java", source=source)


@given(st.binary(max_size=400))
def test_any_bytes_are_read_as_java(source: bytes) -> None:
    assert java_source.find_main(source, "x.java").main


def test_a_long_hostile_java_file_is_read_in_time_that_grows_with_its_length_only() -> None:
    for piece in ('"', "/*", '"""\\', "(", "{", "@", "class A ", "'"):
        assert java_source.find_main((piece * 100_000).encode(), "x.java").stem
