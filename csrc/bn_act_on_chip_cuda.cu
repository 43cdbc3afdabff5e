// Batch norm, residual and ReLU in one launch each way, for maps so small that launches are most of
// their time. A block owns the few channels that fill half a vector, over all rows, and keeps what
// it reads of them in shared memory until their sums are known; blocks need nothing of each other.
//
// A block reads 8 bytes of every row, a quarter of the smallest piece that memory hands out. Its
// neighbours read the rest at about the same time, from the second-level cache, which holds maps of
// this size whole. On an H200 whole vectors leave too few blocks to do the work, and 4 bytes of 256
// channels read too much: both take longer at 128 to 4096 rows.
#include "bn_act_maps.cuh"
#include "bn_act_math.h"
#include "cuda_utils.cuh"

namespace fasthg {
namespace {

constexpr int kMostThreads = 1024;
template <typename T>
constexpr int kChannels = kVectorLength<T> / 2;

// Adds up each of `count` values over the lanes of a warp; lane l gets the sum of value l % count.
// Lanes halve the values they stand for with each exchange, so it takes about `count` shuffles
// instead of five times as many.
template <int count, typename Real>
__device__ Real warp_sums(Real (&values)[count]) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int half = count / 2; half; half /= 2) {
    const bool upper = lane & half;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const Real other = shuffle_xor(upper ? values[i] : values[i + half], half);
      values[i] = (upper ? values[i + half] : values[i]) + other;
    }
  }
#pragma unroll
  for (int mask = count; mask < kWarp; mask *= 2) values[0] += shuffle_xor(values[0], mask);
  return values[0];
}

struct Pair {
  double first, second;
};

// Adds two sums of each channel over the threads of a block. The first `vector` threads get those
// of their channel.
template <int vector, typename Real>
__device__ Pair block_sums(Real (&sums)[2 * vector], Real* scratch) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const Real sum = warp_sums(sums);
  if (lane < 2 * vector) scratch[warp * 2 * vector + lane] = sum;
  __syncthreads();  // the first warp adds up what every warp wrote
  Pair total{0, 0};
  if (threadIdx.x >= vector) return total;
  for (int other = 0; other < static_cast<int>(blockDim.x) / kWarp; ++other) {
    total.first += scratch[other * 2 * vector + lane];
    total.second += scratch[other * 2 * vector + vector + lane];
  }
  return total;
}

template <typename T>
__global__ void __launch_bounds__(kMostThreads, 1)
    bn_act_on_chip_kernel(BatchNorm norm, Maps<T> maps) {
  constexpr int vector = kChannels<T>;
  using Real = typename Accumulate<T>::type;
  using Values = Vector<T, vector>;
  FASTHG_SHARED(shared);
  // A thread reads back only what it wrote itself, so the rows need no barrier.
  Values* kept = reinterpret_cast<Values*>(shared);
  const int rows = static_cast<int>(norm.rows), first = static_cast<int>(blockIdx.x) * vector;
  // Of loops whose number of turns is known the compiler starts several loads at once.
  const int stride = blockDim.x,
            turns = (rows - static_cast<int>(threadIdx.x) + stride - 1) / stride;
  const Values origin = *reinterpret_cast<const Values*>(maps.x + first);
  Real sums[2 * vector] = {};
#pragma unroll 4
  for (int turn = 0, row = threadIdx.x; turn < turns; ++turn, row += stride) {
    const Values x = *reinterpret_cast<const Values*>(maps.x + row * norm.channels + first);
    kept[row] = x;
#pragma unroll
    for (int k = 0; k < vector; ++k) {
      const Real value = static_cast<Real>(x.value[k]) - static_cast<Real>(origin.value[k]);
      sums[k] += value;
      sums[vector + k] += value * value;
    }
  }
  Real* found = reinterpret_cast<Real*>(kept + rows);  // means, then variances
  const Pair sum = block_sums<vector>(sums, found + 2 * vector);
  if (threadIdx.x < vector) {
    const int channel = first + static_cast<int>(threadIdx.x);
    const double start = static_cast<double>(static_cast<Real>(maps.x[channel]));
    const Moments result = moments(sum.first, sum.second, start, norm.rows);
    const Real mean = static_cast<Real>(result.mean), var = static_cast<Real>(result.var);
    static_cast<Real*>(norm.mean)[channel] = found[threadIdx.x] = mean;
    static_cast<Real*>(norm.var)[channel] = found[vector + threadIdx.x] = var;
  }
  __syncthreads();  // every thread reads the statistics that the first ones wrote
  const Channels<Real, vector> channel(norm, first, found, found + vector);
#pragma unroll 2
  for (int turn = 0, row = threadIdx.x; turn < turns; ++turn, row += stride)
    write_result(norm, maps, row * norm.channels + first, channel, load_whole(kept + row));
}

template <typename T>
__global__ void __launch_bounds__(kMostThreads, 1)
    bn_act_backward_on_chip_kernel(BatchNorm norm, Maps<T> maps,
                                   typename Accumulate<T>::type* grad_beta,
                                   typename Accumulate<T>::type* grad_gamma) {
  constexpr int vector = kChannels<T>;
  using Real = typename Accumulate<T>::type;
  using Values = Vector<T, vector>;
  FASTHG_SHARED(shared);
  const int rows = static_cast<int>(norm.rows), first = static_cast<int>(blockIdx.x) * vector;
  // Of loops whose number of turns is known the compiler starts several loads at once.
  const int stride = blockDim.x,
            turns = (rows - static_cast<int>(threadIdx.x) + stride - 1) / stride;
  Values *kept_x = reinterpret_cast<Values*>(shared), *kept_grad_y = kept_x + rows;
  const Channels<Real, vector> channel(norm, first);
  Real sums[2 * vector] = {};
#pragma unroll 2
  for (int turn = 0, row = threadIdx.x; turn < turns; ++turn, row += stride) {
    const int64_t at = row * norm.channels + first;
    const Values x = *reinterpret_cast<const Values*>(maps.x + at);
    Values values = *reinterpret_cast<const Values*>(maps.grad_y + at);
    Real grad_y[vector];
#pragma unroll
    for (int k = 0; k < vector; ++k) grad_y[k] = static_cast<Real>(values.value[k]);
    relu_backward_(norm, maps, at, channel, x, grad_y);
#pragma unroll
    for (int k = 0; k < vector; ++k) {
      values.value[k] = static_cast<T>(grad_y[k]);  // what came in, or 0: nothing is rounded
      sums[k] += grad_y[k];
      sums[vector + k] += grad_y[k] * (static_cast<Real>(x.value[k]) - channel.mean[k]);
    }
    kept_x[row] = x;
    kept_grad_y[row] = values;
    if (maps.grad_residual) *reinterpret_cast<Values*>(maps.grad_residual + at) = values;
  }
  Real* totals = reinterpret_cast<Real*>(kept_grad_y + rows);  // beta's gradients, then gamma's
  const Pair sum = block_sums<vector>(sums, totals + 2 * vector);
  if (threadIdx.x < vector) {
    const int here = first + static_cast<int>(threadIdx.x);
    const Real var = static_cast<const Real*>(norm.var)[here];
    const Real slope = static_cast<Real>(sum.second * reciprocal_deviation(var, norm.eps));
    grad_beta[here] = totals[threadIdx.x] = static_cast<Real>(sum.first);
    grad_gamma[here] = totals[vector + threadIdx.x] = slope;
  }
  __syncthreads();  // every thread reads the totals that the first ones wrote
  Real centred_scale[vector], constant[vector];
#pragma unroll
  for (int k = 0; k < vector; ++k) {
    const Slope<Real> s = slope(channel.scale[k], channel.deviation[k], totals[k],
                                totals[vector + k], norm.rows, norm.frozen);
    centred_scale[k] = s.centred_scale;
    constant[k] = s.constant;
  }
#pragma unroll 2
  for (int turn = 0, row = threadIdx.x; turn < turns; ++turn, row += stride) {
    const Values incoming = load_whole(kept_grad_y + row);
    Real grad_y[vector];
#pragma unroll
    for (int k = 0; k < vector; ++k) grad_y[k] = static_cast<Real>(incoming.value[k]);
    write_gradient(maps, row * norm.channels + first, channel, centred_scale, constant,
                   load_whole(kept_x + row), grad_y);
  }
}

template <typename T>
bool run(const BnActCall& call, const char** refusal) {
  using Real = typename Accumulate<T>::type;
  const BatchNorm& norm = call.norm;
  constexpr int vector = kChannels<T>;
  const bool backward = call.grad_y;
  // The result by given statistics is one launch already.
  if (!norm.on_chip || (norm.frozen && !backward) || !in_vectors<T>(call)) return false;
  const size_t kept = sizeof(Vector<T, vector>) * norm.rows * (backward ? 2 : 1);
  const int warps = norm.rows < kMostThreads ? static_cast<int>(norm.rows + kWarp - 1) / kWarp
                                             : kMostThreads / kWarp;
  const dim3 blocks(norm.channels / vector), threads(warps * kWarp);
  const size_t bytes = kept + sizeof(Real) * 2 * vector * (warps + 1);
  const Maps<T> maps(call);
  // A caller may ask for more rows than a block of this GPU has room for.
  if (backward) {
    if (allow_shared(bn_act_backward_on_chip_kernel<T>, bytes)) return false;
    FASTHG_LAUNCH(bn_act_backward_on_chip_kernel<T>, blocks, threads, bytes, call.stream, norm,
                  maps, static_cast<Real*>(call.grad_beta), static_cast<Real*>(call.grad_gamma));
  } else {
    if (allow_shared(bn_act_on_chip_kernel<T>, bytes)) return false;
    FASTHG_LAUNCH(bn_act_on_chip_kernel<T>, blocks, threads, bytes, call.stream, norm, maps);
  }
  *refusal = launch_status();
  return true;
}

}  // namespace

bool bn_act_on_chip(int dtype, const BnActCall& call, const char** refusal) {
  bool ran = false;
  const char* unknown = dispatch(dtype, [&](auto zero) -> const char* {
    ran = run<decltype(zero)>(call, refusal);
    return nullptr;
  });
  if (unknown) *refusal = unknown;
  return ran || unknown;
}

}  // namespace fasthg
