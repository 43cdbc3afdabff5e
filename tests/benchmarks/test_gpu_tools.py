"""`make gpu` as far as it runs without a GPU: stages, limits, reports, and what is missing."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
import time

import gpu
import gpu_exercise
import gpu_needs
import gpu_probe
import gpu_stages
import gpu_tests
import gpu_variants
import pytest
import torch
from device_clock import DeviceClock
from gpu_report import (
    MARK,
    Figure,
    Result,
    failures,
    figure,
    passed,
    ratios,
    read_benchmarks,
    read_figures,
    read_junit,
    result_name,
    shares,
    table,
    write,
)
from gpu_stages import Stage

from fasthg import ops

CPU = torch.device("cpu")


def python(name, code, **given):
    return Stage(name, 0, given.pop("limit", 60), [sys.executable, "-c", code], **given)


def test_without_a_gpu_one_line_and_status_3(repository):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": ""}
    command = [sys.executable, str(repository / "tools" / "gpu.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == gpu.NO_GPU == 3
    assert done.stdout == "" and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("gpu: torch") and "no GPU" in done.stderr


def test_a_dry_run_lists_every_stage(monkeypatch, capsys, repository, tmp_path):
    monkeypatch.setattr(gpu, "read_facts", lambda: {"problem": "no GPU"})
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--dry-run"])
    assert gpu.main() == 0
    listed = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    stages = gpu_stages.list_stages(repository, tmp_path)
    assert listed == [stage.name for stage in stages] and len(set(listed)) == len(listed)
    assert {"build", "tests", "operators", *gpu_stages.SANITIZERS} <= set(listed)
    for stage in stages:
        scripts = [word for word in stage.command if word.startswith(str(repository / "tools"))]
        assert all(os.path.isfile(script) for script in scripts)
    # Two groups of timed stages never run at once, and measuring never fails by its limit.
    assert [stage.name for stage in stages if stage.group > 0 and stage.may_stop] == [
        *("norm", "conv", "profile", "steps", "variants", "inference", "whole", "large"),
        *("compiled-2", "compiled-8"),
    ]


def test_an_unknown_stage_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "read_facts", lambda: {"gpu": {"name": "x"}, "missing": []})
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--only", "biuld"])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "no stage biuld" in capsys.readouterr().err


def test_stages_are_judged_by_their_ends():
    line = f"print({MARK + json.dumps({'name': 'x', 'value': 2.0, 'unit': 'ms'})!r})"
    stages = [
        python("good", f"{line}; print('all well')"),
        python("bad", "print('wrong'); raise SystemExit(4)"),
        python("absent", "print('no such package'); raise SystemExit(77)"),
        python("crash", "import os; os.kill(os.getpid(), 11)"),
        python("late", f"{line}; import time; time.sleep(60)", limit=4.0, may_stop=True),
        python("hung", "import time; time.sleep(60)", limit=0.2),
    ]
    begin = time.monotonic()
    results = {result.name: result for result in gpu.run_together(stages, 60)}
    assert time.monotonic() - begin < 40
    assert {name: result.status for name, result in results.items()} == {
        "good": "passed",
        "bad": "FAILED",
        "absent": "skipped",
        "crash": "FAILED",
        "late": "stopped",
        "hung": "FAILED",
    }
    assert results["good"].note == "all well" and results["good"].figures[0].value == 2
    assert results["bad"].note == "wrong" and results["bad"].output == "wrong"
    assert results["absent"].note == "no such package"
    assert "signal 11" in results["crash"].note
    assert results["late"].figures[0].name == "x"


def test_a_run_writes_one_file_and_prints_the_table_last(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("GPU_RESULTS", str(tmp_path))
    (copy,), (norm,) = (
        [MARK + json.dumps({"name": name, "value": value, "unit": "GB/s"})]
        for name, value in (("copy rate", 4000.0), ("norm", 1000.0))
    )
    stages = [
        python("memory", f"print({copy!r})"),
        python("norm", f"print({norm!r}); raise SystemExit(1)"),
        python("never", "", impossible="not installed: x"),
    ]
    stages[1].group = 1
    facts = {"gpu": {"name": "NVIDIA H200"}, "missing": []}
    assert not passed(gpu.run(stages, facts, 60))
    (file,) = tmp_path.iterdir()
    assert file.name.startswith("nvidia-h200-") and file.suffix == ".json"
    content = json.loads(file.read_text())
    assert content["passed"] is False and content["gpu"] == facts["gpu"] and content["commit"]
    by_name = {stage["name"]: stage for stage in content["stages"]}
    assert by_name["norm"]["figures"][1]["value"] == 0.25
    assert by_name["never"]["status"] == "skipped"
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == str(file)
    assert [line.split()[:2] for line in lines[-4:-1]] == [
        ["never", "skipped"],
        ["memory", "passed"],
        ["norm", "FAILED"],
    ]


def test_no_time_left_is_a_failure_unless_only_measuring(monkeypatch, tmp_path):
    monkeypatch.setenv("GPU_RESULTS", str(tmp_path))
    stages = [python("proof", ""), python("measure", "", may_stop=True)]
    proof, measure = gpu.run(stages, {"gpu": {"name": "x"}}, 0)
    assert (proof.status, measure.status) == ("FAILED", "stopped")


def test_figures_survive_the_way_through_a_pipe(capsys):
    figure("copy", 4301.23456, "GB/s")
    output = "warning\n" + capsys.readouterr().out + MARK + '{"name": "cut o'
    assert read_figures(output) == [Figure("copy", 4301.0, "GB/s")]


def test_reports_name_no_place_of_the_machine(repository, tmp_path):
    words = f"{sys.executable} {repository}/tools/gpu.py {sys.prefix}/lib"
    write(tmp_path / "r.json", {}, [Result("a", "passed", 1, words, words)])
    kept = json.loads((tmp_path / "r.json").read_text())["stages"][0]
    assert kept["note"] == kept["command"] == "python3 tools/gpu.py PREFIX/lib"


def test_reports_of_pytest_are_read(tmp_path):
    file = tmp_path / "tests.xml"
    file.write_text(
        "<testsuites><testsuite><testcase classname='a' name='one'/>"
        "<testcase classname='a' name='two'><failure message='off by 1.5e-3\nin x'/></testcase>"
        "<testcase classname='a' name='four'><error message='off by 2 in x'/></testcase>"
        "<testcase classname='a' name='three'><skipped/></testcase></testsuite></testsuites>"
    )
    assert read_junit([file, file]) == "2 passed, 2 skipped, 4 failed"
    ((reason, names),) = failures([file]).items()
    assert reason == "tests: off by # in x"
    assert names == ["two [off by 1.5e-3 in x]", "four [off by 2 in x]"]
    rows = [
        {
            "name": f"bench_peaks[cuda-dark-{provider}]",
            "params": {"device": "cuda", "method": "dark", "provider": provider},
            "stats": {"median": seconds},
            "extra_info": {"GB/s": 1.0, "kernel us": kernel, "kernel GB/s": 900.0},
        }
        for provider, seconds, kernel in (("torch", 3e-4, 30.0), ("fasthg", 1e-4, 5.0))
    ]
    file.write_text(json.dumps({"benchmarks": rows}))
    figures = read_benchmarks(file)
    assert [f.name for f in figures[:3]] == [
        "peaks dark torch: call",
        "peaks dark torch: kernels",
        "peaks dark torch: kernels",
    ]
    assert ratios(figures) == [
        Figure("peaks dark fasthg: call", 3.0, "x torch"),
        Figure("peaks dark fasthg: kernels", 6.0, "x torch"),
    ]
    assert [f.value for f in shares(figures, 3600.0)] == [0.25, 0.25]


def test_the_table_is_short_and_the_file_is_whole(tmp_path):
    results = [Result("build", "passed", 61.24, "extension built"), Result("norm", "stopped", 3)]
    results[1].figures = [Figure("forward", 12.5, "us"), Figure("forward", 0.25, "of copy")]
    assert table(results).splitlines() == [
        "norm:",
        f"  {'forward':44} 12.5 us  0.25 of copy",
        "",
        "build        passed     61.2 s  extension built",
        "norm         stopped     3.0 s",
    ]
    assert result_name("NVIDIA H100 80GB HBM3", "20260131", "1a2b3c4") == (
        "nvidia-h100-80gb-hbm3-20260131-1a2b3c4.json"
    )
    write(tmp_path / "new" / "x.json", {"commit": "1a2b3c4"}, results)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.json"]
    assert json.loads((tmp_path / "new" / "x.json").read_text())["passed"] is True


def test_what_a_file_lacks_is_found_without_importing_it(tmp_path):
    for name, text in {
        "fasthg/__init__.py": "",
        "fasthg/ops.py": "import json",
        "fasthg/config.py": "import absent_yaml",
        "tests/conftest.py": "from absent_plugin import x",
        "tests/test_a.py": "from fasthg import ops\ndef f():\n    import absent_lazy",
        "bench.py": "import fasthg.config",
        "light.py": "from fasthg.ops import y\nif y:\n    import absent_c",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    lacking = {
        name: gpu_needs.lacking(tmp_path / name, tmp_path)
        for name in ("tests/test_a.py", "bench.py", "light.py")
    }
    assert lacking == {
        "tests/test_a.py": {"absent_plugin"},
        "bench.py": {"absent_yaml"},
        "light.py": set(),
    }


@pytest.mark.parametrize("name", ["gpu_exercise", "gpu_probe"])
def test_proofs_need_torch_alone(repository, monkeypatch, name):
    def find(top):
        return None if top not in ("torch", "numpy") else object()

    monkeypatch.setattr("importlib.util.find_spec", find)
    assert gpu_needs.lacking(repository / "tools" / f"{name}.py", repository) == set()


def test_a_sanitizer_that_checked_nothing_does_not_pass(repository, tmp_path):
    stages = {stage.name: stage for stage in gpu_stages.list_stages(repository, tmp_path)}
    read = stages["racecheck"].read
    result = Result("racecheck", "passed", 1)
    read(result, "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)")
    assert (result.status, result.note[:28]) == ("passed", "RACECHECK SUMMARY: 0 hazards")
    read(result, "3 operators in 4 dtypes: passed")
    assert result.status == "FAILED"
    read(result, "========= Error: Device not supported")
    assert result.status == "skipped"


def test_tests_that_all_skip_prove_nothing(repository, tmp_path):
    stages = {stage.name: stage for stage in gpu_stages.list_stages(repository, tmp_path)}
    for name, note in (("tests", "0 passed, 1 skipped, 0 failed"), ("benchmarks", "")):
        result = Result(name, "passed", 1, note)
        stages[name].read(result, "")
        assert result.status == "FAILED"


def test_each_file_of_tests_has_a_process(repository, tmp_path, monkeypatch, capsys):
    good, bad, ended, slow, last = (tmp_path / f"test_{name}.py" for name in "abcde")
    head = "import os, time, pytest\n@pytest.mark.gpu\ndef test_it():\n    "
    good.write_text(head + "pass")
    bad.write_text(head + "assert 1 == 2")
    ended.write_text(head + "os._exit(9)")
    slow.write_text(head + "time.sleep(60)")
    last.write_text("import atexit, os\natexit.register(os._exit, 7)\n" + head + "pass")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    monkeypatch.chdir(repository)
    files = [str(file) for file in (good, bad, ended, slow, last)]
    monkeypatch.setattr(sys, "argv", ["x", str(tmp_path / "out"), *files, "--limit", "25"])
    assert gpu_tests.main() == 1
    said = capsys.readouterr().out
    assert "1 x  test_b: assert # == #" in said and said.endswith("2 passed, 0 skipped, 1 failed\n")
    assert (
        f"{ended}: ended with 9" in said
        and f"{last}: ended with 7" in said
        and f"{slow}: at its limit" in said
    )


def test_a_slower_kernel_fails_the_benchmarks(repository, tmp_path):
    stages = {stage.name: stage for stage in gpu_stages.list_stages(repository, tmp_path)}

    def judged(operator: str, rival: str) -> Result:
        rows = [
            {"name": f"bench_{operator}[a]", "params": {"provider": p}, "stats": {"median": 1.0}}
            | {"extra_info": {"kernel us": us}}
            for p, us in ((rival, 4.0), ("fasthg", 5.0))
        ]
        (tmp_path / "benchmarks.json").write_text(json.dumps({"benchmarks": rows}))
        result = Result("benchmarks", "passed", 1)
        stages["benchmarks"].read(result, "")
        return result

    slower = judged("x", "torch")
    assert slower.status == "FAILED" and "x fasthg: kernels 0.8 x torch" in slower.note
    assert judged("conv3x3", "torch").status == judged("x", "numpy loop").status == "passed"


def test_every_operator_is_exercised(monkeypatch, capsys):
    assert set(gpu_exercise.CASES) == {row.op for row in ops.paths()}
    monkeypatch.setattr(sys, "argv", ["gpu_exercise.py", "--device", "cpu"])
    native = all(row.path != "torch reference" for row in ops.paths() if row.device == "cpu")
    assert gpu_exercise.main() == (0 if native else 1)
    monkeypatch.setattr(gpu_exercise, "heatmap_mse", lambda p, *_: p.square().sum((2, 3, 4)) / 2)
    assert gpu_exercise.main() == 1
    assert "heatmap_mse in float32: heatmap_mse: off by" in capsys.readouterr().out


def test_a_variant_runs_small_on_a_cpu(capsys):
    gpu_variants.measure("RECOMPUTE stack", CPU)
    found = {f.unit: f.value for f in read_figures(capsys.readouterr().out)}
    assert set(found) == {"ms", "loss of step 3"} and all(value > 0 for value in found.values())


@pytest.mark.parametrize("probe", ["memory", "norm", "conv"])
def test_probes_run_small_on_a_cpu(capsys, probe):
    assert gpu_probe.PROBES[probe](CPU) is None
    figures = read_figures(capsys.readouterr().out)
    assert len(figures) >= 2 and all(f.value > 0 for f in figures)


def test_probes_of_streams_say_that_they_need_a_gpu(capsys):
    assert {gpu_probe.PROBES[name](CPU) for name in ("capture", "launches")} == {gpu.SKIPPED}
    assert capsys.readouterr().out.count("need a GPU") == 2


def test_whole_networks_are_named_where_they_cannot_run(repository, tmp_path, monkeypatch):
    stages = {stage.name: stage for stage in gpu_stages.list_stages(repository, tmp_path)}
    steps, compiled = stages["steps"], stages["compiled-8"]
    assert not steps.impossible and steps.environment == {"BENCH_COMPILE": "off"}
    assert compiled.command[-2:] == ["-k", "cuda-8-8"] and compiled.group > steps.group
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "pydantic" else real(name)
    )
    stages = {stage.name: stage for stage in gpu_stages.list_stages(repository, tmp_path)}
    assert stages["steps"].impossible == "not installed: pydantic"


def test_the_clock_takes_the_median():
    waits = iter([0.2, 0.001, 0.2, 0.001])
    assert 0.001 <= DeviceClock(CPU, 1 << 10).seconds(lambda: time.sleep(next(waits)), 3) < 0.1


def test_scripts_are_python_3_11(repository):
    for path in (repository / "tools").glob("gpu*.py"):
        ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 11))
