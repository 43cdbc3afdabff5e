"""docs/performance.md says what the results files say."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import compare
import numpy as np
import performance_page
import pytest


def row(group, provider, seconds, device="cpu", **info):
    stats = {"min": seconds / 2, "q1": seconds * 0.9, "median": seconds, "q3": seconds * 1.1}
    return {
        "group": f"{group}, {device}",
        "name": f"bench_{group}[{device}-{provider}]",
        "params": {"device": device, "provider": provider},
        "extra_info": {"device": device, "threads": 2, "torch": "2.13.0", **info},
        "stats": {**stats, "max": seconds * 2, "rounds": 15},
    }


def results(date, rows, gpu=None):
    machine = {"cpu": "Model X", "cores": 2, "gpu": gpu, "load": 0.07, "torch": "2.13.0"}
    return json.dumps(
        {
            "machine_info": {**machine, "fasthg": "0.1.0", "python": "3.11.7"},
            "commit_info": {"id": "1a2b3c4d5e", "dirty": False},
            "datetime": date,
            "benchmarks": rows,
        }
    )


@pytest.fixture
def folder(tmp_path):
    peaks = "heatmap_peaks, dark"
    ratio = {"x fasthg": 12.34, "x fasthg q1 q3": [9.876, 15.0]}
    rows = [
        row(peaks, "torch", 0.0246, **ratio, **{"GB/s": 1.5}),
        row(peaks, "fasthg", 0.002, **{"GB/s": 18.2}),
    ]
    (tmp_path / "new.json").write_text(results("2026-02-01T00:00:00Z", rows))
    older = [row(peaks, "fasthg", 7.0), row("old", "fasthg", 1.0)]
    (tmp_path / "old.json").write_text(results("2026-01-01T00:00:00Z", older))
    other = results("2026-01-02T00:00:00Z", [row("other", "fasthg", 1.0)])
    (tmp_path / "other.json").write_text(other.replace("Model X", "Model Y"))
    rows = [row(peaks, "fasthg", 12e-6, "cuda", **{"kernel us": 5.1}), row("x", "fasthg", 1.0)]
    (tmp_path / "gpu.json").write_text(results("2026-01-15T00:00:00Z", rows, "NVIDIA H100"))
    (tmp_path / "make-gpu.json").write_text('{"stages": []}')
    return tmp_path


def test_the_page_says_what_the_files_say(folder):
    performance_page.write(folder, folder)
    lines = (folder / "performance.md").read_text(encoding="utf-8").splitlines()
    cpu, gpu = lines.index("## Model X"), lines.index("## NVIDIA H100")
    # What the newest file lacks comes from an older one of the same machine.
    old = lines.index("## Model X", cpu + 1)
    assert cpu < old < gpu and "## Model Y" not in lines
    assert [line for line in lines[old:gpu] if line.startswith("|")][2:] == [
        "| old | fasthg | 1.00 s | 900 ms to 1.10 s |  |  | 15 |  |"
    ]
    gpu, after = old, gpu
    table = [line for line in lines[cpu:gpu] if line.startswith("|")][2:]
    assert table == [
        "| heatmap_peaks, dark | torch | 24.6 ms | 22.1 ms to 27.1 ms | 12.3x | 9.9 to 15.0 | 15 "
        "| 1.5 GB/s |",
        "|  | fasthg | 2.00 ms | 1.80 ms to 2.20 ms |  |  | 15 | 18.2 GB/s |",
    ]
    assert [line for line in lines[after:] if line.startswith("|")][2:] == [
        "| heatmap_peaks, dark | fasthg | 12.0 us | 10.8 us to 13.2 us |  |  |  | 15 "
        "| 5.1 kernel us |"
    ]
    above = "\n".join(lines[cpu:gpu])
    for fact in ("Model X, 2 cores, 2 threads", "start: 0.07", "commit 1a2b3c4\n", "Python 3.11.7"):
        assert fact in above
    assert "[new.json](../benchmarks/results/new.json)" in above and "2026-02-01" in above
    bars = ElementTree.parse(folder / "performance.svg").getroot()
    texts = [node.text for node in bars.iter("{http://www.w3.org/2000/svg}text")]
    assert {"Model X, 2 cores", "heatmap_peaks, dark: torch", "12.3x"} <= set(texts)


def test_groups_that_no_benchmark_has_any_more_are_left_out(folder):
    performance_page.write(folder, folder, {"heatmap_peaks, dark"})
    page = (folder / "performance.md").read_text(encoding="utf-8")
    assert "heatmap_peaks, dark" in page and "| old" not in page and "old.json" not in page


def test_bars_of_both_machines_say_what_the_files_say(tmp_path):
    group, ratio = "training_step, stacks 2, batch 8", {"x fasthg": 3.06, "x fasthg q1 q3": [2, 4]}
    cpu = [row(group, "fasthg", 1.0), row(group, "reference", 3.0, **ratio)]
    (tmp_path / "cpu.json").write_text(results("2026-02-01T00:00:00Z", cpu))
    figures = [
        {"name": f"training_step, stacks 2, batch 64, cuda, {name}", "value": v, "unit": "x fasthg"}
        for name, v in (("reference", 5.78), ("eager channels_last", 1.75))
    ]
    visit = {"date": "2026", "gpu": {"name": "NVIDIA H100"}, "stages": [{"figures": figures}]}
    (tmp_path / "gpu.json").write_text(json.dumps(visit))
    performance_page.write(tmp_path, tmp_path)
    bars = ElementTree.parse(tmp_path / "speed.svg").getroot()
    texts = [node.text for node in bars.iter("{http://www.w3.org/2000/svg}text")]
    assert [text for text in texts if text.endswith("x")] == ["5.78x", "1.75x", "3.06x"]
    widths = [float(n.get("width")) for n in bars.iter("{http://www.w3.org/2000/svg}rect")]
    assert widths[0] / widths[2] == pytest.approx(np.log(5.78) / np.log(3.06), rel=1e-2)


def test_what_waits_for_its_host_has_a_column_of_its_own(tmp_path):
    """By the measured times of kernels, whatever a provider is called."""
    group = "training_step, stacks 2, batch 64"

    def one(provider, seconds, kernels, ratio=None, **info):
        info["ms of kernels"] = kernels
        info |= {"x fasthg": ratio, "x fasthg q1 q3": [ratio, ratio]} if ratio else {}
        return row(group, provider, seconds, "cuda", **info)

    older = [one("reference", 0.2, 190.0, 9.5), one("captured", 0.1, 99.0, 4.0)]
    (tmp_path / "old.json").write_text(results("2026-01-01T00:00:00Z", older, "NVIDIA H100"))
    rows = [
        *(one("eager channels_last", 0.04, 20.0, 2.0), one("captured", 0.03, 29.0, 1.5)),
        one("fasthg", 0.02, 22.0),
        row("loader", "fasthg", 1.0, "cuda"),
        one("torch.compile", 0.025, 24.0, 1.25, **{"compiled in s": 61.5}),
        one("fasthg", 0.021, 22.0),  # beside another part of the group
    ]
    (tmp_path / "new.json").write_text(results("2026-02-01T00:00:00Z", rows, "NVIDIA H100"))
    performance_page.write(tmp_path, tmp_path)
    lines = (tmp_path / "performance.md").read_text(encoding="utf-8").splitlines()
    start = lines.index(
        "| group | provider | median | quartiles | x fasthg, GPU-bound | x fasthg, host-bound "
        "| quartiles | rounds | further |"
    )
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[start + 2 :]]
    assert [(c[0], c[1], *c[4:6]) for c in table[:4]] == [
        (group, "eager channels_last", "", "2.0x"),
        ("", "captured", "1.5x", ""),
        ("", "fasthg", "", ""),
        ("", "torch.compile", "1.2x", ""),
    ]
    assert table[2][2] == "20.0 ms" and "61.5 compiled in s" in table[3][8] and table[4] == []
    assert "| loader | fasthg | 1.00 s | 900 ms to 1.10 s |  |  | 15 |  |" in lines[:start]
    # What this file lacks of the group comes from the older one.
    last = [line for line in lines[start + 6 :] if line.startswith(f"| {group}")]
    assert len(last) == 1 and "| reference | 200 ms |" in last[0] and "| 9.5x |  |" in last[0]
    bars = ElementTree.parse(tmp_path / "speed.svg").getroot()
    texts = [node.text for node in bars.iter("{http://www.w3.org/2000/svg}text")]
    assert {"channels_last, same precision, host-bound", "the same in a CUDA graph"} <= set(texts)


def test_durations_keep_three_digits():
    assert [performance_page.duration(s) for s in (12.3456, 0.9999, 1.5e-4, 4.2e-7)] == [
        *("12.3 s", "1.00 s", "150 us", "0.420 us")
    ]


def test_without_results_it_says_so(tmp_path):
    with pytest.raises(SystemExit, match="no results"):
        performance_page.write(tmp_path, tmp_path)


def test_the_page_in_the_tree_is_that_of_the_results_in_the_tree(repository):
    file = repository / "docs" / "performance.md"
    if not file.exists():
        pytest.skip("docs/performance.md is not there: no results have been kept yet")
    results = repository / "benchmarks" / "results"
    found = performance_page.newest(results, compare.known_groups())
    assert file.read_text(encoding="utf-8") == performance_page.page(found)
