"""scripts/draw_layout.py: the folders with their imports, the floors, and the lines of the picture."""

from __future__ import annotations

import importlib.util
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_layout", ROOT / "scripts" / "draw_layout.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["draw_layout"] = module  # its dataclass looks up its module
    spec.loader.exec_module(module)
    return module


script = _script()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package: cli imports queue inside a function, and model only for the type checker."""
    files = {
        "__init__.py": "from sample import cli",
        "model.py": '"""What all parts know. More."""\n',
        "queue/__init__.py": '"""The queue."""\nfrom sample.model import Job\n',
        "queue/store.py": "import sample.model\nimport json\n",
        "cli.py": "def run():\n    from sample import queue\nif TYPE_CHECKING:\n    from sample.model import Job\n",
        "remote/node.sh": "# shell\necho\n",
    }
    root = tmp_path / "sample"
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def test_rooms_are_folders_and_single_modules_with_their_imports(package: Path) -> None:
    rooms = script.rooms(package)
    assert {name: room.imports for name, room in rooms.items()} == {
        "cli": {"queue"},
        "model": set(),
        "queue": {"model"},
        "remote": set(),
    }
    assert (rooms["queue"].modules, rooms["queue"].lines, rooms["queue"].purpose) == (2, 4, "The queue")
    assert rooms["model"].purpose == "What all parts know"


@pytest.mark.parametrize(
    ("imports", "floors"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": set()}, {"a": 2, "b": 1, "c": 0}),
        ({"a": {"b", "c"}, "b": {"c"}, "c": set(), "d": {"c"}}, {"a": 2, "b": 1, "c": 0, "d": 1}),
        ({"a": {"b", "c"}, "b": {"a"}, "c": set()}, {"a": 1, "b": 1, "c": 0}),
        ({"top": {"a"}, "a": {"b"}, "b": {"a", "c"}, "c": set()}, {"top": 2, "a": 1, "b": 1, "c": 0}),
    ],
)
def test_a_floor_is_above_its_imports_and_a_cycle_is_one_floor(
    imports: dict[str, set[str]], floors: dict[str, int]
) -> None:
    assert script.floors(imports) == floors


def test_an_import_that_follows_from_others_is_not_drawn() -> None:
    imports = {"a": {"b", "c"}, "b": {"c"}, "c": set()}
    assert script.needed(imports) == {"a": {"b"}, "b": {"c"}, "c": set()}


def test_the_picture_shows_every_folder_of_the_package() -> None:
    drawing = ET.fromstring(script.svg(script.rooms()))
    shown = {text.text for text in drawing.iter("{http://www.w3.org/2000/svg}text") if text.get("class") == "n"}
    package = ROOT / "sshgrid"
    folders = {path.name for path in package.iterdir() if any(path.glob("*.py")) or any(path.glob("*.sh"))}
    modules = {path.stem for path in package.glob("*.py")} - {"__init__", "__main__"}
    assert shown == folders | modules


def test_the_hand_drawn_picture_names_only_folders_that_exist() -> None:
    drawing = ET.fromstring((ROOT / "docs" / "_static" / "architecture.svg").read_text(encoding="utf-8"))
    texts = [text.text or "" for text in drawing.iter("{http://www.w3.org/2000/svg}text") if text.get("class") == "c"]
    names = [word for text in texts for word in text.split() if word.endswith(("/", ".py"))]
    assert "scheduler/" in names
    assert [name for name in names if not (ROOT / "sshgrid" / name).exists()] == []
