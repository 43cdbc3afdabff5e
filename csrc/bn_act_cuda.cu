// Batch norm, residual and ReLU of maps of any size, three launches each way.
//
//   y = relu?((x - mean) / sqrt(var + eps) * gamma + beta + residual), channels last
//
// Fused: what follows a batch norm in a residual network (scale, offset, addition, ReLU) costs no
// pass over memory of its own, and the ReLU's backward needs no stored mask.
//
// Forward: (1) the sums of x - origin and of its square over each part of the rows, (2) a small
// kernel that adds the parts in order, (3) y. Backward: (1) the sums of grad_y and of grad_y (x -
// mean), (2) the parts again, which are grad_beta and grad_gamma, (3) grad_x.
//
// Memory traffic, in maps: forward 3 (x read twice, y written), 1 more with a residual, 1 less with
// frozen statistics, which need no sums. The sums of either direction are also found alone, and the
// backward's third pass runs alone where they are known. Backward 5 (x and grad_y read twice,
// grad_x written), with residual and ReLU 8 (y read twice, grad_residual written). The sums add 2 *
// parts * channels real numbers written and read, with at most 324 parts (fasthg/ops/bn_act.py:
// three blocks on each of an A100's 108 multiprocessors, one wave). Two reads are needed because
// mean and variance are known only after the last row: a block would have to keep its rows
// meanwhile, which bn_act_on_chip_cuda.cu does for few rows. The last pass walks backwards through
// the rows: what the first pass read last may still be in the L2 cache.
//
// Trade-off: sums go through a workspace and a second launch instead of atomics. Atomic additions
// would need one launch less but come in any order, and floating-point sums would differ from run
// to run. Sums within a part are float32 (float64 for float64), the parts are added in double.
#include "bn_act_maps.cuh"
#include "bn_act_math.h"
#include "cuda_utils.cuh"
#include "ops.h"

namespace fasthg {
namespace {

constexpr int kThreads = 256;
constexpr int kAcross = 32;          // threads next to each other in a row, at most
constexpr int kFinishThreads = 256;  // kGroups warps, each has the same kWarp channels
constexpr int kGroups = kFinishThreads / kWarp;
constexpr int kRowsPerThread = 8;  // of the last pass: per-channel values are loaded once for them

// How a block's threads cover the maps: `across` threads take one vector of channels each, and the
// `down` lines of threads take every `down`-th row.
struct BlockShape {
  int64_t rows;
  int channels, parts, across, down;
};

// The line a thread is in, and its first channel.
struct ThreadPosition {
  int line, channel;
};

template <int vector>
__device__ ThreadPosition thread_position(const BlockShape& shape) {
  const int column = threadIdx.x % shape.across;
  return {static_cast<int>(threadIdx.x) / shape.across,
          (static_cast<int>(blockIdx.y) * shape.across + column) * vector};
}

// Adds the two sums of each channel over the lines of a block and writes them to the workspace.
template <typename Real, int vector>
__device__ void write_part_sums(const BatchNorm& norm, const BlockShape& shape,
                                const ThreadPosition& position, const Real* first,
                                const Real* second, Real* scratch) {
  const int width = shape.across * vector, column = threadIdx.x % shape.across * vector;
#pragma unroll
  for (int k = 0; k < vector; ++k) {
    scratch[2 * position.line * width + column + k] = first[k];
    scratch[(2 * position.line + 1) * width + column + k] = second[k];
  }
  __syncthreads();  // every line's sums must lie in scratch before threads add them up
  const int64_t part = blockIdx.x;
  Real* out = static_cast<Real*>(norm.workspace) + part * 2 * shape.channels;
  for (int i = threadIdx.x; i < 2 * width; i += kThreads) {
    const int channel = static_cast<int>(blockIdx.y) * width + i % width;
    if (channel >= shape.channels) continue;
    Real sum = 0;
    for (int line = 0; line < shape.down; ++line) sum += scratch[2 * line * width + i];
    out[i / width * shape.channels + channel] = sum;
  }
}

// The rows of a block's part that a line takes. Their number is computed before the loop, so that
// the compiler can unroll it and several loads are in flight at once.
__device__ int64_t first_row(const BlockShape& shape, const ThreadPosition& position) {
  return shape.rows * blockIdx.x / shape.parts + position.line;
}
__device__ int iterations_from(const BlockShape& shape, int64_t row) {
  const int64_t end = shape.rows * (blockIdx.x + int64_t{1}) / shape.parts;
  return row < end ? static_cast<int>((end - row + shape.down - 1) / shape.down) : 0;
}

template <typename T, int vector>
__global__ void __launch_bounds__(kThreads)
    bn_act_sums_kernel(BatchNorm norm, BlockShape shape, BnActMaps<T> maps) {
  using Real = typename Accumulate<T>::type;
  using Values = Vector<T, vector>;
  FASTHG_SHARED(shared);
  const ThreadPosition position = thread_position<vector>(shape);
  Real sum[vector] = {}, squares[vector] = {};
  if (position.channel < shape.channels) {
    const Values origin = *reinterpret_cast<const Values*>(maps.x + position.channel);
    int64_t row = first_row(shape, position);
    const int iterations = iterations_from(shape, row);
#pragma unroll 4
    for (int iteration = 0; iteration < iterations; ++iteration, row += shape.down) {
      const Values x =
          *reinterpret_cast<const Values*>(maps.x + row * shape.channels + position.channel);
#pragma unroll
      for (int k = 0; k < vector; ++k) {
        const Real value = static_cast<Real>(x.value[k]) - static_cast<Real>(origin.value[k]);
        sum[k] += value;
        squares[k] += value * value;
      }
    }
  }
  write_part_sums<Real, vector>(norm, shape, position, sum, squares,
                                reinterpret_cast<Real*>(shared));
}

template <typename T, int vector>
__global__ void __launch_bounds__(kThreads)
    bn_act_grad_sums_kernel(BatchNorm norm, BlockShape shape, BnActMaps<T> maps) {
  using Real = typename Accumulate<T>::type;
  using Values = Vector<T, vector>;
  FASTHG_SHARED(shared);
  const ThreadPosition position = thread_position<vector>(shape);
  Real sum[vector] = {}, products[vector] = {};
  if (position.channel < shape.channels) {
    const ChannelParams<Real, vector> channel(norm, position.channel);
    int64_t row = first_row(shape, position);
    const int iterations = iterations_from(shape, row);
#pragma unroll 2
    for (int iteration = 0; iteration < iterations; ++iteration, row += shape.down) {
      const int64_t offset = row * shape.channels + position.channel;
      const Values x = *reinterpret_cast<const Values*>(maps.x + offset);
      const Values loaded = *reinterpret_cast<const Values*>(maps.grad_y + offset);
      Real grad_y[vector];
#pragma unroll
      for (int k = 0; k < vector; ++k) grad_y[k] = static_cast<Real>(loaded.value[k]);
      apply_relu_mask(norm, maps, offset, channel, x, grad_y);
#pragma unroll
      for (int k = 0; k < vector; ++k) {
        sum[k] += grad_y[k];
        products[k] += grad_y[k] * (static_cast<Real>(x.value[k]) - channel.mean[k]);
      }
    }
  }
  write_part_sums<Real, vector>(norm, shape, position, sum, products,
                                reinterpret_cast<Real*>(shared));
}

// Adds the parts' sums of kWarp channels: each warp adds every kGroups-th part, then the first warp
// adds the warps' sums. Returns true in the threads that have a total.
template <typename Real>
__device__ bool add_parts(const BatchNorm& norm, int channel, SumPair* scratch, SumPair* total) {
  const int group = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  SumPair sum{0, 0};
  if (channel < norm.channels)
    for (int64_t part = group; part < norm.parts; part += kGroups) {
      const Real* in = static_cast<const Real*>(norm.workspace) + part * 2 * norm.channels;
      sum.first += in[channel];
      sum.second += in[norm.channels + channel];
    }
  scratch[threadIdx.x] = sum;
  __syncthreads();  // the first warp reads what all warps wrote
  if (group || channel >= norm.channels) return false;
  for (int other = 1; other < kGroups; ++other) {
    sum.first += scratch[other * kWarp + lane].first;
    sum.second += scratch[other * kWarp + lane].second;
  }
  *total = sum;
  return true;
}

template <typename T>
__global__ void __launch_bounds__(kFinishThreads)
    bn_act_mean_var_kernel(BatchNorm norm, const T* x) {
  using Real = typename Accumulate<T>::type;
  FASTHG_SHARED(shared);
  const int channel = static_cast<int>(blockIdx.x) * kWarp + threadIdx.x % kWarp;
  SumPair sum;
  if (!add_parts<Real>(norm, channel, reinterpret_cast<SumPair*>(shared), &sum)) return;
  const double origin = static_cast<double>(static_cast<Real>(x[channel]));
  const MeanVar result = mean_var_from_sums(sum.first, sum.second, origin, norm.rows);
  static_cast<Real*>(norm.mean)[channel] = static_cast<Real>(result.mean);
  static_cast<Real*>(norm.var)[channel] = static_cast<Real>(result.var);
}

template <typename T>
__global__ void __launch_bounds__(kFinishThreads)
    bn_act_grad_params_kernel(BatchNorm norm, typename Accumulate<T>::type* grad_beta,
                              typename Accumulate<T>::type* grad_gamma) {
  using Real = typename Accumulate<T>::type;
  FASTHG_SHARED(shared);
  const int channel = static_cast<int>(blockIdx.x) * kWarp + threadIdx.x % kWarp;
  SumPair sum;
  if (!add_parts<Real>(norm, channel, reinterpret_cast<SumPair*>(shared), &sum)) return;
  const Real var = static_cast<const Real*>(norm.var)[channel];
  grad_beta[channel] = static_cast<Real>(sum.first);
  grad_gamma[channel] = static_cast<Real>(sum.second * inv_std_of_var(var, norm.eps));
}

template <typename T, int vector>
__global__ void __launch_bounds__(kThreads)
    bn_act_result_kernel(BatchNorm norm, BlockShape shape, BnActMaps<T> maps) {
  using Real = typename Accumulate<T>::type;
  using Values = Vector<T, vector>;
  const ThreadPosition position = thread_position<vector>(shape);
  if (position.channel >= shape.channels) return;
  const ChannelParams<Real, vector> channel(norm, position.channel);
  const int64_t block = int64_t{kRowsPerThread} * shape.down;
  const int64_t end = shape.rows - blockIdx.x * block;
  const int64_t begin = end > block ? end - block : 0;
#pragma unroll 4
  for (int64_t row = begin + position.line; row < end; row += shape.down) {
    const int64_t offset = row * shape.channels + position.channel;
    const Values x = *reinterpret_cast<const Values*>(maps.x + offset);
    write_result(norm, maps, offset, channel, x);
  }
}

template <typename T, int vector>
__global__ void __launch_bounds__(kThreads)
    bn_act_grad_x_kernel(BatchNorm norm, BlockShape shape, BnActMaps<T> maps,
                         const typename Accumulate<T>::type* __restrict__ grad_beta,
                         const typename Accumulate<T>::type* __restrict__ grad_gamma) {
  using Real = typename Accumulate<T>::type;
  using Values = Vector<T, vector>;
  const ThreadPosition position = thread_position<vector>(shape);
  if (position.channel >= shape.channels) return;
  const ChannelParams<Real, vector> channel(norm, position.channel);
  Real x_centred_scale[vector], constant[vector];
#pragma unroll
  for (int k = 0; k < vector; ++k) {
    const BnGradCoefficients<Real> coefficients =
        bn_grad_coefficients(channel.scale[k], channel.inv_std[k], grad_beta[position.channel + k],
                             grad_gamma[position.channel + k], norm.rows, norm.frozen);
    x_centred_scale[k] = coefficients.x_centred;
    constant[k] = coefficients.constant;
  }
  const int64_t block = int64_t{kRowsPerThread} * shape.down;
  const int64_t end = shape.rows - blockIdx.x * block;
  const int64_t begin = end > block ? end - block : 0;
#pragma unroll 2
  for (int64_t row = begin + position.line; row < end; row += shape.down) {
    const int64_t offset = row * shape.channels + position.channel;
    const Values x = *reinterpret_cast<const Values*>(maps.x + offset);
    Values values = *reinterpret_cast<const Values*>(maps.grad_y + offset);
    Real grad_y[vector];
#pragma unroll
    for (int k = 0; k < vector; ++k) grad_y[k] = static_cast<Real>(values.value[k]);
    apply_relu_mask(norm, maps, offset, channel, x, grad_y);
    if (maps.grad_residual) {
#pragma unroll
      for (int k = 0; k < vector; ++k) values.value[k] = static_cast<T>(grad_y[k]);
      *reinterpret_cast<Values*>(maps.grad_residual + offset) = values;
    }
    write_grad_x(maps, offset, channel, x_centred_scale, constant, x, grad_y);
  }
}

template <typename T, int vector>
const char* launch(const BnActCall& call) {
  using Real = typename Accumulate<T>::type;
  const BatchNorm& norm = call.norm;
  const BnActMaps<T> maps(call);
  const int vectors = static_cast<int>(divide_up(norm.channels, vector));
  int across = 1;
  while (across < vectors && across < kAcross) across *= 2;
  const int down = kThreads / across;
  const BlockShape shape{norm.rows, static_cast<int>(norm.channels), static_cast<int>(norm.parts),
                         across, down};
  const dim3 threads(kThreads), columns(1, divide_up(vectors, across));
  const dim3 parts(shape.parts, columns.y), finish(divide_up(norm.channels, kWarp));
  const dim3 pass(divide_up(norm.rows, int64_t{kRowsPerThread} * down), columns.y);
  const size_t sums = sizeof(Real) * 2 * kThreads * vector,
               pairs = sizeof(SumPair) * kFinishThreads;
  if (call.grad_y) {
    auto* grad_beta = static_cast<Real*>(call.grad_beta);
    auto* grad_gamma = static_cast<Real*>(call.grad_gamma);
    if (!norm.sums_given) {
      FASTHG_LAUNCH((bn_act_grad_sums_kernel<T, vector>), parts, threads, sums, call.stream, norm,
                    shape, maps);
      if (const char* refusal = launch_status()) return refusal;
      FASTHG_LAUNCH(bn_act_grad_params_kernel<T>, finish, dim3(kFinishThreads), pairs, call.stream,
                    norm, grad_beta, grad_gamma);
      if (const char* refusal = launch_status()) return refusal;
    }
    if (!call.result) return nullptr;
    FASTHG_LAUNCH((bn_act_grad_x_kernel<T, vector>), pass, threads, 0, call.stream, norm, shape,
                  maps, grad_beta, grad_gamma);
    return launch_status();
  }
  if (!norm.frozen) {
    FASTHG_LAUNCH((bn_act_sums_kernel<T, vector>), parts, threads, sums, call.stream, norm, shape,
                  maps);
    if (const char* refusal = launch_status()) return refusal;
    FASTHG_LAUNCH(bn_act_mean_var_kernel<T>, finish, dim3(kFinishThreads), pairs, call.stream, norm,
                  maps.x);
    if (const char* refusal = launch_status()) return refusal;
  }
  if (!call.result) return nullptr;
  FASTHG_LAUNCH((bn_act_result_kernel<T, vector>), pass, threads, 0, call.stream, norm, shape,
                maps);
  return launch_status();
}

const char* launch(int dtype, const BnActCall& call, int device) {
  const DeviceGuard guard(device);
  const char* refusal = nullptr;
  if (call.result && !call.norm.sums_given &&
      (bn_act_on_chip(dtype, call, &refusal) || bn_act_in_clusters(dtype, call, &refusal)))
    return refusal;
  return dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    return in_vectors<T>(call) ? launch<T, kVectorLength<T>>(call) : launch<T, 1>(call);
  });
}

}  // namespace
}  // namespace fasthg

const char* fasthg_bn_act_cuda(int dtype, const fasthg::BatchNorm* norm, const void* x,
                               const void* residual, void* y, int device, void* stream) {
  return fasthg::launch(
      dtype, {*norm, x, residual, nullptr, nullptr, y, nullptr, nullptr, nullptr, stream}, device);
}

const char* fasthg_bn_act_backward_cuda(int dtype, const fasthg::BatchNorm* norm, const void* x,
                                        const void* y, const void* grad_y, void* grad_x,
                                        void* grad_residual, void* grad_beta, void* grad_gamma,
                                        int device, void* stream) {
  return fasthg::launch(
      dtype, {*norm, x, nullptr, y, grad_y, grad_x, grad_residual, grad_beta, grad_gamma, stream},
      device);
}
