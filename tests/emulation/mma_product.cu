// One warp's product by csrc/mma.cuh: c = a b for a (16, 16) and b (16, 8), or b as its transpose
// (8, 16). test_mma.py calls it.
#include "mma.cuh"

namespace {

using namespace fasthg;

template <typename T>
__global__ void product_kernel(const T* a, const T* b, bool transposed, float* c) {
  FASTHG_SHARED(shared);
  T* tile = reinterpret_cast<T*>(shared);
  const int lane = threadIdx.x;
  for (int i = lane; i < 256; i += kWarp) tile[i] = a[i];
  for (int i = lane; i < 128; i += kWarp) tile[256 + i] = b[i];
  __syncthreads();
  uint32_t pieces_a[4], pieces_b[4];
  load_matrices<false>(tile + (lane / 8 % 2 * 8 + lane % 8) * 16 + lane / 16 * 8, pieces_a);
  const T* second = tile + 256;
  if (transposed)
    load_matrices<false>(second + lane % 8 * 16 + lane / 8 % 2 * 8, pieces_b);
  else
    load_matrices<true>(second + lane % 16 * 8, pieces_b);
  const uint32_t pair[2] = {pieces_b[0], pieces_b[1]};
  float sums[4] = {};
  mma_16x8x16<T>(pieces_a, pair, sums);
  for (int i = 0; i < 4; ++i) c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sums[i];
}

}  // namespace

extern "C" __attribute__((visibility("default"))) const char* mma_product(
    int dtype, const void* a, const void* b, bool transposed, float* c) {
  return dispatch(dtype, [&](auto zero) -> const char* {
    using T = decltype(zero);
    if constexpr (sizeof(T) == 2)
      FASTHG_LAUNCH(product_kernel<T>, dim3(1), dim3(32), 768, nullptr, static_cast<const T*>(a),
                    static_cast<const T*>(b), transposed, c);
    return launch_status();
  });
}
