// Upsampling by 2 plus addition and its gradient on the GPU. Formulas: upsample2x_add_math.h.
//
// Fused: the enlarged map is never stored. Memory traffic, in large maps: forward 2.25 (low, a
// quarter, and high read, y written), backward 1.25 (grad_y read, grad_low written); the gradient
// of high is grad_y itself. Upsampling first and adding then would write and read 1 map more each.
//
// A thread has one vector of channels (16 bytes) of one cell of the small map and the four cells of
// the large one that it covers. Threads over the cells of the large map would read each value of
// low four times and need an atomic sum in the backward.
#include "cuda_utils.cuh"
#include "ops.h"
#include "upsample2x_add_math.h"

namespace fasthg {
namespace {

constexpr int kThreads = 256;

struct UpsampleShape {
  int64_t length;  // values in a row of the small map
  int channels, row_vectors, blocks_a_row;
};

struct CellOffsets {
  int64_t low, high[4];  // offsets in values; high: row by row
  bool inside;
};

template <int vector>
__device__ CellOffsets cell_offsets(const UpsampleShape& shape) {
  const int vector_index = blockIdx.x % shape.blocks_a_row * kThreads + threadIdx.x;
  const int64_t row = blockIdx.x / shape.blocks_a_row,
                offset = static_cast<int64_t>(vector_index) * vector;
  const int64_t column_start =
      vector_index / (shape.channels / vector) * static_cast<int64_t>(shape.channels);
  CellOffsets cell;
  cell.inside = vector_index < shape.row_vectors;
  cell.low = row * shape.length + offset;
#pragma unroll
  for (int k = 0; k < 4; ++k)
    cell.high[k] =
        (4 * row + k / 2 * 2) * shape.length + column_start + offset + k % 2 * shape.channels;
  return cell;
}

template <typename T, int vector>
__global__ void __launch_bounds__(kThreads)
    upsample2x_add_kernel(const T* low, const T* high, UpsampleShape shape, T* y) {
  using Real = typename Accumulate<T>::type;
  using Values = Vector<T, vector>;
  const CellOffsets cell = cell_offsets<vector>(shape);
  if (!cell.inside) return;
  const Values added = *reinterpret_cast<const Values*>(low + cell.low);
  Values values[4];
#pragma unroll
  for (int k = 0; k < 4; ++k) values[k] = *reinterpret_cast<const Values*>(high + cell.high[k]);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
#pragma unroll
    for (int i = 0; i < vector; ++i)
      values[k].value[i] = static_cast<T>(
          upsample_add(static_cast<Real>(values[k].value[i]), static_cast<Real>(added.value[i])));
    store_whole(values[k], y + cell.high[k]);
  }
}

template <typename T, int vector>
__global__ void __launch_bounds__(kThreads)
    upsample2x_add_backward_kernel(const T* grad_y, UpsampleShape shape, T* grad_low) {
  using Real = typename Accumulate<T>::type;
  using Values = Vector<T, vector>;
  const CellOffsets cell = cell_offsets<vector>(shape);
  if (!cell.inside) return;
  Values values[4], sum;
#pragma unroll
  for (int k = 0; k < 4; ++k) values[k] = *reinterpret_cast<const Values*>(grad_y + cell.high[k]);
#pragma unroll
  for (int i = 0; i < vector; ++i)
    sum.value[i] = static_cast<T>(upsample_backward(
        static_cast<Real>(values[0].value[i]), static_cast<Real>(values[1].value[i]),
        static_cast<Real>(values[2].value[i]), static_cast<Real>(values[3].value[i])));
  *reinterpret_cast<Values*>(grad_low + cell.low) = sum;
}

template <typename T, int vector>
const char* launch(const void* low, const void* high, int64_t rows, int64_t width, int64_t channels,
                   const void* grad_y, void* out, void* stream) {
  const int64_t length = width * channels, blocks = (length / vector + kThreads - 1) / kThreads;
  if (length > INT32_MAX / 2 || rows * blocks > INT32_MAX)
    return "upsample2x_add: the map is too large for one launch";
  const UpsampleShape shape{length, static_cast<int>(channels), static_cast<int>(length / vector),
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
