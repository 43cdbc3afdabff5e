"""Write docs/performance.md, performance.svg and speed.svg from the newest of benchmarks/results.

    pytest benchmarks --benchmark-json=benchmarks/results/NAME.json   # on a quiet machine
    python tools/performance_page.py

Of files without a GPU the newest gives the rows of the CPU; of those with one, the rows of the GPU.
Groups that it lacks come from older files of the same machine, each in a section of its own.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from ratio_bars import Bar, Panel, ratio_bars

ROOT = Path(__file__).resolve().parent.parent
# Benchmarks that are drawn, in this order, where there are results.
HEADLINES = (
    *("end_to_end", "training_step", "inference", "loader", "conv3x3", "heatmap_mse"),
    *("gaussian_heatmaps", "heatmap_peaks", "rmsprop_ema"),
    *("moving_statistics", "residual_block", "bn_act", "max_pool2x", "upsample2x_add"),
)
OF_MACHINE = ("device", "threads", "torch")
RATIO, SPREAD = "x fasthg", "x fasthg q1 q3"

# The gaps of a captured step are a tenth of its time or less; a host that launches one kernel after
# the other takes 24 to 32 us for each, and most kernels take less.
HOST_BOUND = 0.8
OF_KERNELS = (
    "A provider is host-bound here if its kernels' times, added up, are less than "
    f"{HOST_BOUND} of a call: then the host's launches are measured, and a CUDA graph would help."
)

HEAD = """# Performance

Written by `make performance` from `benchmarks/results/`; not edited by hand.

In each round all providers of a group run in turn. Times are those of a call: median over the
rounds, and quartiles. `x fasthg` says how many times as fast fasthg is as that provider, compared
within a round: median over the rounds, and quartiles.

![How many times as fast fasthg is](performance.svg)
"""


Results = dict[str, list[tuple[str, dict[str, Any]]]]
"""Device, `cpu` or `cuda` -> name and content of files, newest first, each group in one of them."""


def newest(folder: Path, known: Collection[str] | None = None) -> Results:
    """The newest results of every group that the machine of the newest file has measured.

    known: groups, without their device, of benchmarks that there still are; None: all are.
    """
    files = [(f.name, json.loads(f.read_text(encoding="utf-8"))) for f in folder.glob("*.json")]
    # A visit of `make gpu` that ran none has no benchmarks.
    files = [(name, content) for name, content in files if "benchmarks" in content]
    found: Results = {}
    for name, content in sorted(files, key=lambda file: file[1]["datetime"], reverse=True):
        device = "cuda" if content["machine_info"]["gpu"] else "cpu"
        chosen = found.setdefault(device, [])
        if chosen and _machine(content) != _machine(chosen[0][1]):
            continue
        newer = {_key(row) for _, other in chosen for row in other["benchmarks"]}
        rows = [
            row
            for row in rows_of(content, device)
            if _key(row) not in newer and (known is None or _group(row) in known)
        ]
        if device == "cuda":  # fasthg is in every part
            first = {_key(row): row for row in reversed(rows)}
            rows = [row for row in rows if first[_key(row)] is row]
        if rows:
            chosen.append((name, {**content, "benchmarks": rows}))
    return dict(sorted(found.items()))


def _key(row: dict[str, Any]) -> tuple[str, ...]:
    """What the newest file has once: a group, of which on a GPU files may hold a part each."""
    part = row["params"]["provider"] if row["params"]["device"] == "cuda" else ""
    return row["group"], part


def _group(row: dict[str, Any]) -> str:
    """A row's group without its device."""
    return str(row["group"].rpartition(", ")[0])


def _machine(content: dict[str, Any]) -> tuple[Any, ...]:
    keys = ("cpu", "cores", "gpu", "capability")
    return tuple(content["machine_info"].get(key) for key in keys)


def _processor(machine: dict[str, Any]) -> str:
    """`AMD EPYC, 2 cores, avx2`."""
    instructions = [machine["capability"]] if "capability" in machine else []
    return ", ".join([machine["cpu"], f"{machine['cores']} cores", *instructions])


def _name(machine: dict[str, Any]) -> str:
    """The GPU's name, or `_processor`."""
    return machine["gpu"] or _processor(machine)


def rows_of(content: dict[str, Any], device: str) -> list[dict[str, Any]]:
    """Those measured on a device; a file from a machine with a GPU has both."""
    return [row for row in content["benchmarks"] if row["params"]["device"] == device]


def groups_of(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows by group without its device."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(_group(row), []).append(row)
    return found


def page(results: Results) -> str:
    """The text of performance.md."""
    sections = (section(*file) for files in results.values() for file in files)
    return "\n".join([HEAD, *(line for lines in sections for line in lines)])


def section(name: str, content: dict[str, Any]) -> Iterator[str]:
    """Machine, versions and table of one file."""
    machine, commit = content["machine_info"], content["commit_info"]
    rows = content["benchmarks"]
    threads = " or ".join(str(n) for n in sorted({row["extra_info"]["threads"] for row in rows}))
    changed = " with changes" if commit["dirty"] else ""
    yield f"## {machine['gpu'] or machine['cpu']}\n"
    yield f"- processor: {_processor(machine)}, {threads} threads"
    yield f"- load average at the start: {machine['load']}"
    yield f"- fasthg {machine['fasthg']}, commit {commit['id'][:7]}{changed}"
    yield f"- torch {machine['torch']}, Python {machine['python']}"
    yield f"- measured {content['datetime'][:10]}, [{name}](../benchmarks/results/{name})\n"
    yield from table([row for row in rows if kernel_share(row) is None], (RATIO,))
    timed = [row for row in rows if kernel_share(row) is not None]
    if timed:
        yield f"{OF_KERNELS}\n"
    yield from table(timed, (f"{RATIO}, GPU-bound", f"{RATIO}, host-bound"))


def table(rows: list[dict[str, Any]], ratios: tuple[str, ...]) -> Iterator[str]:
    """Rows by group; ratios: names of the columns of how many times as fast fasthg is."""
    if not rows:
        return
    head = f"| group | provider | median | quartiles | {' | '.join(ratios)} |"
    yield f"{head} quartiles | rounds | further |"
    yield f"|---|---|---:|---|{'---:|' * len(ratios)}---|---:|---|"
    for group, members in groups_of(rows).items():
        for row in members:
            yield "| " + " | ".join([group, *cells(row, len(ratios))]) + " |"
            group = ""
    yield ""


def kernel_share(row: dict[str, Any]) -> float | None:
    """The times of a call's kernels, added up, as a share of the call's; None if not measured."""
    info = row["extra_info"]
    ms = info["kernel us"] / 1e3 if "kernel us" in info else info.get("ms of kernels")
    return None if ms is None else ms / (row["stats"]["median"] * 1e3)


def host_bound(row: dict[str, Any]) -> bool:
    """Whether the GPU waits for the host's launches."""
    share = kernel_share(row)
    return share is not None and share < HOST_BOUND


def cells(row: dict[str, Any], ratios: int = 1) -> list[str]:
    """A row of the table, after its group; of two columns for the ratio, one is empty."""
    stats, info = row["stats"], row["extra_info"]
    ratio, spread = [""] * ratios, ""
    if RATIO in info:
        ratio[ratios > 1 and host_bound(row)] = f"{times(info[RATIO])}x"
        spread = " to ".join(map(times, info[SPREAD]))
    left_out = (*OF_MACHINE, RATIO, SPREAD)
    further = [
        f"{value} {key}"
        for key, value in info.items()
        if key not in left_out and not isinstance(value, dict)
    ]
    return [
        row["params"]["provider"],
        duration(stats["median"]),
        f"{duration(stats['q1'])} to {duration(stats['q3'])}",
        *(*ratio, spread, str(stats["rounds"]), ", ".join(further)),
    ]


def times(value: float) -> str:
    """A ratio."""
    return significant(value, 2 if value < 10 else 3)


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if float(significant(seconds / size, 3)) >= 1 or unit == "us":
            return f"{significant(seconds / size, 3)} {unit}"
    raise AssertionError


def significant(value: float, digits: int) -> str:
    """So many digits, without an exponent."""
    value = float(f"{value:.{digits}g}")
    places = digits - 1 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:.{max(places, 0)}f}"


def headlines(results: Results) -> list[Panel]:
    """How many times as fast as each provider, by machine."""
    panels = []
    for device, files in results.items():
        groups = groups_of([row for _, content in files for row in content["benchmarks"]])
        bars = [
            Bar(
                f"{group}: {row['params']['provider']}{', host-bound' * host_bound(row)}",
                *(info[RATIO], tuple(info[SPREAD])),
            )
            for headline in HEADLINES
            for group, members in groups.items()
            if group.partition(",")[0] == headline
            for row in members
            if RATIO in (info := row["extra_info"])
        ]
        machine = files[0][1]["machine_info"]
        if bars:
            panels.append(Panel(_name(machine), bars, device == "cuda"))
    return panels


# Of the first picture that a reader sees: provider in the files -> in words.
RIVALS = {
    "reference": "MARS's recipe in PyTorch, fp32",
    "eager channels_last": "channels_last, same precision",
}
CAPTURED = {
    "captured": "the same in a CUDA graph",
    "torch.compile": "torch.compile in a CUDA graph",
}


def training(folder: Path, results: Results) -> list[Panel]:
    """Training steps of 2 stacks, from the benchmarks; of a GPU without them, from the figures of
    the newest visit that kept some."""
    panels = []
    for device, batch in (("cuda", 64), ("cpu", 8)):
        group = f"training_step, stacks 2, batch {batch}"
        rows = [row for _, content in results.get(device, []) for row in content["benchmarks"]]
        found = {row["params"]["provider"]: row for row in groups_of(rows).get(group, [])}
        bars = [
            Bar(_words(t, found[p]), info[RATIO], tuple(info[SPREAD]))
            for p, t in (RIVALS | CAPTURED).items()
            if p in found and RATIO in (info := found[p]["extra_info"])
        ]
        if bars:
            machine = results[device][0][1]["machine_info"]
            panels.append(Panel(f"{_name(machine)}, batch {batch}", bars, device == "cuda"))
        elif device == "cuda":
            panels += _of_visits(folder, f"{group}, cuda")
    return panels


def _words(text: str, row: dict[str, Any]) -> str:
    """What a bar is called."""
    return f"{text}, host-bound" if host_bound(row) else text


def _of_visits(folder: Path, group: str) -> Iterator[Panel]:
    visits = [json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("*.json")]
    visits = sorted((v for v in visits if "stages" in v), key=lambda v: str(v.get("date", "")))
    for visit in reversed(visits):
        figures = {
            figure["name"]: figure["value"]
            for stage in visit["stages"]
            for figure in stage.get("figures", [])
            if figure["unit"] == RATIO
        }
        bars = [Bar(t, figures[n]) for p, t in RIVALS.items() if (n := f"{group}, {p}") in figures]
        if len(bars) == len(RIVALS):
            yield Panel(f"{visit['gpu']['name']}, batch 64", bars, True)
            return


def write(results: Path, docs: Path, known: Collection[str] | None = None) -> None:
    """The page and both pictures in `docs`, from the files in `results`; known: as of `newest`."""
    found = newest(results, known)
    if not found:
        raise SystemExit(f"performance_page: no results in {results}; see `make bench`")
    (docs / "performance.md").write_text(page(found), encoding="utf-8")
    axis = "times as fast as the provider named"
    pictures = {"performance": headlines(found), "speed": training(results, found)}
    for name, panels in pictures.items():
        if panels:
            (docs / f"{name}.svg").write_text(ratio_bars(panels, axis), encoding="utf-8")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import compare

    write(ROOT / "benchmarks" / "results", ROOT / "docs", compare.known_groups())
