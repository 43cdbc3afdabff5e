// The optimiser's step: every value is read and written once, 16 bytes at a time.
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
  const auto lies = [at](auto* buffer) {
    return reinterpret_cast<Values*>(static_cast<T*>(buffer) + at);
  };
  const RmspropConstants<T> c(step);
  Values values = *lies(step.values);
  if (step.averages) {
    Values averages = *lies(step.averages);
#pragma unroll
    for (int k = 0; k < vector; ++k)
      averages.value[k] = moved_average(averages.value[k], values.value[k], c.average_weight);
    *lies(step.averages) = averages;
  }
  // With vectors, the launcher has seen to it that no vector crosses the end of the weights.
  if (at >= step.weights || (step.found_inf && *step.found_inf != 0)) return;

  Values squares = *lies(step.squares);
  const Values gradient =
      *reinterpret_cast<const Values*>(static_cast<const T*>(step.gradient) + at);
  Values changes;
#pragma unroll
  for (int k = 0; k < vector; ++k)
    changes.value[k] =
        rmsprop_change(values.value[k], gradient.value[k],
                       at + k < step.decayed ? c.weight_decay : T(0), c, squares.value[k]);
  *lies(step.squares) = squares;
  if (step.momenta) {
    const Values momenta = *lies(step.momenta);
#pragma unroll
    for (int k = 0; k < vector; ++k) changes.value[k] += c.momentum * momenta.value[k];
    *lies(step.momenta) = changes;
  }
#pragma unroll
  for (int k = 0; k < vector; ++k) values.value[k] -= changes.value[k];
  *lies(step.values) = values;
  if (step.bfloat16) {
    Vector<uint16_t, vector> rounded;
#pragma unroll
    for (int k = 0; k < vector; ++k)
      rounded.value[k] = bfloat16_bits(static_cast<float>(values.value[k]));
    *reinterpret_cast<Vector<uint16_t, vector>*>(step.bfloat16 + at) = rounded;
  }
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
        static_cast<const void*>(step.averages), static_cast<const void*>(step.bfloat16)})
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
