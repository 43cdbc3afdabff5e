"""The tensor core wrappers of csrc/mma.cuh under the emulation: fragments as the PTX ISA says."""

from __future__ import annotations

import ctypes

import pytest
import torch

from fasthg.ops._extension import DTYPE_CODES

pytestmark = pytest.mark.slow  # a minute to compile


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_product(switches, dtype, transposed):
    product = switches.mma_product
    product.restype = ctypes.c_char_p
    random = torch.Generator().manual_seed(0)
    a = torch.randn(16, 16, generator=random).to(dtype)
    b = torch.randn(16, 8, generator=random).to(dtype)
    stored = b.t().contiguous() if transposed else b
    c = torch.full((16, 8), torch.nan)
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (a, stored)]
    refusal = product(DTYPE_CODES[dtype], *pointers, transposed, ctypes.c_void_p(c.data_ptr()))
    assert refusal is None
    torch.testing.assert_close(c.double(), a.double() @ b.double(), rtol=1e-6, atol=1e-6)
