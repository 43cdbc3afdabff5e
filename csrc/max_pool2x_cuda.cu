// Largest of two by two and its gradient: a thread has one vector of channels of one cell of the
// result, and the four cells that it stands for. The backward gathers: every thread writes its own
// cells of x, so nothing is cleared first and nothing added up.
#include "cuda_utils.cuh"
#include "max_pool2x_math.h"
#include "ops.h"

namespace fasthg {
namespace {

constexpr int kThreads = 256;

struct Shape {
  int64_t height, width;  // of x
  int channels, row_vectors, blocks_a_row;
  int rows;  // of cells an image, and in the backward those that a last odd row or column starts
};

struct Place {
  int64_t column, row, image, channel;
};

template <int vector>
__device__ bool place(const Shape& shape, Place* here) {
  const int at = blockIdx.x % shape.blocks_a_row * kThreads + threadIdx.x;
  const int row = blockIdx.x / shape.blocks_a_row, vectors = shape.channels / vector;
  *here = {at / vectors, row % shape.rows, row / shape.rows,
           static_cast<int64_t>(at % vectors) * vector};
  return at < shape.row_vectors;
}

// Offsets in values of a cell of the result, and of one of the four it stands for.
__device__ int64_t small(const Shape& shape, const Place& here) {
  const int64_t row = here.image * (shape.height / 2) + here.row;
  return (row * (shape.width / 2) + here.column) * shape.channels + here.channel;
}
__device__ int64_t large(const Shape& shape, const Place& here, int place) {
  const int64_t row = here.image * shape.height + 2 * here.row + place / 2;
  return (row * shape.width + 2 * here.column + place % 2) * shape.channels + here.channel;
}

template <typename T, int vector>
__global__ void __launch_bounds__(kThreads)
    max_pool2x_kernel(const T* x, Shape shape, T* y, uint8_t* index) {
  using Real = typename Accumulate<T>::type;
  using Values = Vector<T, vector>;
  Place here;
  if (!place<vector>(shape, &here)) return;
  Values values[4], largest;
  Vector<uint8_t, vector> which;
#pragma unroll
  for (int k = 0; k < 4; ++k)
    values[k] = *reinterpret_cast<const Values*>(x + large(shape, here, k));
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
  const int64_t out = small(shape, here);
  *reinterpret_cast<Values*>(y + out) = largest;
  *reinterpret_cast<Vector<uint8_t, vector>*>(index + out) = which;
}

template <typename T, int vector>
__global__ void __launch_bounds__(kThreads)
    max_pool2x_backward_kernel(const T* grad_y, const uint8_t* index, Shape shape, T* grad_x) {
  using Real = typename Accumulate<T>::type;
  using Values = Vector<T, vector>;
  Place here;
  if (!place<vector>(shape, &here)) return;
  const bool right = 2 * here.column + 1 < shape.width, below = 2 * here.row + 1 < shape.height;
  Values incoming;
  Vector<uint8_t, vector> which;
  if (right && below) {
    const int64_t in = small(shape, here);
    incoming = *reinterpret_cast<const Values*>(grad_y + in);
    which = *reinterpret_cast<const Vector<uint8_t, vector>*>(index + in);
  } else {
#pragma unroll
    for (int i = 0; i < vector; ++i) incoming.value[i] = static_cast<T>(Real(0));
#pragma unroll
    for (int i = 0; i < vector; ++i) which.value[i] = 0;
  }
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    if ((k % 2 && !right) || (k / 2 && !below)) continue;
    Values values;
#pragma unroll
    for (int i = 0; i < vector; ++i)
      values.value[i] = static_cast<T>(
          pooled_backward(static_cast<Real>(incoming.value[i]), int{which.value[i]}, k));
    *reinterpret_cast<Values*>(grad_x + large(shape, here, k)) = values;
  }
}

struct Arguments {
  const void *x, *grad_y;
  const int64_t* shape;
  void *y, *grad_x;
  uint8_t* index;
  void* stream;
};

template <typename T, int vector>
const char* launch(const Arguments& a) {
  const int64_t batch = a.shape[0], height = a.shape[1], width = a.shape[2], channels = a.shape[3];
  // In the backward, a last odd row or column has threads as well.
  const int64_t rows = (height + (a.grad_y != nullptr)) / 2;
  const int64_t row_vectors = (width + (a.grad_y != nullptr)) / 2 * (channels / vector);
  const int64_t blocks = (row_vectors + kThreads - 1) / kThreads;
  if (row_vectors > INT32_MAX / 2 || batch * rows * blocks > INT32_MAX)
    return "max_pool2x: the map is too large for one launch";
  const Shape shape{height,
                    width,
                    static_cast<int>(channels),
                    static_cast<int>(row_vectors),
                    static_cast<int>(blocks),
                    static_cast<int>(rows)};
  const dim3 grid(static_cast<unsigned>(batch * rows * blocks)), threads(kThreads);
  if (a.grad_y)
    FASTHG_LAUNCH((max_pool2x_backward_kernel<T, vector>), grid, threads, 0, a.stream,
                  static_cast<const T*>(a.grad_y), a.index, shape, static_cast<T*>(a.grad_x));
  else
    FASTHG_LAUNCH((max_pool2x_kernel<T, vector>), grid, threads, 0, a.stream,
                  static_cast<const T*>(a.x), shape, static_cast<T*>(a.y), a.index);
  return launch_status();
}

const char* launch(int dtype, const Arguments& a, int device) {
  const DeviceGuard guard(device);
  return dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int vector = kVectorLength<T>;
    const bool vectors = a.shape[3] % vector == 0 && aligned16(a.x) && aligned16(a.grad_y) &&
                         aligned16(a.y) && aligned16(a.grad_x) && aligned16(a.index);
    return vectors ? launch<T, vector>(a) : launch<T, 1>(a);
  });
}

}  // namespace
}  // namespace fasthg

const char* fasthg_max_pool2x_cuda(int dtype, const void* x, const int64_t shape[4], void* y,
                                   uint8_t* index, int device, void* stream) {
  return fasthg::launch(dtype, {x, nullptr, shape, y, nullptr, index, stream}, device);
}

const char* fasthg_max_pool2x_backward_cuda(int dtype, const void* grad_y, const uint8_t* index,
                                            const int64_t shape[4], void* grad_x, int device,
                                            void* stream) {
  auto* read = const_cast<uint8_t*>(index);
  return fasthg::launch(dtype, {nullptr, grad_y, shape, nullptr, grad_x, read, stream}, device);
}
