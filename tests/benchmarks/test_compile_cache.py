"""What torch.compile made is kept in files, and found again elsewhere."""

from __future__ import annotations

from pathlib import Path

import compile_cache
import pytest
import torch
from reference.tuned import DEFAULT, MAX_AUTOTUNE
from torch._dynamo.utils import counters


@pytest.mark.slow
def test_what_was_compiled_serves_another_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def product(x: torch.Tensor) -> torch.Tensor:  # of a library: inductor writes no kernel
        return x @ x

    monkeypatch.setenv("BENCH_COMPILED", str(tmp_path / "compiled"))
    x = torch.randn(4, 4)
    for machine in range(2):
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / f"machine {machine}"))
        torch._dynamo.reset()
        counters.clear()
        compile_cache.load()
        torch.testing.assert_close(torch.compile(product, dynamic=False, **DEFAULT)(x), x @ x)
        assert bool(compile_cache.hits()) == bool(machine)
        compile_cache.save("torch.compile, batch 8")
    (file,) = (tmp_path / "compiled").iterdir()
    assert file.name == "torch-compile-batch-8.bin"


@pytest.mark.slow
def test_autotuning_is_asked_for_by_options_that_torch_knows() -> None:
    torch.compile(torch.sin, **MAX_AUTOTUNE)
    with pytest.raises(RuntimeError, match="Unexpected optimization option"):
        torch.compile(torch.sin, options={**MAX_AUTOTUNE["options"], "max_autotuned": True})


def test_without_a_folder_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BENCH_COMPILED", raising=False)
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (b"made", None))
    compile_cache.load()
    compile_cache.save("x")
