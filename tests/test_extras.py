"""What is not installed: one line that names the extra; what loads stays little."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fasthg.__main__ import main
from fasthg.data.records import tfrecord
from fasthg.errors import EnvironmentFault

# Hides the package of the first argument, as where it is not installed.
WITHOUT = """
import sys
hidden = sys.argv.pop(1)
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hide())
from fasthg.__main__ import main
main()
"""

LOADED = """
import sys
import fasthg
loaded = {name.partition(".")[0] for name in sys.modules}
assert not {"torch", "numpy"} & loaded, loaded
import torch
before = set(sys.modules)
import fasthg.ops
new = {name.partition(".")[0] for name in set(sys.modules) - before}
assert new - set(sys.stdlib_module_names) == {"fasthg"}, new
assert "torch._dynamo" not in sys.modules  # as long to load as torch itself
"""


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("verb", "extra"), [(["train", "x"], "train"), (["predict", "x"], "predict"), ([], "train")]
)
def test_command_line_without_its_packages_ends_in_one_line(verb: list[str], extra: str) -> None:
    done = python(WITHOUT, "typer", *verb)
    assert (done.returncode, done.stdout) == (3, "")
    name = " ".join(["fasthg", *verb[:1]])
    assert done.stderr.startswith(f"error: {name} needs typer; pip install 'fasthg[{extra}]' (")
    assert done.stderr.count("\n") == 1


def test_a_module_of_fasthg_that_is_missing_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fasthg.cli", None)
    with pytest.raises(ModuleNotFoundError):
        main()


def test_records_without_their_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    tfrecord._crc32c.cache_clear()
    monkeypatch.setitem(sys.modules, "google_crc32c", None)
    with pytest.raises(EnvironmentFault, match=r"needs google-crc32c; pip install 'fasthg\[train"):
        tfrecord.masked_crc(b"")
    tfrecord._crc32c.cache_clear()


@pytest.mark.slow
def test_import_of_the_operators_loads_torch_and_nothing_more() -> None:
    done = python(LOADED)
    assert done.returncode == 0, done.stderr


def test_python_names_the_extra_too() -> None:
    code = (
        "import sys; sys.modules['pydantic'] = None\n"
        "import fasthg\n"
        "from fasthg.errors import EnvironmentFault\n"
        "try: fasthg.load\n"
        "except EnvironmentFault as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "fasthg.load needs pydantic" in done.stdout and "fasthg[train]" in done.stdout
