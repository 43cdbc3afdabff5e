// Moving statistics of all batch norms in one launch on the GPU, 16 bytes a thread.
//
//   running += weight (correction batch - running)
//
// Fused: means and variances of all layers lie in one buffer; one launch takes the place of two for
// each layer. Memory traffic: 4 values for each statistic (running read and written, batch and
// correction read). `weight` is read on the device, so a captured CUDA graph can be replayed with
// another.
#include "cuda_utils.cuh"
#include "moving_statistics_math.h"
#include "ops.h"

namespace fasthg {
namespace {

constexpr int kThreads = 256;

template <typename T, int vector>
__global__ void __launch_bounds__(kThreads)
    moving_statistics_kernel(T* running, const T* batch, const T* correction, const T* weight,
                             int64_t count) {
  using Values = Vector<T, vector>;
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * vector;
  if (at >= count) return;
  Values values = *reinterpret_cast<const Values*>(running + at);
  const Values statistics = *reinterpret_cast<const Values*>(batch + at);
  const Values factor = *reinterpret_cast<const Values*>(correction + at);
  const T share = *weight;
#pragma unroll
  for (int k = 0; k < vector; ++k)
    values.value[k] =
        update_statistic(values.value[k], statistics.value[k], factor.value[k], share);
  *reinterpret_cast<Values*>(running + at) = values;
}

template <typename T, int vector>
const char* launch(void* running, const void* batch, const void* correction, const void* weight,
                   int64_t count, void* stream) {
  const int64_t threads = (count + vector - 1) / vector;
  auto* kernel = moving_statistics_kernel<T, vector>;
  FASTHG_LAUNCH(kernel, dim3((threads + kThreads - 1) / kThreads), dim3(kThreads), 0, stream,
                static_cast<T*>(running), static_cast<const T*>(batch),
                static_cast<const T*>(correction), static_cast<const T*>(weight), count);
  return launch_status();
}

template <typename T>
const char* launch(void* running, const void* batch, const void* correction, const void* weight,
                   int64_t count, void* stream) {
  constexpr int vector = kVectorLength<T>;
  const bool vectors =
      count % vector == 0 && aligned16(running) && aligned16(batch) && aligned16(correction);
  return vectors ? launch<T, vector>(running, batch, correction, weight, count, stream)
                 : launch<T, 1>(running, batch, correction, weight, count, stream);
}

}  // namespace
}  // namespace fasthg

const char* fasthg_moving_statistics_cuda(int dtype, void* running, const void* batch,
                                          const void* correction, const void* weight, int64_t count,
                                          int device, void* stream) {
  using namespace fasthg;
  const DeviceGuard guard(device);
  if (dtype == kFloat32) return launch<float>(running, batch, correction, weight, count, stream);
  if (dtype == kFloat64) return launch<double>(running, batch, correction, weight, count, stream);
  return "moving_statistics takes float32 and float64";
}
