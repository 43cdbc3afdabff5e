"""TensorFlow's checkpoint format: whatever a writer may choose, and one line for each damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tf_bundle import write_bundle

from fasthg.errors import DataError
from fasthg.interop.tf_checkpoint import Checkpoint, find_prefix

VALUES = {
    **{f"net/block_{i}/weights": np.full((2, i), i, np.float32) for i in range(40)},
    "global_step": np.array(1234, np.int64),
    "net/double": np.array([[1.5, -2.0]]),
    "net/half": np.array([0.25], np.float16),
    "net/\u00fc": np.arange(3, dtype=np.int32),
}


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"shards": 3},
        {"per_block": 1},
        {"per_block": 1000, "big_endian": True},
    ],
)
def test_every_layout_gives_the_values(tmp_path: Path, how: dict[str, int]) -> None:
    write_bundle(tmp_path / "m", VALUES, **how)
    bundle = Checkpoint(tmp_path / "m")
    assert set(bundle) == set(VALUES) and len(bundle) == len(VALUES)
    for name, value in VALUES.items():
        assert bundle[name].dtype == value.dtype and np.array_equal(bundle[name], value), name
        assert bundle.entries[name].shape == value.shape
    with pytest.raises(KeyError):
        bundle["net"]


def test_a_checkpoint_of_tensorflow(test_data: Path) -> None:
    """All its variables pass their checksums; the values are those that TensorFlow itself reads."""
    folder = test_data / "mars/model"
    bundle = Checkpoint(folder / "checkpoint_2stack_f32_with_slots/model.ckpt-1234")
    assert len(bundle) == 1209 and bundle["global_step"] == 1234
    assert all(np.isfinite(bundle[name]).all() for name in bundle)
    with np.load(folder / "weights_2stack_f32.npz") as expected:
        for name in expected.files:
            assert np.array_equal(bundle[name], expected[name]), name


def test_every_damaged_byte_of_an_index_is_found(tmp_path: Path) -> None:
    """Or it lies in the footer's padding, or in the block of metadata, which nobody reads."""
    write_bundle(tmp_path / "m", {"a/b": np.zeros(2, np.float32)})
    path = tmp_path / "m.index"
    whole = path.read_bytes()
    silent = []
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            Checkpoint(tmp_path / "m")
        except DataError as error:
            assert str(path) in str(error) and "\n" not in str(error)
        else:
            silent.append(at)
    assert len(silent) <= 40 + 13
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"m\.index: .*cut off"):
            Checkpoint(tmp_path / "m")


def test_damaged_values_are_named(tmp_path: Path) -> None:
    write_bundle(tmp_path / "m", VALUES, shards=2)
    first, second = (tmp_path / f"m.data-0000{i}-of-00002" for i in range(2))
    name = "net/block_9/weights"
    shard = (first, second)[Checkpoint(tmp_path / "m").entries[name].shard]
    at = Checkpoint(tmp_path / "m").entries[name].offset
    whole = shard.read_bytes()
    shard.write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
    with pytest.raises(DataError, match=f"{shard.name}: {name} is damaged, its checksum"):
        Checkpoint(tmp_path / "m")[name]
    shard.write_bytes(whole[: at + 1])
    with pytest.raises(DataError, match=f"{shard.name}: cut off before the end of {name}"):
        Checkpoint(tmp_path / "m")[name]
    shard.unlink()
    with pytest.raises(DataError, match=f"{shard.name}: no such file, but {name} is in it"):
        Checkpoint(tmp_path / "m")[name]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"sliced": ["a"]}, "a: a partitioned variable"),
        ({"compression": 1}, r"is compressed \(type 1\)"),
        ({"needs": 9}, "only readers of format 9"),
    ],
)
def test_what_is_not_read_is_said(tmp_path: Path, how: dict[str, object], said: str) -> None:
    write_bundle(tmp_path / "m", {"a": np.zeros(2, np.float32)}, **how)
    with pytest.raises(DataError, match=said):
        Checkpoint(tmp_path / "m")["a"]


def test_names_do_not_grow_without_end(tmp_path: Path) -> None:
    write_bundle(tmp_path / "m", {"a" * 5000: np.zeros(2, np.float32)})
    with pytest.raises(DataError, match="has a broken entry"):
        Checkpoint(tmp_path / "m")


def test_a_checkpoint_is_found_however_it_is_named(tmp_path: Path) -> None:
    for step in (9, 10):
        write_bundle(tmp_path / f"m-{step}", {"a": np.zeros(1, np.float32)})
    for given in ("m-9", "m-9.index", "m-9.data-00000-of-00001", "m-9.meta"):
        assert find_prefix(tmp_path / given) == tmp_path / "m-9"
    assert find_prefix(tmp_path) == tmp_path / "m-10"
    listed = tmp_path / "checkpoint"
    for name in ("m-9", "/elsewhere/m-9", r"C:\\there\\m-9"):
        listed.write_text(f'model_checkpoint_path: "{name}"\nall_model_checkpoint_paths: "m-10"\n')
        assert find_prefix(tmp_path) == find_prefix(listed) == tmp_path / "m-9"
    listed.write_text("")
    with pytest.raises(DataError, match="names no model_checkpoint_path"):
        find_prefix(listed)
    listed.write_text('model_checkpoint_path: ""\n')
    with pytest.raises(DataError, match="is no file"):
        find_prefix(listed)
    with pytest.raises(DataError, match="names no checkpoint"):
        find_prefix(tmp_path / ".index")
    (tmp_path / "old.ckpt").write_bytes(b"")
    with pytest.raises(DataError, match=r"not a checkpoint of format V2, which has old.ckpt.index"):
        find_prefix(tmp_path / "old.ckpt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no checkpoint in it"):
        find_prefix(tmp_path / "empty")
    with pytest.raises(DataError, match=r"none\.index: no such file"):
        Checkpoint(tmp_path / "none")
