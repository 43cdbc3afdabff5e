// One step of RMSProp and moving averages on the GPU. Formulas: rmsprop_ema_math.h.
//
// Fused: average, L2, mean square, momentum and weight of all tensors in one launch over flat
// buffers, 16 bytes a thread.
//
// Memory traffic, in weights: 5 (gradient read, values and squares read and written), 2 more each
// for momenta and averages, which is the floor.
//
// Rate, average weight and found_inf are read on the device: a captured CUDA graph can be replayed
// with others, and a step skipped after an overflow costs no synchronisation with the host. Flat
// buffers are the price: parameters and gradients must be views into them. A list of pointers, as
// in torch's foreach optimisers, would not need that, but has borders inside blocks.
#include "cuda_utils.cuh"
#include "ops.h"
#include "rmsprop_ema_math.h"

namespace fasthg {
namespace {

constexpr int kThreads = 256;

template <typename T, int vector>
__global__ void __launch_bounds__(kThreads) rmsprop_ema_kernel(RmspropStep step) {
  using Values = Vector<T, vector>;
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * vector;
  if (at >= step.total) return;
  const auto at_buffer = [at](auto* buffer) {
    return reinterpret_cast<Values*>(static_cast<T*>(buffer) + at);
  };
  const RmspropConstants<T> c(step);
  Values values = *at_buffer(step.values);
  if (step.averages) {
    Values averages = *at_buffer(step.averages);
#pragma unroll
    for (int k = 0; k < vector; ++k)
      averages.value[k] = update_average(averages.value[k], values.value[k], c.average_weight);
    *at_buffer(step.averages) = averages;
  }
  // With vectors the launcher has checked that no vector crosses the end of the weights.
  if (at >= step.weights || (step.found_inf && *step.found_inf != 0)) return;

  Values squares = *at_buffer(step.squares);
  const Values gradient =
      *reinterpret_cast<const Values*>(static_cast<const T*>(step.gradient) + at);
  Values changes;
#pragma unroll
  for (int k = 0; k < vector; ++k)
    changes.value[k] =
        rmsprop_change(values.value[k], gradient.value[k],
                       at + k < step.decayed ? c.weight_decay : T(0), c, squares.value[k]);
  *at_buffer(step.squares) = squares;
  if (step.momenta) {
    const Values momenta = *at_buffer(step.momenta);
#pragma unroll
    for (int k = 0; k < vector; ++k) changes.value[k] += c.momentum * momenta.value[k];
    *at_buffer(step.momenta) = changes;
  }
#pragma unroll
  for (int k = 0; k < vector; ++k) values.value[k] -= changes.value[k];
  *at_buffer(step.values) = values;
}

template <typename T, int vector>
const char* launch(const RmspropStep& step, void* stream) {
  const int64_t threads = (step.total + vector - 1) / vector;
  auto* kernel = rmsprop_ema_kernel<T, vector>;
  FASTHG_LAUNCH(kernel, dim3((threads + kThreads - 1) / kThreads), dim3(kThreads), 0, stream, step);
  return launch_status();
}

template <typename T>
const char* launch(const RmspropStep& step, void* stream) {
  constexpr int vector = kVectorLength<T>;
  bool vectors = step.total % vector == 0 && step.weights % vector == 0;
  for (const void* buffer :
       {static_cast<const void*>(step.values), step.gradient,
        static_cast<const void*>(step.squares), static_cast<const void*>(step.momenta),
        static_cast<const void*>(step.averages)})
    vectors = vectors && aligned16(buffer);
  return vectors ? launch<T, vector>(step, stream) : launch<T, 1>(step, stream);
}

}  // namespace
}  // namespace fasthg

const char* fasthg_rmsprop_ema_cuda(int dtype, const fasthg::RmspropStep* step, int device,
                                    void* stream) {
  const fasthg::DeviceGuard guard(device);
  if (dtype == fasthg::kFloat32) return fasthg::launch<float>(*step, stream);
  if (dtype == fasthg::kFloat64) return fasthg::launch<double>(*step, stream);
  return "rmsprop_ema takes float32 and float64";
}
