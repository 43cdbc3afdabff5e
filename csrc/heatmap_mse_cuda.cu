// Heatmap loss and gradient of all stacks on the GPU, one launch each.
//
//   loss[stack, image] = sum (prediction - target)^2 / 2
//   grad_prediction = (prediction - target) grad_loss[stack, image]
// with the Gaussian targets of gaussian_heatmaps_math.h.
//
// Fused: a block fills its image's tables of factors in shared memory and multiplies target values
// from them, so no target map is stored.
//
// Memory traffic, in predictions: forward 1 (read), backward 2 (read again, gradient written). With
// stored targets a single stack would move 1 more to draw and 1 more to read in each direction. On
// an H200 loss and gradient of 8 stacks, batch 8, take 42.7 us; drawing and torch's MSE take 158.6
// (docs/gpu.md).
//
// Trade-off: each loss is summed by one block of 512 threads, in a fixed order, so it repeats to
// the last bit and needs neither atomics nor a second kernel. The price: stacks * batch blocks,
// fewer than a GPU holds where the batch is small. The gradient needs no sum and takes as
// many blocks as there are pieces of 8192 values, a few times the cost of the tables.
#include "gaussian_tables.cuh"
#include "heatmap_mse_math.h"
#include "ops.h"

namespace fasthg {
namespace {

constexpr int kLossThreads = 512;
constexpr int kGradientThreads = 256;
constexpr int kElementsPerBlock = 8192;  // of the gradient; a few times the cost of the tables

template <typename T>
struct PredictionView {
  const T* data;
  int64_t stack_stride, batch_stride;
  __device__ const T* image(int stack, int image) const {
    return data + stack * stack_stride + image * batch_stride;
  }
};

template <typename Real>
struct Add {
  __device__ Real operator()(Real a, Real b) const { return a + b; }
};

template <typename T, int vector, bool channels_last>
__global__ void __launch_bounds__(kLossThreads)
    heatmap_mse_kernel(Targets targets, PredictionView<T> predictions,
                       typename Accumulate<T>::type* __restrict__ loss) {
  using Real = typename Accumulate<T>::type;
  using Values = Vector<T, vector>;
  FASTHG_SHARED(shared);
  Real* scratch = reinterpret_cast<Real*>(shared);
  Real* tables = scratch + kMaximumWarps;
  const int image = blockIdx.x, stack = blockIdx.y;
  fill_tables(targets, image, channels_last, tables);
  __syncthreads();  // the loss reads what all threads wrote

  const int size = targets.parts * targets.height * targets.width;
  const T* prediction = predictions.image(stack, image);
  Real sum = 0;
  for (int i = threadIdx.x * vector; i < size; i += kLossThreads * vector) {
    const Values values = *reinterpret_cast<const Values*>(prediction + i);
    TargetWalk<Real, channels_last> walk(targets, tables, i);
#pragma unroll
    for (int k = 0; k < vector; ++k)
      sum += squared_error(static_cast<Real>(values.value[k]), walk.next());
  }
  sum = block_reduce(sum, Real(0), scratch, Add<Real>());
  if (threadIdx.x == 0) loss[stack * targets.batch + image] = sum / 2;
}

template <typename T, int vector, bool channels_last>
__global__ void __launch_bounds__(kGradientThreads)
    heatmap_mse_backward_kernel(Targets targets, PredictionView<T> predictions,
                                const typename Accumulate<T>::type* __restrict__ grad_loss,
                                T* __restrict__ gradient) {
  using Real = typename Accumulate<T>::type;
  using Values = Vector<T, vector>;
  FASTHG_SHARED(shared);
  Real* tables = reinterpret_cast<Real*>(shared);
  const int image = blockIdx.x, stack = blockIdx.y;
  fill_tables(targets, image, channels_last, tables);
  __syncthreads();  // the gradient reads what all threads wrote

  const int size = targets.parts * targets.height * targets.width;
  const int index = stack * targets.batch + image;
  const T* prediction = predictions.image(stack, image);
  T* out = gradient + static_cast<int64_t>(index) * size;
  const Real scale = grad_loss[index];
  const int begin = blockIdx.z * kElementsPerBlock;
  const int end = begin + kElementsPerBlock < size ? begin + kElementsPerBlock : size;
  for (int i = begin + threadIdx.x * vector; i < end; i += kGradientThreads * vector) {
    Values values = *reinterpret_cast<const Values*>(prediction + i);
    TargetWalk<Real, channels_last> walk(targets, tables, i);
#pragma unroll
    for (int k = 0; k < vector; ++k)
      values.value[k] = static_cast<T>(
          squared_error_backward(static_cast<Real>(values.value[k]), walk.next(), scale));
    *reinterpret_cast<Values*>(out + i) = values;
  }
}

struct HeatmapMseCall {
  const Targets& targets;
  int stacks;
  const void* predictions;
  int64_t stack_stride, batch_stride;
  void* loss;             // written, if gradient is null
  const void* grad_loss;  // else read
  void* gradient;
  void* stream;
};

template <typename T, int vector, bool channels_last>
const char* launch(const HeatmapMseCall& a) {
  using Real = typename Accumulate<T>::type;
  const Targets& targets = a.targets;
  const PredictionView<T> predictions{static_cast<const T*>(a.predictions), a.stack_stride,
                                      a.batch_stride};
  const size_t tables = sizeof(Real) * table_size(targets);
  if (!a.gradient) {
    const size_t shared = tables + sizeof(Real) * kMaximumWarps;
    auto* kernel = heatmap_mse_kernel<T, vector, channels_last>;
    if (const char* refusal = allow_shared(kernel, shared)) return refusal;
    FASTHG_LAUNCH(kernel, dim3(targets.batch, a.stacks), dim3(kLossThreads), shared, a.stream,
                  targets, predictions, static_cast<Real*>(a.loss));
  } else {
    auto* kernel = heatmap_mse_backward_kernel<T, vector, channels_last>;
    if (const char* refusal = allow_shared(kernel, tables)) return refusal;
    const int size = targets.parts * targets.height * targets.width;
    const int blocks = (size + kElementsPerBlock - 1) / kElementsPerBlock;
    FASTHG_LAUNCH(kernel, dim3(targets.batch, a.stacks, blocks), dim3(kGradientThreads), tables,
                  a.stream, targets, predictions, static_cast<const Real*>(a.grad_loss),
                  static_cast<T*>(a.gradient));
  }
  return launch_status();
}

template <typename T>
const char* launch(const HeatmapMseCall& a, bool channels_last) {
  constexpr int vector = kVectorLength<T>;
  const int64_t size = int64_t{1} * a.targets.parts * a.targets.height * a.targets.width;
  const bool vectors = size % vector == 0 && a.stack_stride % vector == 0 &&
                       a.batch_stride % vector == 0 && aligned16(a.predictions) &&
                       aligned16(a.gradient);
  if (channels_last) return vectors ? launch<T, vector, true>(a) : launch<T, 1, true>(a);
  return vectors ? launch<T, vector, false>(a) : launch<T, 1, false>(a);
}

const char* launch(int dtype, const HeatmapMseCall& arguments, bool channels_last, int device) {
  const DeviceGuard guard(device);
  return dispatch(dtype,
                  [&](auto zero) { return launch<decltype(zero)>(arguments, channels_last); });
}

}  // namespace
}  // namespace fasthg

const char* fasthg_heatmap_mse_cuda(int dtype, const fasthg::Targets* targets, int stacks,
                                    const void* predictions, int64_t stack_stride,
                                    int64_t batch_stride, bool channels_last, void* loss,
                                    int device, void* stream) {
  const fasthg::HeatmapMseCall arguments{*targets, stacks,  predictions, stack_stride, batch_stride,
                                         loss,     nullptr, nullptr,     stream};
  return fasthg::launch(dtype, arguments, channels_last, device);
}

const char* fasthg_heatmap_mse_backward_cuda(int dtype, const fasthg::Targets* targets, int stacks,
                                             const void* predictions, int64_t stack_stride,
                                             int64_t batch_stride, bool channels_last,
                                             const void* grad_loss, void* gradient, int device,
                                             void* stream) {
  const fasthg::HeatmapMseCall arguments{*targets,     stacks,       predictions,
                                         stack_stride, batch_stride, nullptr,
                                         grad_loss,    gradient,     stream};
  return fasthg::launch(dtype, arguments, channels_last, device);
}
