// Batch norms in the kernels of 1x1 convolutions: made on load, and reduced over rows behind.
//
// On load, a vector of 8 channels at a time, in shared memory, by the thread that copied it there:
//   a = relu?((x - mean) scale + beta)                               the norm's result
//   g = grad scale + ((z - mean) x_centred + constant)               the norm's gradient
// where grad is 0 if the norm has a ReLU and (z - mean) scale + beta <= 0. bn_act_math.h derives
// the coefficients. Both are rounded to T as bn_act rounds what it writes.
//
// Behind, two values a channel are reduced over the rows of a tile: by lanes as a tree over 32
// rows, then the four parts of a tile of 128 rows in order. A second launch adds up the tiles in
// double, in 32 lines and a tree. All tiles have 128 rows, so the order depends on the number of
// rows alone: results repeat, on every GPU. No atomics.
#pragma once

#include "bn_act_math.h"
#include "conv1x1_product.cuh"

namespace fasthg {

constexpr int kTileRows = 128;  // whose reduced values lie in memory between the launches
constexpr int kPartRows = 32;   // that a warp reduces
constexpr int kParts = kTileRows / kPartRows;
constexpr int kPartLines = kPartRows / 8;  // of them, rows of a lane
// The second launch: channels of a block, which fill a sector of 32 bytes, and lines of threads
// that share the tiles.
constexpr int kMergedChannels = 8;
constexpr int kLines = 32;

// A norm's values for `count` channels in shared memory.
struct SharedNorm {
  float *mean, *scale, *beta;  // (count,)
  static constexpr int arrays = 3;

  static size_t bytes(int count) { return arrays * count * sizeof(float); }
  __device__ SharedNorm(unsigned char* memory, int count)
      : mean(reinterpret_cast<float*>(memory)), scale(mean + count), beta(scale + count) {}

  // Loads channels [first, first + count) of `channels`; those beyond get 0.
  __device__ void load(const BatchNorm& norm, int first, int channels, int count) const {
    const float* gamma = static_cast<const float*>(norm.gamma);
    for (int k = threadIdx.x; k < count; k += kConvThreads) {
      const int channel = first + k;
      const bool inside = channel < channels;
      const float inv_std =
          inside ? inv_std_of_var(static_cast<const float*>(norm.var)[channel], norm.eps) : 0;
      mean[k] = inside ? static_cast<const float*>(norm.mean)[channel] : 0;
      scale[k] = inside && gamma ? inv_std * gamma[channel] : inv_std;
      beta[k] = inside ? static_cast<const float*>(norm.beta)[channel] : 0;
    }
  }
};

// What a norm's gradient is made of: the norm, its input and both sums over all rows.
template <typename T>
struct NormGradient {
  BatchNorm norm;
  const T* z;                           // (rows, channels)
  const float *grad_beta, *grad_gamma;  // (channels,), as bn_act_backward writes them
};

struct SharedNormGradient : SharedNorm {
  float *x_centred, *constant;  // (count,)
  static constexpr int arrays = 5;

  static size_t bytes(int count) { return arrays * count * sizeof(float); }
  __device__ SharedNormGradient(unsigned char* memory, int count)
      : SharedNorm(memory, count), x_centred(beta + count), constant(x_centred + count) {}

  template <typename T>
  __device__ void load(const NormGradient<T>& of, int64_t rows, int first, int channels,
                       int count) const {
    SharedNorm::load(of.norm, first, channels, count);
    for (int k = threadIdx.x; k < count; k += kConvThreads) {
      const int channel = first + k;
      BnGradCoefficients<float> coefficients{};
      if (channel < channels)
        coefficients = bn_grad_coefficients(
            scale[k], inv_std_of_var(static_cast<const float*>(of.norm.var)[channel], of.norm.eps),
            of.grad_beta[channel], of.grad_gamma[channel], rows, false);
      x_centred[k] = coefficients.x_centred;
      constant[k] = coefficients.constant;
    }
  }
};

// The values of eight neighbouring channels in registers.
struct VectorNorm {
  float mean[kChunk], scale[kChunk], beta[kChunk];

  __device__ VectorNorm(const SharedNorm& shared, int first) {
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
      mean[k] = shared.mean[first + k];
      scale[k] = shared.scale[first + k];
      beta[k] = shared.beta[first + k];
    }
  }
  // a of x.
  template <typename T>
  __device__ Vector<T, kChunk> result(Vector<T, kChunk> x, bool relu) const {
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
      const float a = normalise(static_cast<float>(x.value[k]), mean[k], scale[k], beta[k]);
      x.value[k] = static_cast<T>(relu ? apply_relu(a) : a);
    }
    return x;
  }
};

struct VectorNormGradient : VectorNorm {
  float x_centred[kChunk], constant[kChunk];

  __device__ VectorNormGradient(const SharedNormGradient& shared, int first)
      : VectorNorm(shared, first) {
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
      x_centred[k] = shared.x_centred[first + k];
      constant[k] = shared.constant[first + k];
    }
  }
  // g of grad and z.
  template <typename T>
  __device__ Vector<T, kChunk> gradient(Vector<T, kChunk> grad, const Vector<T, kChunk>& z,
                                        bool relu) const {
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
      const float input = static_cast<float>(z.value[k]);
      float value = static_cast<float>(grad.value[k]);
      if (relu) value = relu_backward(normalise(input, mean[k], scale[k], beta[k]), value);
      grad.value[k] =
          static_cast<T>(value * scale[k] + ((input - mean[k]) * x_centred[k] + constant[k]));
    }
    return grad;
  }
};

// Calls change(vectors) for each vector of a step that this thread copied, in place; load: what
// makes of the step's first channel what changes the vectors.
template <typename Tile, typename T, typename Load>
__device__ void change_step(const StepInputs<T>& part, T* stage, const Load& load) {
  constexpr int across = kStep / kChunk;
  const int column = threadIdx.x % across * kChunk;
  if (column >= part.width) return;
  const auto change = load(part.k + column);
#pragma unroll
  for (int line = 0; line < Tile::down; line += kConvThreads / across) {
    using Values = Vector<T, kChunk>;
    Values* at = reinterpret_cast<Values*>(stage + (line + threadIdx.x / across) * kPitch + column);
    keep_whole(change(at), at);
  }
}

// One step of a tree over lanes: a lane hands the half of its channels that its partner goes on
// with to it, and merges what it gets with the other half. merge(first, second): rows in order.
template <int half, typename V, int count, typename Merge>
__device__ void exchange(V (&channels)[count], bool upper, int mask, const Merge& merge) {
#pragma unroll
  for (int i = 0; i < half; ++i) {
    const V own = upper ? channels[i + half] : channels[i];
    const V other = shuffle_xor(upper ? channels[i] : channels[i + half], mask);
    channels[i] = merge(upper ? other : own, upper ? own : other);
  }
}

// Where a lane's results of all its columns were reduced over eight lanes: writes them to `to`,
// (across,), of the part's rows.
template <typename Tile, typename V, int count>
__device__ void keep_part(const LanePlace<Tile>& place, const V (&channels)[count], V* to) {
  constexpr int left = count / 8;
  const int eighth = threadIdx.x % kWarp / 4;  // of the rows
#pragma unroll
  for (int i = 0; i < left; ++i) {
    const int channel = eighth * left + i;
    to[place.output + channel / Tile::vector * Tile::group + channel % Tile::vector] = channels[i];
  }
}

// Two sums of a channel.
struct RowSums {
  double first, second;
};

// Adds up of_tile(tile, channel) over all tiles of rows; returns true in the threads that have a
// channel's total. A block has kMergedChannels channels and as many threads for each as `lines`.
template <typename OfTile>
__device__ bool add_tiles(int64_t rows, int channels, const OfTile& of_tile, RowSums* lines,
                          int& channel, RowSums& total) {
  const int own = threadIdx.x % kMergedChannels, line = threadIdx.x / kMergedChannels;
  channel = static_cast<int>(blockIdx.x) * kMergedChannels + own;
  const int64_t tiles = divide_up(rows, kTileRows);
  RowSums sums{0, 0};
  if (channel < channels) {
#pragma unroll 8
    for (int64_t tile = line; tile < tiles; tile += kLines) {
      const RowSums next = of_tile(tile, channel);
      sums.first += next.first;
      sums.second += next.second;
    }
  }
  lines[threadIdx.x] = sums;
  for (int half = kLines / 2; half; half /= 2) {
    __syncthreads();  // the sums that are added next come from other warps
    if (line >= half) continue;
    const RowSums other = lines[threadIdx.x + half * kMergedChannels];
    lines[threadIdx.x].first += other.first;
    lines[threadIdx.x].second += other.second;
  }
  total = lines[own];
  return line == 0 && channel < channels;
}

}  // namespace fasthg
