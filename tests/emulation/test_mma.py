"""The tensor core wrappers of csrc/mma.cuh under the emulation: fragments as the PTX ISA says."""

from __future__ import annotations

import ctypes

import pytest
import torch

CODES = {torch.float16: 2, torch.bfloat16: 3}
# One warp: c = a b for a (16, 16) and b (16, 8), or b given as its transpose (8, 16).
SOURCE = r"""
#include "mma.cuh"
using namespace fasthg;
template <typename T>
__global__ void product_kernel(const T* a, const T* b, bool transposed, float* c) {
  FASTHG_SHARED(shared);
  T* tile = reinterpret_cast<T*>(shared);
  const int lane = threadIdx.x;
  for (int i = lane; i < 256; i += kWarp) tile[i] = a[i];
  for (int i = lane; i < 128; i += kWarp) tile[256 + i] = b[i];
  __syncthreads();
  uint32_t grad_a[4], grad_b[4];
  load_matrices<false>(tile + (lane / 8 % 2 * 8 + lane % 8) * 16 + lane / 16 * 8, grad_a);
  const T* second = tile + 256;
  if (transposed)
    load_matrices<false>(second + lane % 8 * 16 + lane / 8 % 2 * 8, grad_b);
  else
    load_matrices<true>(second + lane % 16 * 8, grad_b);
  const uint32_t pair[2] = {grad_b[0], grad_b[1]};
  float sums[4] = {};
  mma_16x8x16<T>(grad_a, pair, sums);
  for (int i = 0; i < 4; ++i) c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sums[i];
}
extern "C" const char* product(int dtype, const void* a, const void* b, bool transposed, float* c) {
  return dispatch(dtype, [&](auto zero) -> const char* {
    using T = decltype(zero);
    if constexpr (sizeof(T) == 2)
      FASTHG_LAUNCH(product_kernel<T>, dim3(1), dim3(32), 768, nullptr, static_cast<const T*>(a),
                    static_cast<const T*>(b), transposed, c);
    return launch_status();
  });
}
"""


@pytest.fixture(scope="module")
def product(build, repository, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mma")
    (folder / "product_cuda.cu").write_text(SOURCE)
    library = build(folder, [str(folder / "product_cuda.cu")])
    library.product.restype = ctypes.c_char_p
    return library.product


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", CODES)
def test_product(product, dtype, transposed):
    random = torch.Generator().manual_seed(0)
    a = torch.randn(16, 16, generator=random).to(dtype)
    b = torch.randn(16, 8, generator=random).to(dtype)
    given = b.t().contiguous() if transposed else b
    c = torch.full((16, 8), torch.nan)
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (a, given)]
    refusal = product(CODES[dtype], *pointers, transposed, ctypes.c_void_p(c.data_ptr()))
    assert refusal is None
    torch.testing.assert_close(c.double(), a.double() @ b.double(), rtol=1e-6, atol=1e-6)
