import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from erasus_pl.__main__ import main
from erasus_pl.commands import catalogue as module
from erasus_pl.commands._source import Room, SourceError
from erasus_pl.commands.catalogue import KINDS, catalogue

ROOT = Path(module.__file__).parents[2]


@pytest.fixture
def room(tmp_path):
    def write(**files):
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(text)
        return tmp_path

    return write


def test_says_of_strategies_what_the_classes_say():
    import erasus_pl.strategies as package
    import erasus_pl.tasks as tasks
    from erasus_pl.strategies import Strategy

    every = {name: getattr(package, name) for name in package.__all__}
    classes = {name: value for name, value in every.items() if Strategy in value.__mro__[1:]}
    found = {entry["name"]: entry for entry in catalogue()["strategies"]}
    assert found.keys() == classes.keys()
    for name, entry in found.items():
        cls = classes[name]
        assert entry["form"] == ("one-shot" if cls.edit is not Strategy.edit else "iterative")
        assert entry["paper"] == cls.paper
        assert entry["requires"] == list(cls.requires)
        assert entry["needs_original"] == cls.needs_original
        assert entry["loader_mode"] == cls.loader_mode
        assert entry["summary"] == cls.__doc__.partition("\n")[0].strip()
        fits = {n for n in tasks.__all__ if set(cls.requires) <= set(getattr(tasks, n).provides)}
        assert set(entry["tasks"]) == fits


def test_says_of_selectors_tasks_and_data_what_the_classes_say():
    import datamodules
    import erasus_pl.selectors as selectors
    import erasus_pl.tasks as tasks
    from datamodules import UnlearningDataModule
    from erasus_pl.selectors import Selector

    found = catalogue()
    picks = {entry["name"]: entry for entry in found["selectors"]}
    assert picks.keys() == {
        n for n in selectors.__all__ if Selector in getattr(selectors, n).__mro__[1:]
    }
    for name, entry in picks.items():
        cls = getattr(selectors, name)
        assert entry["requires"] == list(cls.requires)
        assert (entry["form"] == "scores") == (cls.scores is not Selector.scores)
    assert {e["name"] for e in found["tasks"]} == set(tasks.__all__)
    for entry in found["tasks"]:
        assert entry["provides"] == list(getattr(tasks, entry["name"]).provides)
    assert {e["name"] for e in found["datamodules"]} == {
        n
        for n in datamodules.__all__
        if UnlearningDataModule in getattr(datamodules, n).__mro__[1:]
    }


def test_every_class_path_can_be_imported():
    from importlib import import_module

    for entries in catalogue().values():
        for entry in entries:
            package, _, name = entry["class_path"].rpartition(".")
            assert getattr(import_module(package), name).__name__ == entry["name"]


def test_attacks_are_attacks_not_their_helpers_and_cite_a_paper():
    found = {entry["name"]: entry for entry in catalogue()["attacks"]}
    assert "membership_attack" in found
    assert "auc" not in found
    assert found["membership_attack"]["paper"]["arxiv"] == "2112.03570"


def test_json_has_the_five_kinds_in_order_and_nothing_else(capsys):
    assert main(["catalogue", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == list(KINDS)


def test_one_kind_alone(capsys):
    assert main(["catalogue", "selectors", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["selectors"]


@pytest.mark.parametrize("width", ["30", "80", "200"])
def test_table_fits_the_width_and_names_everything(width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", width)
    assert main(["catalogue"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= int(width)
    for entries in catalogue().values():
        assert all(entry["name"] in out for entry in entries)


def test_starts_without_torch_and_in_half_a_second():
    code = "import sys; from erasus_pl.__main__ import main; main(['catalogue', '--json']); "
    code += "sys.exit(any(m in sys.modules for m in ('torch', 'lightning', 'numpy', 'rich')))"
    begun = os.times().children_user
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert os.times().children_user - begun < 0.5


def test_unknown_kind_is_one_line_with_the_nearest(capsys):
    assert main(["catalogue", "selector"]) == 2
    assert capsys.readouterr().err == (
        "error: `KIND` must be one of strategies, selectors, attacks, tasks, datamodules, got "
        "'selector'; did you mean 'selectors'?\n"
    )


def test_unknown_option_is_one_line(capsys):
    assert main(["catalogue", "--jsn"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_help_explains(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["catalogue", "--help"])
    assert stop.value.code == 0
    assert "--json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("class X:\n    def broken(\n", "line 2"),
        ("class X: ...\n", "no `__all__`"),
        ("__all__ = list('X')\nclass X: ...\n", "`__all__` of"),
    ],
)
def test_a_broken_file_is_named(text, said, room):
    with pytest.raises(SourceError, match=said) as error:
        Room(room(method=text), "house.room")
    assert "method.py" in str(error.value)


def test_a_broken_file_is_one_line_and_a_status(room, monkeypatch, capsys):
    folder = room(method="class X(\n")
    monkeypatch.setattr(module, "_folder", lambda _: folder)
    assert main(["catalogue"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_a_private_file_needs_no_all(room):
    assert Room(room(_shared="def helper(): ...\n"), "house.room").public() == []


def test_values_and_methods_are_inherited_within_a_room(room):
    folder = room(
        base="__all__ = ['Base']\nclass Base:\n    mode: str = 'paired'\n    def edit(self): ...\n",
        one="__all__ = ['One']\nclass One(house.Base):\n    mode = 'single'\n"
        "    def edit(self): ...\n",
        two="__all__ = ['Two']\nclass Two(One):\n    'Does two things.\\n\\nMore.'\n",
    )
    found = Room(folder, "house.room")
    one, two = found.subclasses("Base")
    assert (one.name, two.name) == ("One", "Two")
    assert two.summary == "Does two things."
    assert found.value(two, "mode", None) == "single"
    assert found.value(two, "absent", 7) == 7
    assert found.defines(two, "edit", below="Base")
    assert not found.defines(found.public()[0], "edit", below="Base")


def test_a_value_that_must_be_computed_is_refused(room):
    folder = room(one="__all__ = ['One']\nclass One:\n    requires = tuple('ab')\n")
    found = Room(folder, "house.room")
    with pytest.raises(SourceError, match=r"`requires` of house\.room\.one\.One must be a literal"):
        found.value(found.public()[0], "requires", ())


@pytest.mark.parametrize("kind", ["strategies", "selectors"])
def test_every_entry_has_a_sentence_and_says_where_it_is_from(kind):
    for entry in catalogue()[kind]:
        assert entry["summary"].endswith("."), entry["name"]
        assert isinstance(entry["paper"], dict)


def test_reading_runs_nothing(room):
    text = "__all__ = ['One']\nraise SystemExit('it ran')\nclass One: ...\n"
    assert [d.name for d in Room(room(one=text), "house.room").public()] == ["One"]
