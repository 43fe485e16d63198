"""The folder of a run, and what it says about itself.

A workdir W holds config.json (the resolved config), run.json (where the dataset is, consent, times), dataset/, cache/,
checkpoints/, metrics.jsonl, previews/, avatar/, report.html, report.json and comparison.mp4; import/ where an avatar
was imported.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tkjax import contract
from tkjax.errors import UserError
from tkjax.host import stored
from tkjax.host.files import write_atomic

DATASET = "dataset"
REMEDY = "remove it and run the command again"


def read_facts(workdir: Path) -> dict[str, Any]:
    """The facts of run.json, none where there is no such file."""
    path = workdir / "run.json"
    if not path.is_file():
        return {}
    facts = stored.read_json(path, REMEDY)
    for name, kind in (("dataset", str), ("video", str), ("consent", dict)):
        if name in facts and not (isinstance(facts[name], kind) and facts[name] != "" and "\0" not in facts[name]):
            raise UserError(f"{path} is damaged ({name} is {str(facts[name])[:80]!r}); {REMEDY}")
    statement = facts.get("consent", {}).get("statement")
    if not isinstance(statement, str | None):
        raise UserError(f"{path} is damaged (consent.statement is {str(statement)[:80]!r}); {REMEDY}")
    return facts


def update_facts(workdir: Path, **facts: Any) -> dict[str, Any]:
    """Merge facts into run.json."""
    merged = {**read_facts(workdir), **facts}
    write_atomic(workdir / "run.json", (json.dumps(merged, indent=2) + "\n").encode())
    return merged


def existing_workdir(workdir: str | os.PathLike) -> Path:
    """The folder of a run, which must be there."""
    path = Path(workdir)
    if not path.is_dir():
        raise UserError(f"--workdir: there is no folder {path}")
    return path


def dataset_of(workdir: Path, given: str | os.PathLike | None = None) -> Path:
    """The dataset of a run: the one given, else the one the run was trained on, else WORKDIR/dataset."""
    if given:
        path = Path(given)
        if not path.is_dir():
            raise UserError(f"--dataset: there is no folder {path}")
        if not (path / contract.MANIFEST).is_file():
            raise UserError(f"--dataset: {path} holds no dataset ({contract.MANIFEST} is missing)")
        return path
    stored = read_facts(workdir).get("dataset")
    path = Path(os.path.normpath(workdir / stored)) if stored else workdir / DATASET
    if not (path / contract.MANIFEST).is_file():
        raise UserError(
            f"{workdir} has no dataset at {path}; name one with --dataset, or make one with --mode=preprocess"
        )
    return path


def stop_on_failures(dataset: Path, accept: Sequence[str]) -> None:
    """UserError where the dataset's own checks say that it failed and nobody accepted that, then or now."""
    path = dataset / contract.MANIFEST
    rows = contract.parse_manifest(path.read_bytes(), path).get("checks", [])
    failed = [r for r in rows if r["verdict"] == "fail" and not r.get("accepted") and r["stage"] not in accept]
    if failed:
        said = "; ".join(f"{r['stage']}: {r.get('message') or r['measure']}" for r in failed)
        names = ",".join(dict.fromkeys([*accept, *(r["stage"] for r in failed)]))
        raise UserError(f"{dataset} failed its checks: {said}; use it all the same with --accept={names}")


def preprocess_seconds(workdir: Path) -> float | None:
    """What the stages took when they ran, as preprocessing wrote it down."""
    path = workdir / "preprocess" / "report.json"
    if not path.is_file():
        return None
    seconds = stored.read_json(path, "remove it").get("seconds")
    return float(seconds) if type(seconds) in (int, float) else None
