// Max pooling 2x2 and its gradient on the GPU. Formula: max_pool2x_math.h.
//
// A thread has one vector of channels (16 bytes) of one cell of y and the four cells of x that it
// stands for. The backward gathers: every thread writes its own cells of grad_x, so no memory is
// cleared first and nothing is added atomically.
//
// Memory traffic in units of x: forward 1.375 in 16 bits (x read, y and one byte of index written),
// 1.3125 in 32; backward the same (grad_y and index read, grad_x written), and 1 more for an
// addend, the gradient of another reader of x: to add the two afterwards would be 3 more. Two bits
// a result would do for the index and need packing across threads. Keeping x and y in place of the
// index would cost 1.25 more to read in the backward and the memory of x.
#include "cuda_utils.cuh"
#include "max_pool2x_math.h"
#include "ops.h"

namespace fasthg {
namespace {

constexpr int kThreads = 256;

struct PoolShape {
  int64_t height, width;  // of x
  int channels, row_vectors, blocks_a_row;
  int rows;  // rows of cells an image; in the backward a last odd row counts as one
};

struct PoolCell {
  int64_t column, row, image, channel;
};

template <int vector>
__device__ bool locate(const PoolShape& shape, PoolCell* cell) {
  const int at = blockIdx.x % shape.blocks_a_row * kThreads + threadIdx.x;
  const int row = blockIdx.x / shape.blocks_a_row, vectors = shape.channels / vector;
  *cell = {at / vectors, row % shape.rows, row / shape.rows,
           static_cast<int64_t>(at % vectors) * vector};
  return at < shape.row_vectors;
}

// Offset in values of a cell of y, and of one of its four cells of x.
__device__ int64_t pooled_offset(const PoolShape& shape, const PoolCell& cell) {
  const int64_t row = cell.image * (shape.height / 2) + cell.row;
  return (row * (shape.width / 2) + cell.column) * shape.channels + cell.channel;
}
__device__ int64_t full_offset(const PoolShape& shape, const PoolCell& cell, int position) {
  const int64_t row = cell.image * shape.height + 2 * cell.row + position / 2;
  return (row * shape.width + 2 * cell.column + position % 2) * shape.channels + cell.channel;
}

template <typename T, int vector>
__global__ void __launch_bounds__(kThreads)
    max_pool2x_kernel(const T* x, PoolShape shape, T* y, uint8_t* index) {
  using Real = typename Accumulate<T>::type;
  using Values = Vector<T, vector>;
  PoolCell cell;
  if (!locate<vector>(shape, &cell)) return;
  Values values[4], largest;
  Vector<uint8_t, vector> which;
#pragma unroll
  for (int k = 0; k < 4; ++k)
    values[k] = *reinterpret_cast<const Values*>(x + full_offset(shape, cell, k));
#pragma unroll
  for (int i = 0; i < vector; ++i) {
    Real best = static_cast<Real>(values[0].value[i]);
    int at = 0;
#pragma unroll
    for (int k = 1; k < 4; ++k) {
      const Real value = static_cast<Real>(values[k].value[i]);
      if (!replaces(value, best)) continue;
      best = value;
      at = k;
    }
    largest.value[i] = static_cast<T>(best);
    which.value[i] = static_cast<uint8_t>(at);
  }
  const int64_t out = pooled_offset(shape, cell);
  *reinterpret_cast<Values*>(y + out) = largest;
  *reinterpret_cast<Vector<uint8_t, vector>*>(index + out) = which;
}

template <typename T, int vector>
__global__ void __launch_bounds__(kThreads)
    max_pool2x_backward_kernel(const T* grad_y, const uint8_t* index, const T* addend,
                               PoolShape shape, T* grad_x) {
  using Real = typename Accumulate<T>::type;
  using Values = Vector<T, vector>;
  PoolCell cell;
  if (!locate<vector>(shape, &cell)) return;
  const bool right = 2 * cell.column + 1 < shape.width, below = 2 * cell.row + 1 < shape.height;
  Values grad;
  Vector<uint8_t, vector> which;
  if (right && below) {
    const int64_t in = pooled_offset(shape, cell);
    grad = *reinterpret_cast<const Values*>(grad_y + in);
    which = *reinterpret_cast<const Vector<uint8_t, vector>*>(index + in);
  } else {
#pragma unroll
    for (int i = 0; i < vector; ++i) grad.value[i] = static_cast<T>(Real(0));
#pragma unroll
    for (int i = 0; i < vector; ++i) which.value[i] = 0;
  }
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    if ((k % 2 && !right) || (k / 2 && !below)) continue;
    const int64_t at = full_offset(shape, cell, k);
    Values values, added;
    if (addend) added = *reinterpret_cast<const Values*>(addend + at);
#pragma unroll
    for (int i = 0; i < vector; ++i) {
      Real value = max_pool_backward(static_cast<Real>(grad.value[i]), int{which.value[i]}, k);
      if (addend) value += static_cast<Real>(added.value[i]);
      values.value[i] = static_cast<T>(value);
    }
    *reinterpret_cast<Values*>(grad_x + at) = values;
  }
}

struct MaxPool2xCall {
  const void *x, *grad_y, *addend;
  const int64_t* shape;
  void *y, *grad_x;
  uint8_t* index;
  void* stream;
};

template <typename T, int vector>
const char* launch(const MaxPool2xCall& a) {
  const int64_t batch = a.shape[0], height = a.shape[1], width = a.shape[2], channels = a.shape[3];
  // In the backward a last odd row or column has threads as well: they write zeros.
  const int64_t rows = (height + (a.grad_y != nullptr)) / 2;
  const int64_t row_vectors = (width + (a.grad_y != nullptr)) / 2 * (channels / vector);
  const int64_t blocks = (row_vectors + kThreads - 1) / kThreads;
  if (row_vectors > INT32_MAX / 2 || batch * rows * blocks > INT32_MAX)
    return "max_pool2x: the map is too large for one launch";
  const PoolShape shape{height,
                        width,
                        static_cast<int>(channels),
                        static_cast<int>(row_vectors),
                        static_cast<int>(blocks),
                        static_cast<int>(rows)};
  const dim3 grid(static_cast<unsigned>(batch * rows * blocks)), threads(kThreads);
  if (a.grad_y)
    FASTHG_LAUNCH((max_pool2x_backward_kernel<T, vector>), grid, threads, 0, a.stream,
                  static_cast<const T*>(a.grad_y), a.index, static_cast<const T*>(a.addend), shape,
                  static_cast<T*>(a.grad_x));
  else
    FASTHG_LAUNCH((max_pool2x_kernel<T, vector>), grid, threads, 0, a.stream,
                  static_cast<const T*>(a.x), shape, static_cast<T*>(a.y), a.index);
  return launch_status();
}

const char* launch(int dtype, const MaxPool2xCall& a, int device) {
  const DeviceGuard guard(device);
  return dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int vector = kVectorLength<T>;
    const bool vectors = a.shape[3] % vector == 0 && aligned16(a.x) && aligned16(a.grad_y) &&
                         aligned16(a.addend) && aligned16(a.y) && aligned16(a.grad_x) &&
                         aligned16(a.index);
    return vectors ? launch<T, vector>(a) : launch<T, 1>(a);
  });
}

}  // namespace
}  // namespace fasthg

const char* fasthg_max_pool2x_cuda(int dtype, const void* x, const int64_t shape[4], void* y,
                                   uint8_t* index, int device, void* stream) {
  return fasthg::launch(dtype, {x, nullptr, nullptr, shape, y, nullptr, index, stream}, device);
}

const char* fasthg_max_pool2x_backward_cuda(int dtype, const void* grad_y, const uint8_t* index,
                                            const void* addend, const int64_t shape[4],
                                            void* grad_x, int device, void* stream) {
  auto* read = const_cast<uint8_t*>(index);
  return fasthg::launch(dtype, {nullptr, grad_y, addend, shape, nullptr, grad_x, read, stream},
                        device);
}
