import sys
from pathlib import Path

import pytest

from erasus_pl.__main__ import main
from erasus_pl._extras import require

pytestmark = pytest.mark.smoke


def test_an_installed_module_is_returned():
    assert require("json.decoder", "tabular") is sys.modules["json.decoder"]


@pytest.mark.parametrize("module", ["no_such_thing", "no_such_thing.inner"])
def test_a_missing_module_names_the_extra(module):
    with pytest.raises(
        ImportError, match=rf"`{module}`.*pip install 'erasus-pl\[graph\]'"
    ) as caught:
        require(module, "graph")
    assert not isinstance(caught.value, ModuleNotFoundError)
    assert caught.value.name == "no_such_thing"


def test_a_missing_submodule_of_an_installed_package_names_the_extra():
    with pytest.raises(ImportError, match=r"pip install 'erasus-pl\[llm\]'"):
        require("json.no_such_thing", "llm")


def test_a_module_that_lacks_something_else_says_what(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import something_else_entirely\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="something_else_entirely"):
        require("half_installed", "rl")


def test_a_missing_adapter_library_names_the_extra_that_brings_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "peft", None)
    conf = Path(__file__).parents[1] / "conf"
    overlay = ["--config", str(conf / "restrict" / "low_rank.yaml")]
    assert main(["fit", "--config", str(conf / "quickstart.yaml"), *overlay]) == 2
    err = capsys.readouterr().err
    assert err == (
        "error: 'erasus_pl.mechanisms.LowRank' needs `peft`: pip install 'erasus-pl[llm]'\n"
    )
