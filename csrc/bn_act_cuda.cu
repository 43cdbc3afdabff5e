// Batch norm, residual and ReLU: a pass for the sums of each part of the rows, a small kernel that
// adds the parts in order, and a pass for the result. The second pass walks backwards: what the
// first one read last may still lie in the second-level cache. No atomics, so results repeat.
#include "bn_act_maps.cuh"
#include "bn_act_math.h"
#include "cuda_utils.cuh"
#include "ops.h"

namespace fasthg {
namespace {

constexpr int kThreads = 256;
constexpr int kAcross = 32;          // threads side by side in a row, at most
constexpr int kFinishThreads = 256;  // kWarp channels of as many groups of parts as fit
constexpr int kGroups = kFinishThreads / kWarp;
constexpr int kRowsPerThread = 8;  // of the second pass

// A block is a rectangle of threads: `across` threads hold one vector of channels each, and the
// lines below each other take every `down`-th row.
struct Shape {
  int64_t rows;
  int channels, parts, across, down;
};

struct Place {
  int line, channel;
};

template <int vector>
__device__ Place place(const Shape& shape) {
  const int column = threadIdx.x % shape.across;
  return {static_cast<int>(threadIdx.x) / shape.across,
          (static_cast<int>(blockIdx.y) * shape.across + column) * vector};
}

// Adds two sums a channel over the lines of a block; the first line writes them to the workspace.
template <typename Real, int vector>
__device__ void write_part(const BatchNorm& norm, const Shape& shape, const Place& here,
                           const Real* first, const Real* second, Real* scratch) {
  const int width = shape.across * vector, column = threadIdx.x % shape.across * vector;
#pragma unroll
  for (int k = 0; k < vector; ++k) {
    scratch[2 * here.line * width + column + k] = first[k];
    scratch[(2 * here.line + 1) * width + column + k] = second[k];
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

// The rows of a block's part that a line takes. Their number is known before the loop, which the
// compiler can unroll only then, so that several loads are under way.
__device__ int64_t first_row(const Shape& shape, const Place& here) {
  return shape.rows * blockIdx.x / shape.parts + here.line;
}
__device__ int turns_from(const Shape& shape, int64_t row) {
  const int64_t end = shape.rows * (blockIdx.x + int64_t{1}) / shape.parts;
  return row < end ? static_cast<int>((end - row + shape.down - 1) / shape.down) : 0;
}

template <typename T, int vector>
__global__ void __launch_bounds__(kThreads)
    bn_act_moments_kernel(BatchNorm norm, Shape shape, Maps<T> maps) {
  using Real = typename Accumulate<T>::type;
  using Values = Vector<T, vector>;
  FASTHG_SHARED(shared);
  const Place here = place<vector>(shape);
  Real sum[vector] = {}, squares[vector] = {};
  if (here.channel < shape.channels) {
    const Values origin = *reinterpret_cast<const Values*>(maps.x + here.channel);
    int64_t row = first_row(shape, here);
    const int turns = turns_from(shape, row);
#pragma unroll 4
    for (int turn = 0; turn < turns; ++turn, row += shape.down) {
      const Values x =
          *reinterpret_cast<const Values*>(maps.x + row * shape.channels + here.channel);
#pragma unroll
      for (int k = 0; k < vector; ++k) {
        const Real value = static_cast<Real>(x.value[k]) - static_cast<Real>(origin.value[k]);
        sum[k] += value;
        squares[k] += value * value;
      }
    }
  }
  write_part<Real, vector>(norm, shape, here, sum, squares, reinterpret_cast<Real*>(shared));
}

template <typename T, int vector>
__global__ void __launch_bounds__(kThreads)
    bn_act_slopes_kernel(BatchNorm norm, Shape shape, Maps<T> maps) {
  using Real = typename Accumulate<T>::type;
  using Values = Vector<T, vector>;
  FASTHG_SHARED(shared);
  const Place here = place<vector>(shape);
  Real sum[vector] = {}, products[vector] = {};
  if (here.channel < shape.channels) {
    const Channels<Real, vector> channel(norm, here.channel);
    int64_t row = first_row(shape, here);
    const int turns = turns_from(shape, row);
#pragma unroll 2
    for (int turn = 0; turn < turns; ++turn, row += shape.down) {
      const int64_t at = row * shape.channels + here.channel;
      const Values x = *reinterpret_cast<const Values*>(maps.x + at);
      const Values incoming = *reinterpret_cast<const Values*>(maps.grad_y + at);
      Real grad_y[vector];
#pragma unroll
      for (int k = 0; k < vector; ++k) grad_y[k] = static_cast<Real>(incoming.value[k]);
      relu_backward_(norm, maps, at, channel, x, grad_y);
#pragma unroll
      for (int k = 0; k < vector; ++k) {
        sum[k] += grad_y[k];
        products[k] += grad_y[k] * (static_cast<Real>(x.value[k]) - channel.mean[k]);
      }
    }
  }
  write_part<Real, vector>(norm, shape, here, sum, products, reinterpret_cast<Real*>(shared));
}

struct Pair {
  double first, second;
};

// One warp's width of channels a block; each warp adds every kGroups-th part, then the first warp
// the warps' sums. True for the threads that have a result.
template <typename Real>
__device__ bool add_parts(const BatchNorm& norm, int channel, Pair* scratch, Pair* total) {
  const int group = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  Pair sum{0, 0};
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
    bn_act_statistics_kernel(BatchNorm norm, const T* x) {
  using Real = typename Accumulate<T>::type;
  FASTHG_SHARED(shared);
  const int channel = static_cast<int>(blockIdx.x) * kWarp + threadIdx.x % kWarp;
  Pair sum;
  if (!add_parts<Real>(norm, channel, reinterpret_cast<Pair*>(shared), &sum)) return;
  const double origin = static_cast<double>(static_cast<Real>(x[channel]));
  const Moments result = moments(sum.first, sum.second, origin, norm.rows);
  static_cast<Real*>(norm.mean)[channel] = static_cast<Real>(result.mean);
  static_cast<Real*>(norm.var)[channel] = static_cast<Real>(result.var);
}

template <typename T>
__global__ void __launch_bounds__(kFinishThreads)
    bn_act_totals_kernel(BatchNorm norm, typename Accumulate<T>::type* grad_beta,
                         typename Accumulate<T>::type* grad_gamma) {
  using Real = typename Accumulate<T>::type;
  FASTHG_SHARED(shared);
  const int channel = static_cast<int>(blockIdx.x) * kWarp + threadIdx.x % kWarp;
  Pair sum;
  if (!add_parts<Real>(norm, channel, reinterpret_cast<Pair*>(shared), &sum)) return;
  const Real var = static_cast<const Real*>(norm.var)[channel];
  grad_beta[channel] = static_cast<Real>(sum.first);
  grad_gamma[channel] = static_cast<Real>(sum.second * reciprocal_deviation(var, norm.eps));
}

template <typename T, int vector>
__global__ void __launch_bounds__(kThreads)
    bn_act_result_kernel(BatchNorm norm, Shape shape, Maps<T> maps) {
  using Real = typename Accumulate<T>::type;
  using Values = Vector<T, vector>;
  const Place here = place<vector>(shape);
  if (here.channel >= shape.channels) return;
  const Channels<Real, vector> channel(norm, here.channel);
  const int64_t block = int64_t{kRowsPerThread} * shape.down;
  const int64_t end = shape.rows - blockIdx.x * block;
  const int64_t begin = end > block ? end - block : 0;
#pragma unroll 4
  for (int64_t row = begin + here.line; row < end; row += shape.down) {
    const int64_t at = row * shape.channels + here.channel;
    const Values x = *reinterpret_cast<const Values*>(maps.x + at);
    write_result(norm, maps, at, channel, x);
  }
}

template <typename T, int vector>
__global__ void __launch_bounds__(kThreads)
    bn_act_gradient_kernel(BatchNorm norm, Shape shape, Maps<T> maps,
                           const typename Accumulate<T>::type* __restrict__ grad_beta,
                           const typename Accumulate<T>::type* __restrict__ grad_gamma) {
  using Real = typename Accumulate<T>::type;
  using Values = Vector<T, vector>;
  const Place here = place<vector>(shape);
  if (here.channel >= shape.channels) return;
  const Channels<Real, vector> channel(norm, here.channel);
  Real centred_scale[vector], constant[vector];
#pragma unroll
  for (int k = 0; k < vector; ++k) {
    const Slope<Real> s = slope(channel.scale[k], channel.deviation[k], grad_beta[here.channel + k],
                                grad_gamma[here.channel + k], norm.rows, norm.frozen);
    centred_scale[k] = s.centred_scale;
    constant[k] = s.constant;
  }
  const int64_t block = int64_t{kRowsPerThread} * shape.down;
  const int64_t end = shape.rows - blockIdx.x * block;
  const int64_t begin = end > block ? end - block : 0;
#pragma unroll 2
  for (int64_t row = begin + here.line; row < end; row += shape.down) {
    const int64_t at = row * shape.channels + here.channel;
    const Values x = *reinterpret_cast<const Values*>(maps.x + at);
    Values values = *reinterpret_cast<const Values*>(maps.grad_y + at);
    Real grad_y[vector];
#pragma unroll
    for (int k = 0; k < vector; ++k) grad_y[k] = static_cast<Real>(values.value[k]);
    relu_backward_(norm, maps, at, channel, x, grad_y);
    if (maps.grad_residual) {
#pragma unroll
      for (int k = 0; k < vector; ++k) values.value[k] = static_cast<T>(grad_y[k]);
      *reinterpret_cast<Values*>(maps.grad_residual + at) = values;
    }
    write_gradient(maps, at, channel, centred_scale, constant, x, grad_y);
  }
}

int divide_up(int64_t a, int64_t b) {
  return static_cast<int>((a + b - 1) / b);
}

template <typename T, int vector>
const char* launch(const BnActCall& call) {
  using Real = typename Accumulate<T>::type;
  const BatchNorm& norm = call.norm;
  const Maps<T> maps(call);
  const int vectors = divide_up(norm.channels, vector);
  int across = 1;
  while (across < vectors && across < kAcross) across *= 2;
  const int down = kThreads / across;
  const Shape shape{norm.rows, static_cast<int>(norm.channels), static_cast<int>(norm.parts),
                    across, down};
  const dim3 threads(kThreads), columns(1, divide_up(vectors, across));
  const dim3 parts(shape.parts, columns.y), finish(divide_up(norm.channels, kWarp));
  const dim3 pass(divide_up(norm.rows, int64_t{kRowsPerThread} * down), columns.y);
  const size_t sums = sizeof(Real) * 2 * kThreads * vector, pairs = sizeof(Pair) * kFinishThreads;
  if (call.grad_y) {
    auto* grad_beta = static_cast<Real*>(call.grad_beta);
    auto* grad_gamma = static_cast<Real*>(call.grad_gamma);
    FASTHG_LAUNCH((bn_act_slopes_kernel<T, vector>), parts, threads, sums, call.stream, norm, shape,
                  maps);
    if (const char* refusal = launch_status()) return refusal;
    FASTHG_LAUNCH(bn_act_totals_kernel<T>, finish, dim3(kFinishThreads), pairs, call.stream, norm,
                  grad_beta, grad_gamma);
    if (const char* refusal = launch_status()) return refusal;
    FASTHG_LAUNCH((bn_act_gradient_kernel<T, vector>), pass, threads, 0, call.stream, norm, shape,
                  maps, grad_beta, grad_gamma);
    return launch_status();
  }
  if (!norm.frozen) {
    FASTHG_LAUNCH((bn_act_moments_kernel<T, vector>), parts, threads, sums, call.stream, norm,
                  shape, maps);
    if (const char* refusal = launch_status()) return refusal;
    FASTHG_LAUNCH(bn_act_statistics_kernel<T>, finish, dim3(kFinishThreads), pairs, call.stream,
                  norm, maps.x);
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
  if (call.result && bn_act_on_chip(dtype, call, &refusal)) return refusal;
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
