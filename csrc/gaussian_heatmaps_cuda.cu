// Target maps on the GPU.
//
//   heatmap[i, j] = across[i] down[j], the separable Gaussian of gaussian_heatmaps_math.h
//
// A block fills the tables of its image in shared memory, parts * (width + height) exponentials,
// and writes 8192 values of the image, 16 bytes a thread at a time. Memory traffic: each value is
// written once; keypoints, sigmas and visibility are a few numbers an image.
//
// Trade-off: all blocks of an image fill the same tables. Fewer values a block would give more
// blocks and repeat the tables more often: 8192 values cost a few times what the tables do. A
// separate kernel for the tables would avoid the repetition, but needs a launch and a workspace.
#include "gaussian_tables.cuh"
#include "ops.h"

namespace fasthg {
namespace {

constexpr int kThreads = 256;
constexpr int kElementsPerBlock = 8192;  // a few times the cost of the tables

template <typename T, int vector, bool channels_last>
__global__ void __launch_bounds__(kThreads) gaussian_heatmaps_kernel(Targets targets, T* heatmaps) {
  using Real = typename Accumulate<T>::type;
  FASTHG_SHARED(shared);
  Real* tables = reinterpret_cast<Real*>(shared);
  const int image = blockIdx.x;
  fill_tables(targets, image, channels_last, tables);
  __syncthreads();  // the tables are complete

  const int size = targets.parts * targets.height * targets.width;
  T* out = heatmaps + static_cast<int64_t>(image) * size;
  const int begin = blockIdx.y * kElementsPerBlock;
  const int end = begin + kElementsPerBlock < size ? begin + kElementsPerBlock : size;
  for (int i = begin + threadIdx.x * vector; i < end; i += kThreads * vector) {
    TargetWalk<Real, channels_last> walk(targets, tables, i);
    Vector<T, vector> values;
#pragma unroll
    for (int k = 0; k < vector; ++k) values.value[k] = static_cast<T>(walk.next());
    *reinterpret_cast<Vector<T, vector>*>(out + i) = values;
  }
}

template <typename T, int vector, bool channels_last>
const char* launch(const Targets& targets, T* heatmaps, void* stream) {
  using Real = typename Accumulate<T>::type;
  const int size = targets.parts * targets.height * targets.width;
  const size_t shared = sizeof(Real) * table_size(targets);
  auto* kernel = gaussian_heatmaps_kernel<T, vector, channels_last>;
  if (const char* refusal = allow_shared(kernel, shared)) return refusal;
  const dim3 grid(targets.batch, (size + kElementsPerBlock - 1) / kElementsPerBlock);
  FASTHG_LAUNCH(kernel, grid, dim3(kThreads), shared, stream, targets, heatmaps);
  return launch_status();
}

template <typename T>
const char* launch(const Targets& targets, T* heatmaps, bool channels_last, void* stream) {
  constexpr int vector = kVectorLength<T>;
  const int size = targets.parts * targets.height * targets.width;
  const bool vectors = size % vector == 0 && aligned16(heatmaps);
  if (channels_last)
    return vectors ? launch<T, vector, true>(targets, heatmaps, stream)
                   : launch<T, 1, true>(targets, heatmaps, stream);
  return vectors ? launch<T, vector, false>(targets, heatmaps, stream)
                 : launch<T, 1, false>(targets, heatmaps, stream);
}

}  // namespace
}  // namespace fasthg

const char* fasthg_gaussian_heatmaps_cuda(int dtype, const fasthg::Targets* targets, void* heatmaps,
                                          bool channels_last, int device, void* stream) {
  using namespace fasthg;
  const DeviceGuard guard(device);
  return dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    return launch(*targets, static_cast<T*>(heatmaps), channels_last, stream);
  });
}

const char* fasthg_cuda_problem() {
  int devices = 0;
  const cudaError_t status = cudaGetDeviceCount(&devices);
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}
