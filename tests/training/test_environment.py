"""What `fasthg doctor` and `env.json` tell of a machine and of how a training was started."""

from __future__ import annotations

import datetime
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from fasthg.ops import OpPath
from fasthg.training import environment
from fasthg.training.environment import PACKAGES, describe_start, summarise, verdict

COMPILED = [
    OpPath("a", "cpu", "native", "g++ 12"),
    OpPath("b", "cpu", "torch", "torch is faster"),
    OpPath("a", "cuda", "torch reference", "no CUDA device"),
    OpPath("b", "cuda", "torch", "cuDNN"),
]
PLAIN = [OpPath("a", "cpu", "torch reference", "not built")]


def test_operators_are_summed_up_by_device() -> None:
    assert summarise(COMPILED) == {
        "cpu": "1 compiled, 1 by torch itself, which is faster (g++ 12)",
        "cuda": "none compiled: no CUDA device",
    }


def test_the_verdict_is_of_the_device_that_trains() -> None:
    assert verdict(False, COMPILED) == "CPU only; all kernels compiled"
    assert verdict(False, PLAIN).startswith("CPU only; no compiled kernels")
    assert verdict(False, PLAIN).endswith("not built")
    assert verdict(True, COMPILED).startswith("GPU; no compiled kernels")
    assert verdict(True, [OpPath("a", "cuda", "native", "")]) == "GPU; all kernels compiled"


def test_versions_of_all_that_an_extra_brings_are_told(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    extras = {key: wants for key, wants in project["optional-dependencies"].items() if key != "dev"}
    wanted = [name for wants in [project["dependencies"], *extras.values()] for name in wants]
    names = {re.split(r"[^\w-]", name)[0] for name in wanted} - {"fasthg"}
    assert names == set(PACKAGES)


def test_a_start_is_told_and_earlier_ones_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "describe_environment", lambda: {"fasthg": "2"})
    monkeypatch.setattr(sys, "argv", ["fasthg", "train", "small"])
    first = describe_start()
    assert first["command"] == ["fasthg", "train", "small"]
    told = datetime.datetime.fromisoformat(first["date"])
    assert abs(datetime.datetime.now(datetime.UTC) - told) < datetime.timedelta(minutes=1)
    assert first["earlier"] == []
    third = describe_start(describe_start(first))
    assert [start["command"] for start in third["earlier"]] == [first["command"]] * 2
    # Of a run of an older version, which told less.
    assert describe_start({"fasthg": "1", "cpus": 2})["earlier"] == [{"fasthg": "1"}]


def test_the_checkout_is_told(tmp_path: Path) -> None:
    assert environment.checkout(tmp_path) is None
    file = tmp_path / "a.py"
    file.write_text("1")
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "one"]):
        subprocess.run(["git", "-C", tmp_path, *command], check=True)
    state = environment.checkout(tmp_path)
    assert state is not None and re.fullmatch("[0-9a-f]{40}", state["commit"])
    assert state["dirty"] is False
    file.write_text("2")
    assert environment.checkout(tmp_path) == {**state, "dirty": True}
