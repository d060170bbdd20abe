"""Evidence: original, unlearned and retrained model side by side, as plain data.

The classes here need numpy and the standard library only, so that a report can be read and
rewritten on a machine that has neither torch nor the trained models.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from erasus_pl.evaluation._store import replace_all, strict_json

__all__ = ["Evidence", "Measure", "ModelRecord", "Outcome", "Verdict"]

Array = npt.NDArray[np.float64]
Outcome = Literal["forgotten", "not forgotten", "inconclusive"]

_FORMAT = "erasus_pl.evidence/1"
_ARRAYS = "evidence.npz"
_ARRAY_FIELDS = ("scores", "losses", "correct")


@dataclass
class ModelRecord:
    """One model, measured on every split.

    Splits are ``"forget"``, ``"retain"``, ``"test"`` and ``"holdout"``; a split that was not
    measured is absent.

    Attributes:
        name: ``"original"``, ``"unlearned"``, ``"retrained"``, ``"retrained (seed 2)"``.
        seconds: Wall-clock seconds it took to train, unlearn or retrain; None when unknown.
        scores: Split to ``(n,)`` logit-scaled confidence ``log p_y - log(1 - p_y)``.
        losses: Split to ``(n,)`` per-sample loss, in nats.
        correct: Split to ``(n,)`` correctness in [0, 1].
        kl_to_retrained: Split to the mean of ``KL(p_retrained || p_model)`` in nats.
    """

    name: str
    seconds: float | None = None
    scores: dict[str, Array] = field(default_factory=dict)
    losses: dict[str, Array] = field(default_factory=dict)
    correct: dict[str, Array] = field(default_factory=dict)
    kl_to_retrained: dict[str, float | None] = field(default_factory=dict)


@dataclass
class Measure:
    """One number of the report.

    Attributes:
        name: Short name, the same for every model.
        value: The number; None where it cannot be computed.
        definition: One sentence that says what the number is and how to read it.
        low: Lower end of the interval, where there is one.
        high: Upper end of the interval, where there is one.
    """

    name: str
    value: float | None
    definition: str
    low: float | None = None
    high: float | None = None


@dataclass
class Verdict:
    """What the numbers say, in words.

    Attributes:
        outcome: ``"forgotten"``, ``"not forgotten"`` or ``"inconclusive"``.
        headline: One sentence in plain words.
        reasons: What the outcome rests on: the tests made and their intervals.
        statistics: The numbers behind the reasons.
    """

    outcome: Outcome
    headline: str
    reasons: list[str] = field(default_factory=list)
    statistics: dict[str, float] = field(default_factory=dict)


@dataclass
class Evidence:
    """Everything a report shows.

    Attributes:
        run: Name, seed, versions, git revision, machine, config text, start time.
        manifest: Dataset fingerprint, request, counts, sha256 of the forget ids.
        coreset: ``size``, ``of``, ``selector``, ``seconds``; None when all of the forget set was
            used.
        models: Records under ``"original"``, ``"unlearned"``, ``"retrained"``, ``"retrained_2"``;
            the retrained ones may be absent.
        measures: Model key to its measures, in one fixed order.
        verdict: What the numbers say.
        curves: Name to ``(step, value)`` points of the unlearning run.
        notes: Assumptions and caveats, one sentence each.
    """

    run: dict[str, Any]
    manifest: dict[str, Any]
    coreset: dict[str, Any] | None
    models: dict[str, ModelRecord]
    measures: dict[str, list[Measure]]
    verdict: Verdict
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        """Return everything but the per-sample arrays as strict JSON.

        Numbers that JSON lacks become the strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``.
        `from_json` turns them back wherever this class declares a number; inside the free-form
        `run`, `manifest` and `coreset` they stay strings.

        Raises:
            TypeError: A free-form field holds an object that has no JSON form.
        """
        return strict_json(self._document())

    @classmethod
    def from_json(cls, text: str, arrays: Mapping[str, Array] | None = None) -> Evidence:
        """Rebuild evidence from `to_json`'s text.

        Args:
            text: The JSON document.
            arrays: ``"<model>/<field>/<split>"`` to ``(n,)``, as stored in ``evidence.npz``.
                Without it the records have no per-sample values.

        Raises:
            ValueError: The text is not JSON, or not an evidence document.
        """
        document = json.loads(text)
        found = document.get("format") if isinstance(document, dict) else type(document).__name__
        if found != _FORMAT:
            msg = f"not an evidence document: expected format {_FORMAT!r}, got {found!r}"
            raise ValueError(msg)
        models = {
            key: ModelRecord(
                name=model["name"],
                seconds=_number(model["seconds"]),
                kl_to_retrained={k: _number(v) for k, v in model["kl_to_retrained"].items()},
            )
            for key, model in document["models"].items()
        }
        for name, values in (arrays or {}).items():
            key, kind, split = name.rsplit("/", 2)
            getattr(models[key], kind)[split] = values
        measures = {
            key: [
                Measure(row["name"], _number(row["value"]), row["definition"], *interval)
                for row in rows
                for interval in [map(_number, row["interval"])]
            ]
            for key, rows in document["measures"].items()
        }
        verdict = Verdict(**document["verdict"])
        verdict.statistics = {k: float(v) for k, v in verdict.statistics.items()}
        return cls(
            run=document["run"],
            manifest=document["manifest"],
            coreset=document["coreset"],
            models=models,
            measures=measures,
            verdict=verdict,
            curves={k: [(int(x), float(y)) for x, y in v] for k, v in document["curves"].items()},
            notes=document["notes"],
        )

    def write(self, run_dir: str | os.PathLike[str]) -> Path:
        """Write report.json, report.md, report.html and evidence.npz into `run_dir`.

        All four are rendered, then written under temporary names in the same folder, then
        renamed. A failure before the renaming (a full disk, a plot that cannot be drawn) leaves
        an earlier report untouched.

        Returns:
            The path of report.html.
        """
        from erasus_pl.evaluation.report import to_html, to_markdown

        arrays = self._arrays()
        document = self._document()
        document["arrays"] = {"file": _ARRAYS, "sha256": hashlib.sha256(arrays).hexdigest()}
        folder = Path(run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        replace_all(
            folder,
            {
                _ARRAYS: arrays,
                "report.json": strict_json(document).encode("utf-8", "backslashreplace"),
                "report.md": to_markdown(self).encode("utf-8", "replace"),
                "report.html": to_html(self).encode("utf-8", "replace"),
            },
        )
        return folder / "report.html"

    @classmethod
    def read(cls, run_dir: str | os.PathLike[str]) -> Evidence:
        """Read what `write` left in `run_dir`.

        Raises:
            FileNotFoundError: There is no report.json, or the arrays it names are missing.
            ValueError: report.json is not an evidence document, or the arrays beside it belong
                to another report.
        """
        folder = Path(run_dir)
        text = (folder / "report.json").read_text(encoding="utf-8")
        evidence = cls.from_json(text)
        named = json.loads(text).get("arrays")
        if named is None:
            return evidence
        path = folder / _ARRAYS
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != named["sha256"]:
            msg = f"{path} does not belong to the report.json beside it: evaluate again"
            raise ValueError(msg)
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            return cls.from_json(text, dict(stored))

    def _document(self) -> dict[str, Any]:
        models = {
            key: {
                "name": record.name,
                "seconds": record.seconds,
                "samples": {split: len(values) for split, values in record.correct.items()},
                "kl_to_retrained": record.kl_to_retrained,
            }
            for key, record in self.models.items()
        }
        measures = {
            key: [
                {
                    "name": m.name,
                    "value": m.value,
                    "interval": [m.low, m.high],
                    "definition": m.definition,
                }
                for m in rows
            ]
            for key, rows in self.measures.items()
        }
        return {
            "format": _FORMAT,
            "verdict": asdict(self.verdict),
            "run": self.run,
            "manifest": self.manifest,
            "coreset": self.coreset,
            "measures": measures,
            "models": models,
            "curves": self.curves,
            "notes": self.notes,
        }

    def _arrays(self) -> bytes:
        arrays = {
            f"{key}/{kind}/{split}": np.asarray(values)
            for key, record in self.models.items()
            for kind in _ARRAY_FIELDS
            for split, values in getattr(record, kind).items()
        }
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, values in arrays.items():
                with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as entry:
                    np.lib.format.write_array(entry, values, allow_pickle=False)
        return buffer.getvalue()


def _number(value: float | str | None) -> float | None:
    return None if value is None else float(value)
