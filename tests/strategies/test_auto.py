"""Auto: what is expected of a strategy by hand, and the choice that follows from it."""

import copy
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erasus_pl.strategies import Auto, EUk, FineTune
from erasus_pl.strategies.auto import distance, excess, expected


def case(name="here", request="class", train=1000, forget=100, parameters=5000, **more):
    sizes = {"train": train, "forget": forget, "parameters": parameters}
    return {"name": name, "task": "ClassificationTask", "request": request, **sizes, **more}


def run(gap, cost=0.2, **settings):
    return {"gap": gap, "cost": cost, "settings": settings}


def test_distance_is_of_logarithms_within_a_kind():
    assert distance(case(), case(name="same sizes")) == 0
    assert distance(case(), case(train=10_000)) == pytest.approx(1 / math.sqrt(3))
    assert math.isinf(distance(case(), case(request="spread")))


@given(gap=st.floats(0, 1), floor=st.floats(0, 0.1), original=st.floats(0.2, 1))
def test_excess_is_0_at_the_floor_and_1_for_doing_nothing(gap, floor, original):
    assert excess(floor, floor, original) == 0
    assert excess(original, floor, original) == pytest.approx(1)
    assert excess(gap, floor, original) >= 0
    assert excess(gap, original, original) == 0


def test_expected_by_hand():
    near = case("near", floor=0.01, original=0.21, runs={"A": run(0.11, 0.4), "B": run(0.01, 0.9)})
    far = case("far", train=10**6, forget=10**5, parameters=5 * 10**6, floor=0.0, original=0.5,
               runs={"A": run(0.5, 0.1)})  # fmt: skip
    other = case("other", request="spread", floor=0.0, original=0.1, runs={"C": run(0.0)})
    found = expected(case(), [near, far, other])
    assert found.keys() == {"A", "B"}
    assert distance(case(), far) == pytest.approx(3)
    weight = 1 / 16
    assert found["A"][0] == pytest.approx((0.5 + weight * 1.0) / (1 + weight))
    assert found["A"][1] == pytest.approx((0.4 + weight * 0.1) / (1 + weight))
    assert found["A"][2] is near
    assert found["B"] == (0.0, 0.9, near)


RUNS = {"EUk": run(0.0, 0.8, k=1), "FineTune": run(0.05, 0.3, lr=0.02, epochs=4, epoch="retain"),
        "GradientAscent": run(0.2, 0.1)}  # fmt: skip


@pytest.fixture
def evidence(tmp_path):
    def write(cases):
        path = tmp_path / "evidence.json"
        path.write_text(json.dumps({"cases": cases}))
        return str(path)

    return write


def recorded(**changed):
    return [case("recorded", request="spread", floor=0.0, original=0.2, runs=RUNS) | changed]


def test_takes_the_best_within_the_budget_with_its_settings_and_says_why(
    tiny, fit, evidence, capsys
):
    path = evidence(recorded(task=type(tiny.task).__name__))
    auto = Auto(copy.deepcopy(tiny.task), evidence=path)
    data = tiny.data()
    fit(auto, data, max_epochs=-1)
    out = capsys.readouterr().out
    assert auto.reason in out
    assert "FineTune" in auto.reason
    assert "leaves 25 %" in auto.reason
    assert "nearest case: recorded" in auto.reason
    assert data.epoch == "forget"
    alone = FineTune(copy.deepcopy(tiny.task), optimizer=auto.stages[0].optimizer)
    fit(alone, tiny.data(epoch="retain"), max_epochs=4)
    for key, value in alone.state_dict().items():
        assert value.equal(auto.state_dict()[key]), key
    (group,) = alone.optimizers().optimizer.param_groups
    assert (group["lr"], group["momentum"]) == (0.02, 0.9)


def test_a_larger_budget_buys_a_nearer_model(tiny, fit, evidence):
    path = evidence(recorded(task=type(tiny.task).__name__))
    auto = Auto(copy.deepcopy(tiny.task), evidence=path, budget=1.0)
    fit(auto, tiny.data(), max_epochs=2)
    assert isinstance(auto.stages[0], EUk)
    assert auto.epochs == [2]


def test_says_so_where_nothing_is_recorded(tiny, fit, evidence):
    auto = Auto(copy.deepcopy(tiny.task), evidence=evidence(recorded(task="Another")))
    fit(auto, tiny.data(), max_epochs=1)
    assert "no recorded run" in auto.reason
    assert "NegGradPlus" in auto.reason


@pytest.mark.parametrize("tiny", ["text"], indirect=True)
def test_what_the_task_cannot_do_is_not_chosen(tiny, fit, evidence):
    """Neither task has convolutions, and the sequences no vector of outputs."""
    runs = {"CT": run(0.0), "FineTune": run(0.1)}
    if tiny.name == "text":
        runs["UNSIR"] = run(0.0)
    path = evidence(recorded(task=type(tiny.task).__name__, runs=runs))
    auto = Auto(copy.deepcopy(tiny.task), evidence=path)
    fit(auto, tiny.data(), max_epochs=1)
    assert isinstance(auto.stages[0], FineTune)


@pytest.mark.parametrize("content", ["", "[]", "{}", None])
def test_refuses_what_is_no_record(content, tiny, tmp_path):
    path = tmp_path / "evidence.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=r"`evidence`: .* is no record of runs"):
        Auto(tiny.task, evidence=str(path))
    with pytest.raises(ValueError, match="`budget` must be above 0, got 0"):
        Auto(tiny.task, budget=0)


def test_the_record_of_the_package_names_strategies_and_settings_there_are():
    import erasus_pl.strategies as room
    from erasus_pl.strategies.auto import _read

    cases = _read(None)
    assert {c["request"] for c in cases} == {"class", "spread"}
    for found in cases:
        assert 0 <= found["floor"] < found["original"]
        for name, values in found["runs"].items():
            accepted = set(room.__dict__[name].__init__.__code__.co_varnames)
            assert set(values["settings"]) - {"lr", "epochs", "epoch"} <= accepted
