// Nearest-neighbour upsampling onto a map and its gradient: a thread has one vector of channels of
// one cell of the small map, and the four cells of the large one that it covers.
#include "cuda_utils.cuh"
#include "ops.h"
#include "upsample2x_add_math.h"

namespace fasthg {
namespace {

constexpr int kThreads = 256;

struct Shape {
  int64_t length;  // values in a row of the small map
  int channels, row_vectors, blocks_a_row;
};

struct Place {
  int64_t small, large[4];  // offsets in values; large: row by row
  bool inside;
};

template <int vector>
__device__ Place place(const Shape& shape) {
  const int at = blockIdx.x % shape.blocks_a_row * kThreads + threadIdx.x;
  const int64_t row = blockIdx.x / shape.blocks_a_row, offset = static_cast<int64_t>(at) * vector;
  const int64_t column_start =
      at / (shape.channels / vector) * static_cast<int64_t>(shape.channels);
  Place here;
  here.inside = at < shape.row_vectors;
  here.small = row * shape.length + offset;
#pragma unroll
  for (int k = 0; k < 4; ++k)
    here.large[k] =
        (4 * row + k / 2 * 2) * shape.length + column_start + offset + k % 2 * shape.channels;
  return here;
}

template <typename T, int vector>
__global__ void __launch_bounds__(kThreads)
    upsample2x_add_kernel(const T* low, const T* high, Shape shape, T* y) {
  using Real = typename Accumulate<T>::type;
  using Values = Vector<T, vector>;
  const Place here = place<vector>(shape);
  if (!here.inside) return;
  const Values added = *reinterpret_cast<const Values*>(low + here.small);
  Values values[4];
#pragma unroll
  for (int k = 0; k < 4; ++k) values[k] = *reinterpret_cast<const Values*>(high + here.large[k]);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
#pragma unroll
    for (int i = 0; i < vector; ++i)
      values[k].value[i] = static_cast<T>(
          upsampled(static_cast<Real>(values[k].value[i]), static_cast<Real>(added.value[i])));
    store_whole(values[k], y + here.large[k]);
  }
}

template <typename T, int vector>
__global__ void __launch_bounds__(kThreads)
    upsample2x_add_backward_kernel(const T* grad_y, Shape shape, T* grad_low) {
  using Real = typename Accumulate<T>::type;
  using Values = Vector<T, vector>;
  const Place here = place<vector>(shape);
  if (!here.inside) return;
  Values values[4], sum;
#pragma unroll
  for (int k = 0; k < 4; ++k) values[k] = *reinterpret_cast<const Values*>(grad_y + here.large[k]);
#pragma unroll
  for (int i = 0; i < vector; ++i)
    sum.value[i] = static_cast<T>(upsampled_backward(
        static_cast<Real>(values[0].value[i]), static_cast<Real>(values[1].value[i]),
        static_cast<Real>(values[2].value[i]), static_cast<Real>(values[3].value[i])));
  *reinterpret_cast<Values*>(grad_low + here.small) = sum;
}

template <typename T, int vector>
const char* launch(const void* low, const void* high, int64_t rows, int64_t width, int64_t channels,
                   const void* grad_y, void* out, void* stream) {
  const int64_t length = width * channels, blocks = (length / vector + kThreads - 1) / kThreads;
  if (length > INT32_MAX / 2 || rows * blocks > INT32_MAX)
    return "upsample2x_add: the map is too large for one launch";
  const Shape shape{length, static_cast<int>(channels), static_cast<int>(length / vector),
                    static_cast<int>(blocks)};
  const dim3 grid(static_cast<unsigned>(rows * blocks)), threads(kThreads);
  if (grad_y)
    FASTHG_LAUNCH((upsample2x_add_backward_kernel<T, vector>), grid, threads, 0, stream,
                  static_cast<const T*>(grad_y), shape, static_cast<T*>(out));
  else
    FASTHG_LAUNCH((upsample2x_add_kernel<T, vector>), grid, threads, 0, stream,
                  static_cast<const T*>(low), static_cast<const T*>(high), shape,
                  static_cast<T*>(out));
  return launch_status();
}

const char* launch(int dtype, const void* low, const void* high, int64_t rows, int64_t width,
                   int64_t channels, const void* grad_y, void* out, int device, void* stream) {
  const DeviceGuard guard(device);
  return dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int vector = kVectorLength<T>;
    const bool vectors = channels % vector == 0 && aligned16(low) && aligned16(high) &&
                         aligned16(grad_y) && aligned16(out);
    return vectors ? launch<T, vector>(low, high, rows, width, channels, grad_y, out, stream)
                   : launch<T, 1>(low, high, rows, width, channels, grad_y, out, stream);
  });
}

}  // namespace
}  // namespace fasthg

const char* fasthg_upsample2x_add_cuda(int dtype, const void* low, const void* high, int64_t rows,
                                       int64_t width, int64_t channels, void* y, int device,
                                       void* stream) {
  return fasthg::launch(dtype, low, high, rows, width, channels, nullptr, y, device, stream);
}

const char* fasthg_upsample2x_add_backward_cuda(int dtype, const void* grad_y, int64_t rows,
                                                int64_t width, int64_t channels, void* grad_low,
                                                int device, void* stream) {
  return fasthg::launch(dtype, nullptr, nullptr, rows, width, channels, grad_y, grad_low, device,
                        stream);
}
