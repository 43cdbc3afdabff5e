"""`make gpu` as far as it runs without a GPU: stages, limits, results file, operators."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gpu
import gpu_check_ops
import pytest
import torch

from fasthg import ops


def python(name: str, code: str, limit: float = 60.0, **options: Any) -> gpu.Stage:
    return gpu.Stage(name, limit, [sys.executable, "-c", code], **options)


@pytest.mark.slow
def test_without_a_gpu_one_line_and_status_3(repository: Path) -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": ""}
    command = [sys.executable, str(repository / "tools" / "gpu.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == gpu.NO_GPU == 3
    assert done.stdout == "" and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("gpu: torch") and "no GPU" in done.stderr


def test_a_dry_run_lists_every_stage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "read_facts", lambda: {"problem": "no GPU"})
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--dry-run"])
    assert gpu.main() == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    names = [words[-1] for words in lines]
    assert {"build", "operators", "memcheck", "benchmarks", "compiled"} <= set(names)
    assert "tests/ops/test_bn_act.py" in names and len(set(names)) == len(names)
    # What nobody has measured comes first, and what results files have last.
    assert names[:3] == ["build", "profile", "captured-8"] and names[-1] == "training"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--dry-run", "--only", "biuld"])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "no stage biuld" in capsys.readouterr().err


def test_proofs_have_their_time_in_every_visit(tmp_path: Path) -> None:
    groups = gpu.list_groups(tmp_path)
    # Timed stages are alone.
    assert all(len(group) == 1 or not any(s.measures for s in group) for group in groups)
    proofs = [n for n, group in enumerate(groups) if not group[0].measures]
    assert [groups[n][0].name for n in proofs] == ["build", "operators"]
    longest = [max(stage.limit for stage in group) for group in groups[: proofs[-1] + 1]]
    assert sum(longest) <= gpu.LIMIT < 600
    assert all(stage.limit <= gpu.LIMIT for group in groups for stage in group)


@pytest.mark.slow
def test_every_row_that_a_stage_names_is_one(repository: Path, tmp_path: Path) -> None:
    """A name that no benchmark has would end its stage on the GPU at once."""
    stages = [stage for group in gpu.list_groups(tmp_path) for stage in group]
    names = [word for stage in stages for word in stage.command if "::" in word]
    assert len(names) > 30
    command = [*gpu.PYTEST, "--collect-only", *dict.fromkeys(names)]
    path = os.pathsep.join(str(repository / name) for name in ("", "benchmarks", "tests/support"))
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert f"{len(set(names))} tests collected" in done.stdout


def test_rows_are_told_with_their_classes() -> None:
    info = {"x fasthg": 1.25, "compiled in s": 61.5, "functions from a cache": 4}
    classes = {"norms": {"launches": 2, "us": 17129.0}, "other": {"launches": 1, "us": 10.0}}
    row = {"group": "step, cuda", "params": {"provider": "torch.compile"}, "extra_info": info}
    row |= {"stats": {"median": 0.02}}
    assert gpu.told(row).endswith("20 ms  1.25  compiled in 61.5 s, 4 functions from a cache")
    info["profile"] = {"ms of kernels": 17.139, "classes": classes}
    assert gpu.told(row).endswith("\n    17.139 ms of kernels: norms 17.13, other 0.01")


@pytest.mark.slow
def test_stages_are_judged_by_their_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("GPU_RESULTS", str(tmp_path))
    monkeypatch.setattr(gpu, "GRACE", 1.0)
    report = tmp_path / "stage" / "report.json"
    report.parent.mkdir()
    row = {"group": "x, cuda", "params": {"provider": "torch"}, "stats": {"median": 1.0}}
    content = {"machine_info": {"gpu": "x"}, "benchmarks": [{**row, "extra_info": {}}]}
    report.write_text(json.dumps(content))
    group = [
        python("good", "print('all well')", report=report),
        python("bad", "print('wrong'); raise SystemExit(4)"),
        python("import", "import absent_package"),
        python("typo", "import fasthg.absent"),
        python("crash", "import os; os.kill(os.getpid(), 11)"),
        python("late", "import time; time.sleep(60)", 3.0, measures=True),
        python("hung", "import time; time.sleep(60)", 3.0),
        python("needs", "", needs=("absent_package",)),
        python("unproved", "print('no summary')", summary=gpu.SUMMARY),
        python("proved", "print('= ERROR SUMMARY: 0 errors')", summary=gpu.SUMMARY),
        python("other", "print('Device not supported')", summary=gpu.SUMMARY),
    ]
    begin = time.monotonic()
    facts = {"gpu": {"name": "NVIDIA H200"}, "missing": []}
    assert not gpu.run([group, [python("path", f"print({sys.executable!r})")]], facts, 120)
    assert time.monotonic() - begin < 60
    (file,) = tmp_path.glob("nvidia-h200-*.json")
    kept = json.loads(file.read_text())
    results = {stage["name"]: stage for stage in kept["stages"]}
    failed = {name for name, stage in results.items() if stage["status"] == "FAILED"}
    assert failed == {"bad", "typo", "crash", "hung", "unproved"}
    skipped = {
        name: stage["note"] for name, stage in results.items() if stage["status"] == "skipped"
    }
    assert set(skipped) == {"import", "needs", "other"}
    assert skipped["import"] == skipped["needs"] == "not installed: absent_package"
    assert results["late"]["status"] == "stopped" and "signal 11" in results["crash"]["note"]
    assert results["proved"]["note"] == "ERROR SUMMARY: 0 errors"
    assert results["path"]["note"] == "python3"
    assert kept["passed"] is False and kept["benchmarks"] == content["benchmarks"]
    assert kept["commit_info"]["id"] and kept["machine_info"] == {"gpu": "x"}
    assert capsys.readouterr().out.splitlines()[-1] == str(file)


def test_without_kernels_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A build that fails, or none on a fresh machine, would time torch's operators as fasthg's."""
    monkeypatch.setenv("GPU_RESULTS", str(tmp_path))
    facts: dict[str, Any] = {"gpu": {"name": "x", "capability": "9.0"}, "missing": []}
    groups = [[python(gpu.BUILD, "")], [python("profile", "print('measured')")]]
    problems = [None, "no nvcc"]
    monkeypatch.setattr(gpu, "kernels_problem", lambda: problems.pop())
    assert not gpu.run(groups, facts, 60)
    said = capsys.readouterr().out
    assert "no nvcc" in said and "profile" not in said
    assert gpu.run(groups, facts, 60) and "profile" in capsys.readouterr().out
    ran: list[list[str]] = []
    monkeypatch.setattr(gpu, "read_facts", lambda: facts)
    monkeypatch.setattr(gpu, "run", lambda groups, *_: not ran.append([g[0].name for g in groups]))
    problems[:] = [None, "not built"]
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--only", "pieces"])
    assert gpu.main() == gpu.main() == 0
    assert ran == [["build", "pieces"], ["pieces"]]


def test_what_is_said_of_missing_kernels() -> None:
    """The answer of a process without a GPU."""
    problem = gpu.kernels_problem()
    assert problem is None or "CUDA" in problem or "extension" in problem


def test_the_build_is_for_the_gpu_at_hand_and_new_kernels_are_tested_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("FASTHG_CUDA_ARCH", raising=False)
    for capability, expected in (("9.0", "90a"), ("8.0", "80"), ("8.9", "89")):
        (build,), *_ = gpu.list_groups(tmp_path, None, capability)
        assert build.environment["FASTHG_CUDA_ARCH"] == expected
    monkeypatch.setenv("FASTHG_CUDA_ARCH", "80;90a")
    assert gpu.list_groups(tmp_path)[0][0].environment["FASTHG_CUDA_ARCH"] == "80;90a"
    files = [Path(file).stem for file in gpu.gpu_tests()]
    first = sorted(files, key=lambda name: not name.startswith(gpu.LEAST_PROVED))
    assert files == first and files[0].startswith(gpu.LEAST_PROVED)


def test_no_time_left_is_a_failure_unless_only_measuring() -> None:
    now = time.monotonic()
    stages = [python("proof", ""), python("measure", "", measures=True)]
    assert [gpu.run_stage(s, now).status for s in stages] == ["FAILED", "stopped"]


@pytest.mark.slow
def test_every_operator_is_checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checked = dict(reversed(list(gpu_check_ops.cases())))  # the first case of each
    # conv1x1_bn is no operator of its own, but a part of residual_block.
    assert set(checked) == {row.op for row in ops.paths()} | {"conv1x1_bn"}
    for case in checked.values():
        assert gpu_check_ops.results(case, torch.float64, torch.device("cpu"), exact=False)
    only = ["heatmap_mse", "max_pool2x", "rmsprop_ema"]
    monkeypatch.setattr(sys, "argv", ["x", "--device", "cpu", "--only", *only])
    native = all(row.path != "torch reference" for row in ops.paths() if row.device == "cpu")
    assert gpu_check_ops.main() == (0 if native else 1)
    right = ops.heatmap_mse

    def wrong(maps: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        return right(maps, *others) * (1 if maps.dtype == torch.float64 else 1.001)

    monkeypatch.setattr(ops, "heatmap_mse", wrong)
    capsys.readouterr()
    assert gpu_check_ops.main() == 1
    assert "heatmap_mse in torch.float32: result 0 is off by" in capsys.readouterr().out

    def raises(*tensors: torch.Tensor) -> None:
        raise TypeError("an argument too many")

    monkeypatch.setattr(ops, "heatmap_mse", raises)
    assert gpu_check_ops.main() == 1
    said = capsys.readouterr().out
    assert "heatmap_mse in torch.float16: TypeError: an argument too many" in said
    assert "rmsprop_ema in torch.float32" in said, "those after it are checked"
