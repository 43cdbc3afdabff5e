// Loss and gradient of all stacks in one launch: a block reads one image of one stack once, makes
// the targets from tables in shared memory, and writes the gradient where it read. Each loss is
// summed by one block in a fixed order, so there are no atomics and no second kernel.
#include "gaussian_tables.cuh"
#include "heatmap_mse_math.h"
#include "ops.h"

namespace fasthg {
namespace {

constexpr int kThreads = 512;

template <typename Real>
struct Sum {
  __device__ Real operator()(Real a, Real b) const { return a + b; }
};

template <typename T, int vector, bool channels_last>
__global__ void __launch_bounds__(kThreads)
    heatmap_mse_kernel(Targets targets, const T* __restrict__ predictions, int64_t stack_stride,
                       int64_t batch_stride, T* __restrict__ gradient,
                       typename Accumulate<T>::type* __restrict__ loss) {
  using Real = typename Accumulate<T>::type;
  FASTHG_SHARED(shared);
  Real* scratch = reinterpret_cast<Real*>(shared);
  Real* tables = scratch + kMaximumWarps;
  const int image = blockIdx.x, stack = blockIdx.y;
  fill_tables(targets, image, channels_last, tables);
  __syncthreads();  // the tables are complete

  const int size = targets.parts * targets.height * targets.width;
  const int64_t out = static_cast<int64_t>(stack) * targets.batch + image;
  const T* in = predictions + stack * stack_stride + image * batch_stride;
  using Values = Vector<T, vector>;
  Real sum = 0;
  for (int i = threadIdx.x * vector; i < size; i += kThreads * vector) {
    const Values values = *reinterpret_cast<const Values*>(in + i);
    Values slopes;
    TargetWalk<Real, channels_last> walk(targets, tables, i);
#pragma unroll
    for (int k = 0; k < vector; ++k) {
      const auto error = squared_error(static_cast<Real>(values.value[k]), walk.next());
      slopes.value[k] = static_cast<T>(error.gradient);
      sum += error.twice_loss;
    }
    if (gradient) *reinterpret_cast<Values*>(gradient + out * size + i) = slopes;
  }
  sum = block_reduce(sum, Real(0), scratch, Sum<Real>());
  if (threadIdx.x == 0) loss[out] = sum / 2;
}

struct Arguments {
  const Targets& targets;
  int stacks;
  const void* predictions;
  int64_t stack_stride, batch_stride;
  void* gradient;
  void* loss;
  void* stream;
};

template <typename T, int vector, bool channels_last>
const char* launch(const Arguments& a) {
  using Real = typename Accumulate<T>::type;
  const size_t shared = sizeof(Real) * (kMaximumWarps + table_size(a.targets));
  auto* kernel = heatmap_mse_kernel<T, vector, channels_last>;
  if (const char* refusal = allow_shared(kernel, shared)) return refusal;
  FASTHG_LAUNCH(kernel, dim3(a.targets.batch, a.stacks), dim3(kThreads), shared, a.stream,
                a.targets, static_cast<const T*>(a.predictions), a.stack_stride, a.batch_stride,
                static_cast<T*>(a.gradient), static_cast<Real*>(a.loss));
  return launch_status();
}

template <typename T>
const char* launch(const Arguments& a, bool channels_last) {
  constexpr int vector = kVectorLength<T>;
  const int64_t size = int64_t{1} * a.targets.parts * a.targets.height * a.targets.width;
  const bool vectors = size % vector == 0 && a.stack_stride % vector == 0 &&
                       a.batch_stride % vector == 0 && aligned16(a.predictions) &&
                       aligned16(a.gradient);
  if (channels_last) return vectors ? launch<T, vector, true>(a) : launch<T, 1, true>(a);
  return vectors ? launch<T, vector, false>(a) : launch<T, 1, false>(a);
}

}  // namespace
}  // namespace fasthg

const char* fasthg_heatmap_mse_cuda(int dtype, const fasthg::Targets* targets, int stacks,
                                    const void* predictions, int64_t stack_stride,
                                    int64_t batch_stride, bool channels_last, void* gradient,
                                    void* loss, int device, void* stream) {
  using namespace fasthg;
  const DeviceGuard guard(device);
  const Arguments arguments{*targets,     stacks,   predictions, stack_stride,
                            batch_stride, gradient, loss,        stream};
  return dispatch(dtype,
                  [&](auto zero) { return launch<decltype(zero)>(arguments, channels_last); });
}
