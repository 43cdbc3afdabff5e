// Batch norm, residual and ReLU of maps of few rows, one launch each way. Formulas:
// bn_act_maps.cuh.
//
// A block owns the few channels that fill half a vector (8 bytes a row), over all rows. It reads
// them once into shared memory, reduces their sums, and computes the result from shared memory.
// Channels are independent, so no block waits for another and no second launch is needed.
//
// Memory traffic, in maps, which is the floor: forward 2 (x read, y written), 1 more with a
// residual. Backward 3 (x and grad_y read, grad_x written), with residual and ReLU 5 (y read,
// grad_residual written). bn_act_cuda.cu moves 3, 4, 5 and 8.
//
// Trade-off: a block reads 8 bytes of every row, a quarter of a 32-byte sector, and only channels /
// 4 blocks (half types) share the work. Neighbouring blocks read the rest of the sector at about
// the same time from the L2 cache, which holds maps of this size. Two alternatives were measured on
// an H200 with 128 to 4096 rows and took longer: 16 bytes a row leave too few blocks, 4 bytes a row
// of 256 channels read too much. Shared memory takes 8 bytes a row forward and 16 backward.
// fasthg/ops/bn_act.py asks for this variant up to 4096 rows and has the times: at 8192 rows three
// launches are faster. A block that needs more shared memory than the GPU has is not launched; the
// call then takes bn_act_cuda.cu.
#include "bn_act_maps.cuh"
#include "bn_act_math.h"
#include "cuda_utils.cuh"

namespace fasthg {
namespace {

constexpr int kMostThreads = 1024;
template <typename T>
constexpr int kChannels = kVectorLength<T> / 2;

// Adds up each of `count` values over the lanes of a warp; lane l gets the sum of value l % count.
// With each exchange a lane hands half of its values to its partner and keeps the other half, so
// it takes about `count` shuffles instead of 5 * count.
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

// Adds the two sums of each channel over the threads of a block. Thread k < vector returns those of
// channel k.
template <int vector, typename Real>
__device__ SumPair block_sums(Real (&sums)[2 * vector], Real* scratch) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const Real sum = warp_sums(sums);
  if (lane < 2 * vector) scratch[warp * 2 * vector + lane] = sum;
  __syncthreads();  // the first warp adds up what every warp wrote
  SumPair total{0, 0};
  if (threadIdx.x >= vector) return total;
  for (int other = 0; other < static_cast<int>(blockDim.x) / kWarp; ++other) {
    total.first += scratch[other * 2 * vector + lane];
    total.second += scratch[other * 2 * vector + vector + lane];
  }
  return total;
}

template <typename T>
__global__ void __launch_bounds__(kMostThreads, 1)
    bn_act_on_chip_kernel(BatchNorm norm, BnActMaps<T> maps) {
  constexpr int vector = kChannels<T>;
  using Real = typename Accumulate<T>::type;
  using Values = Vector<T, vector>;
  FASTHG_SHARED(shared);
  // A thread reads only the rows that it wrote itself, so they need no barrier.
  Values* cached = reinterpret_cast<Values*>(shared);
  const int rows = static_cast<int>(norm.rows), first = static_cast<int>(blockIdx.x) * vector;
  // The number of iterations is computed first: the compiler then unrolls the loop and has several
  // loads in flight.
  const int stride = blockDim.x,
            iterations = (rows - static_cast<int>(threadIdx.x) + stride - 1) / stride;
  const Values origin = *reinterpret_cast<const Values*>(maps.x + first);
  Real sums[2 * vector] = {};
#pragma unroll 4
  for (int iteration = 0, row = threadIdx.x; iteration < iterations; ++iteration, row += stride) {
    const Values x = *reinterpret_cast<const Values*>(maps.x + row * norm.channels + first);
    cached[row] = x;
#pragma unroll
    for (int k = 0; k < vector; ++k) {
      const Real value = static_cast<Real>(x.value[k]) - static_cast<Real>(origin.value[k]);
      sums[k] += value;
      sums[vector + k] += value * value;
    }
  }
  Real* statistics = reinterpret_cast<Real*>(cached + rows);  // means, then variances
  const SumPair sum = block_sums<vector>(sums, statistics + 2 * vector);
  if (threadIdx.x < vector) {
    const int channel = first + static_cast<int>(threadIdx.x);
    const double start = static_cast<double>(static_cast<Real>(maps.x[channel]));
    const MeanVar result = mean_var_from_sums(sum.first, sum.second, start, norm.rows);
    const Real mean = static_cast<Real>(result.mean), var = static_cast<Real>(result.var);
    static_cast<Real*>(norm.mean)[channel] = statistics[threadIdx.x] = mean;
    static_cast<Real*>(norm.var)[channel] = statistics[vector + threadIdx.x] = var;
  }
  __syncthreads();  // every thread reads the statistics that the first ones wrote
  const ChannelParams<Real, vector> channel(norm, first, statistics, statistics + vector);
#pragma unroll 2
  for (int iteration = 0, row = threadIdx.x; iteration < iterations; ++iteration, row += stride)
    write_result(norm, maps, row * norm.channels + first, channel, load_whole(cached + row));
}

template <typename T>
__global__ void __launch_bounds__(kMostThreads, 1)
    bn_act_backward_on_chip_kernel(BatchNorm norm, BnActMaps<T> maps,
                                   typename Accumulate<T>::type* grad_beta,
                                   typename Accumulate<T>::type* grad_gamma) {
  constexpr int vector = kChannels<T>;
  using Real = typename Accumulate<T>::type;
  using Values = Vector<T, vector>;
  FASTHG_SHARED(shared);
  const int rows = static_cast<int>(norm.rows), first = static_cast<int>(blockIdx.x) * vector;
  // The number of iterations is computed first: the compiler then unrolls the loop and has several
  // loads in flight.
  const int stride = blockDim.x,
            iterations = (rows - static_cast<int>(threadIdx.x) + stride - 1) / stride;
  Values *cached_x = reinterpret_cast<Values*>(shared), *cached_grad_y = cached_x + rows;
  const ChannelParams<Real, vector> channel(norm, first);
  Real sums[2 * vector] = {};
#pragma unroll 2
  for (int iteration = 0, row = threadIdx.x; iteration < iterations; ++iteration, row += stride) {
    const int64_t offset = row * norm.channels + first;
    const Values x = *reinterpret_cast<const Values*>(maps.x + offset);
    Values values = *reinterpret_cast<const Values*>(maps.grad_y + offset);
    Real grad_y[vector];
#pragma unroll
    for (int k = 0; k < vector; ++k) grad_y[k] = static_cast<Real>(values.value[k]);
    apply_relu_mask(norm, maps, offset, channel, x, grad_y);
#pragma unroll
    for (int k = 0; k < vector; ++k) {
      values.value[k] = static_cast<T>(grad_y[k]);  // the value as loaded, or 0: no rounding
      sums[k] += grad_y[k];
      sums[vector + k] += grad_y[k] * (static_cast<Real>(x.value[k]) - channel.mean[k]);
    }
    cached_x[row] = x;
    cached_grad_y[row] = values;
    if (maps.grad_residual) *reinterpret_cast<Values*>(maps.grad_residual + offset) = values;
  }
  Real* totals = reinterpret_cast<Real*>(cached_grad_y + rows);  // grad_beta, then grad_gamma
  const SumPair sum = block_sums<vector>(sums, totals + 2 * vector);
  if (threadIdx.x < vector) {
    const int channel_index = first + static_cast<int>(threadIdx.x);
    const Real var = static_cast<const Real*>(norm.var)[channel_index];
    const Real total_gamma = static_cast<Real>(sum.second * inv_std_of_var(var, norm.eps));
    grad_beta[channel_index] = totals[threadIdx.x] = static_cast<Real>(sum.first);
    grad_gamma[channel_index] = totals[vector + threadIdx.x] = total_gamma;
  }
  __syncthreads();  // every thread reads the totals that the first ones wrote
  Real x_centred_scale[vector], constant[vector];
#pragma unroll
  for (int k = 0; k < vector; ++k) {
    const BnGradCoefficients<Real> coefficients =
        bn_grad_coefficients(channel.scale[k], channel.inv_std[k], totals[k], totals[vector + k],
                             norm.rows, norm.frozen);
    x_centred_scale[k] = coefficients.x_centred;
    constant[k] = coefficients.constant;
  }
#pragma unroll 2
  for (int iteration = 0, row = threadIdx.x; iteration < iterations; ++iteration, row += stride) {
    const Values grad_y_values = load_whole(cached_grad_y + row);
    Real grad_y[vector];
#pragma unroll
    for (int k = 0; k < vector; ++k) grad_y[k] = static_cast<Real>(grad_y_values.value[k]);
    write_grad_x(maps, row * norm.channels + first, channel, x_centred_scale, constant,
                 load_whole(cached_x + row), grad_y);
  }
}

template <typename T>
bool run(const BnActCall& call, const char** refusal) {
  using Real = typename Accumulate<T>::type;
  const BatchNorm& norm = call.norm;
  constexpr int vector = kChannels<T>;
  const bool backward = call.grad_y;
  // The forward with frozen statistics is one launch in bn_act_cuda.cu as well.
  if (!norm.on_chip || (norm.frozen && !backward) || !in_vectors<T>(call)) return false;
  const size_t cached = sizeof(Vector<T, vector>) * norm.rows * (backward ? 2 : 1);
  const int warps = norm.rows < kMostThreads ? static_cast<int>(norm.rows + kWarp - 1) / kWarp
                                             : kMostThreads / kWarp;
  const dim3 blocks(norm.channels / vector), threads(warps * kWarp);
  const size_t bytes = cached + sizeof(Real) * 2 * vector * (warps + 1);
  const BnActMaps<T> maps(call);
  // A caller may ask for more rows than fit into a block's shared memory on this GPU.
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
