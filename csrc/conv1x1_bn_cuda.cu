// A 1x1 convolution between two batch norms: the norm of its input on load, the statistics of its
// result on the way out.
//
//   y = a W^T + residual,  a = relu?((x - mean) / sqrt(var + eps) * gamma + beta), or a = x
//   mean and biased variance of y's channels over the rows
//
// Fused: a is made in shared memory, from each value of x once, and rounded to x's type as bn_act
// rounds it, so y has the bits of bn_act_inference and then conv1x1_act. It is never written. The
// statistics are those of y as rounded, taken from registers before it leaves them.
//
// Memory traffic: in + outputs values a row (and outputs more with a residual), the floor, and 16
// bytes a channel for each 128 rows, of moments. Apart, norm, convolution and statistics move
// 3 in + 2 outputs: x read, a written and read, y written and read.
//
// Statistics: a lane finds mean and squared deviations of its four values of a channel in 32 rows,
// eight lanes merge theirs as a tree (conv1x1_bn_math.h), then the four parts of a tile of 128 rows
// are merged in order. A second launch adds up the tiles in double, in 32 lines and a tree. Every
// tile has 128 rows, so the order depends on the number of rows alone: results repeat, on every
// GPU. No atomics.
//
// Trade-offs: what conv1x1_act says of its blocks; rows and outputs must be whole vectors, and all
// tiles have 128 rows, so maps of few rows keep few multiprocessors at work. The second launch
// could be left out if the norm that follows merged the moments itself.
//
// Not yet run on a GPU.
#include "bn_act_math.h"
#include "conv1x1_bn_math.h"
#include "conv1x1_product.cuh"
#include "ops.h"

namespace fasthg {
namespace {

constexpr int kTileRows = 128;  // whose moments lie in memory between the launches
constexpr int kPartRows = 32;   // that a warp finds moments of
constexpr int kParts = kTileRows / kPartRows;
// The second launch: channels of a block, which fill a sector of 32 bytes, and lines of threads
// that share the tiles.
constexpr int kMergedChannels = 8;
constexpr int kLines = 32;

template <typename T>
struct Conv1x1BnWork {
  ConvInputs<T> in;
  ConvResults<T> out;
  BatchNorm norm;  // of x; mean is null where there is none
  float* moments;  // (tiles of rows, 2, outputs): mean and squared deviations
};

// What a block keeps in shared memory after weights and stages.
template <typename Tile>
struct BnShared {
  float *mean, *scale, *beta;  // (depth,): of x's norm
  Moments* parts;              // (kParts, across)

  static size_t bytes(int depth) {
    return 3 * depth * sizeof(float) + kParts * Tile::across * sizeof(Moments);
  }
  __device__ BnShared(unsigned char* memory, int depth)
      : mean(reinterpret_cast<float*>(memory)),
        scale(mean + depth),
        beta(scale + depth),
        parts(reinterpret_cast<Moments*>(beta + depth)) {}
};

// Inputs beyond x's get 0.
template <typename Tile>
__device__ void load_norm(const BatchNorm& norm, int inputs, int depth,
                          const BnShared<Tile>& shared) {
  const float* gamma = static_cast<const float*>(norm.gamma);
  for (int k = threadIdx.x; k < depth; k += kConvThreads) {
    const bool inside = k < inputs;
    const float var = inside ? static_cast<const float*>(norm.var)[k] : 1;
    const float inv_std = inv_std_of_var(var, norm.eps);
    shared.mean[k] = inside ? static_cast<const float*>(norm.mean)[k] : 0;
    shared.scale[k] = inside && gamma ? inv_std * gamma[k] : inv_std;
    shared.beta[k] = inside ? static_cast<const float*>(norm.beta)[k] : 0;
  }
}

// Makes a of x where this thread copied it to.
template <typename Tile, typename T>
__device__ void normalise_step(const BatchNorm& norm, const StepInputs<T>& part,
                               const BnShared<Tile>& shared, T* stage) {
  using Values = Vector<T, kChunk>;
  constexpr int across = kStep / kChunk;
  const int column = threadIdx.x % across * kChunk, first = part.k + column;
  if (column >= part.width) return;
  float mean[kChunk], scale[kChunk], beta[kChunk];
#pragma unroll
  for (int k = 0; k < kChunk; ++k) {
    mean[k] = shared.mean[first + k];
    scale[k] = shared.scale[first + k];
    beta[k] = shared.beta[first + k];
  }
#pragma unroll
  for (int line = 0; line < Tile::down; line += kConvThreads / across) {
    Values* at = reinterpret_cast<Values*>(stage + (line + threadIdx.x / across) * kPitch + column);
    Values values = load_whole(at);
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
      const float a = normalise(static_cast<float>(values.value[k]), mean[k], scale[k], beta[k]);
      values.value[k] = static_cast<T>(norm.relu ? apply_relu(a) : a);
    }
    keep_whole(values, at);
  }
}

// One step of a tree over lanes: a lane hands the half of its channels that its partner goes on
// with to it, and merges what it gets with the other half. `rows`: of this lane's moments.
template <int half, int count>
__device__ void exchange(Moments (&channels)[count], float& rows, bool upper, int mask) {
  const float others = shuffle_xor(rows, mask);
  const MomentShares shares(upper ? others : rows, upper ? rows : others);
#pragma unroll
  for (int i = 0; i < half; ++i) {
    const Moments own = upper ? channels[i + half] : channels[i];
    const Moments other = shuffle_xor(upper ? channels[i] : channels[i + half], mask);
    channels[i] = merge_moments(upper ? other : own, upper ? own : other, shares);
  }
  rows += others;
}

// Writes the moments of the results of each 32 rows of a warp to shared memory.
template <typename Tile>
__device__ void find_moments(const ConvSums<Tile>& results, int64_t rows_left,
                             const BnShared<Tile>& shared) {
  constexpr int count = Tile::groups * Tile::vector, left = count / 8, lines = kPartRows / 8;
  const LanePlace<Tile> place;
  const int eighth = threadIdx.x % kWarp / 4;  // of the rows
#pragma unroll
  for (int part = 0; part < Tile::products_down / 2; ++part) {
    const int64_t from_here = rows_left - place.row - part * kPartRows;
    const int valid = from_here <= 0          ? 0
                      : from_here > 8 * lines ? lines
                                              : static_cast<int>(from_here + 7) / 8;
    const float inverse = valid ? 1.0f / valid : 0;
    Moments channels[count];
#pragma unroll
    for (int i = 0; i < count; ++i) {
      float values[lines], sum = 0, squares = 0;
#pragma unroll
      for (int line = 0; line < lines; ++line) {
        values[line] = lane_sum<Tile>(results, part * 2 + line / 2, line % 2, i / Tile::vector,
                                      i % Tile::vector);
        if (line < valid) sum += values[line];
      }
      const float mean = sum * inverse;
#pragma unroll
      for (int line = 0; line < lines; ++line)
        if (line < valid) squares += (values[line] - mean) * (values[line] - mean);
      channels[i] = {mean, squares};
    }
    float rows = valid;
    exchange<count / 2>(channels, rows, eighth & 4, 16);
    exchange<count / 4>(channels, rows, eighth & 2, 8);
    exchange<count / 8>(channels, rows, eighth & 1, 4);
    Moments* to = shared.parts + (place.warp_row / kPartRows + part) * Tile::across;
#pragma unroll
    for (int i = 0; i < left; ++i) {
      const int channel = eighth * left + i;
      to[place.output + channel / Tile::vector * Tile::group + channel % Tile::vector] =
          channels[i];
    }
  }
}

template <typename T, typename Tile>
__global__ void __launch_bounds__(kConvThreads, Tile::blocks)
    conv1x1_bn_kernel(Conv1x1BnWork<T> work) {
  static_assert(Tile::down == kTileRows && Tile::products_down % 2 == 0, "parts of 32 rows");
  FASTHG_SHARED(memory);
  const int depth = work.in.first.depth;
  const int output = static_cast<int>(blockIdx.x) % work.in.columns * Tile::across;
  const BnShared<Tile> shared(memory + Tile::bytes(depth), depth);
  if (work.norm.mean) {
    load_norm<Tile>(work.norm, work.in.first.in, depth, shared);
    __syncthreads();  // every thread takes channels that others loaded
  }
  walk_tiles<Tile>(
      work.in, memory,
      [&](const StepInputs<T>& part, T* stage) {
        if (work.norm.mean) normalise_step<Tile>(work.norm, part, shared, stage);
      },
      [&](int64_t row, ConvSums<Tile>& sums) {
        // Few vectors ahead: all results stay in registers for their moments.
        write_results<Tile, 4>(work.in, work.out, row, output, nullptr, sums);
        const int64_t rows_left = work.in.rows - row;
        find_moments<Tile>(sums, rows_left, shared);
        __syncthreads();  // a channel's parts come from several warps
        const int own = static_cast<int>(threadIdx.x);
        if (own >= Tile::across || output + own >= work.in.outputs) return;
        Moments all = shared.parts[own];
        const int lines = rows_left < kTileRows ? static_cast<int>(rows_left) : kTileRows;
        float rows = min(lines, kPartRows);
#pragma unroll
        for (int part = 1; part < kParts; ++part) {
          const float next = min(max(lines - part * kPartRows, 0), kPartRows);
          all =
              merge_moments(all, shared.parts[part * Tile::across + own], MomentShares(rows, next));
          rows += next;
        }
        float* to = work.moments + row / kTileRows * 2 * work.in.outputs + output + own;
        to[0] = all.mean;
        to[work.in.outputs] = all.squares;
      });
}

// Sums over the rows of some tiles, of what the rows differ from the mean of the first tile.
struct RowSums {
  double first, squares;
};

// Mean and variance of each channel from the moments of all tiles.
__global__ void __launch_bounds__(kMergedChannels* kLines)
    conv1x1_bn_statistics_kernel(const float* moments, int64_t rows, int outputs, float* mean,
                                 float* var) {
  FASTHG_SHARED(memory);
  RowSums* lines = reinterpret_cast<RowSums*>(memory);  // (kLines, kMergedChannels)
  const int own = threadIdx.x % kMergedChannels, line = threadIdx.x / kMergedChannels;
  const int channel = static_cast<int>(blockIdx.x) * kMergedChannels + own;
  const int64_t tiles = divide_up(rows, kTileRows);
  const double origin = channel < outputs ? moments[channel] : 0;
  RowSums sums{0, 0};
  if (channel < outputs) {
#pragma unroll 8
    for (int64_t tile = line; tile < tiles; tile += kLines) {
      const float* from = moments + tile * 2 * outputs + channel;
      const int64_t left = rows - tile * kTileRows;
      const double count = static_cast<double>(left < kTileRows ? left : kTileRows);
      const double delta = from[0] - origin;
      sums.first += count * delta;
      sums.squares += from[outputs] + count * delta * delta;
    }
  }
  lines[threadIdx.x] = sums;
  for (int half = kLines / 2; half; half /= 2) {
    __syncthreads();  // the sums that are added next come from other warps
    if (line >= half) continue;
    const RowSums other = lines[threadIdx.x + half * kMergedChannels];
    lines[threadIdx.x].first += other.first;
    lines[threadIdx.x].squares += other.squares;
  }
  if (line > 0 || channel >= outputs) return;
  const MeanVar result = mean_var_from_sums(lines[own].first, lines[own].squares, origin, rows);
  mean[channel] = static_cast<float>(result.mean);
  var[channel] = static_cast<float>(result.var);
}

template <typename T, typename Tile>
const char* run(Conv1x1BnWork<T> work, const ConvDevice& device, void* stream) {
  const int depth = work.in.first.depth;
  const size_t bytes = Tile::bytes(depth) + BnShared<Tile>::bytes(depth);
  if (const char* refusal = allow_shared(conv1x1_bn_kernel<T, Tile>, bytes)) return refusal;
  const int blocks = share_tiles<Tile>(work.in, device, conv1x1_bn_kernel<T, Tile>, bytes);
  FASTHG_LAUNCH((conv1x1_bn_kernel<T, Tile>), dim3(blocks), dim3(kConvThreads), bytes, stream,
                work);
  return launch_status();
}

template <typename T>
const char* launch(const Conv1x1BnWork<T>& work, void* stream) {
  using Wide = Tile<128, 256, 2, 1>;
  using Large = Tile<128, 128, 4, 1>;
  using Narrow = Tile<128, 64, 4, 2>;
  using InSteps = Tile<128, 64, 4, 1, false>;
  const ConvDevice device;
  const auto fits = [&](auto tile) {
    using Tile = decltype(tile);
    return device.fits<Tile>(work.in, BnShared<Tile>::bytes(work.in.first.depth));
  };
  const auto suits = [&](auto tile) {
    return fits(tile) && device.filled_by<decltype(tile)>(work.in);
  };
  const int outputs = work.in.outputs;
  if (outputs > Large::across && suits(Wide{})) return run<T, Wide>(work, device, stream);
  if (outputs > Narrow::across && suits(Large{})) return run<T, Large>(work, device, stream);
  if (fits(Narrow{})) return run<T, Narrow>(work, device, stream);
  return run<T, InSteps>(work, device, stream);
}

}  // namespace
}  // namespace fasthg

const char* fasthg_conv1x1_bn_cuda(int dtype, const fasthg::Conv1x1* conv,
                                   const fasthg::BatchNorm* norm, void* workspace, void* mean,
                                   void* var, int device, void* stream) {
  using namespace fasthg;
  const DeviceGuard guard(device);
  return dispatch(dtype, [&](auto zero) -> const char* {
    using T = decltype(zero);
    if constexpr (sizeof(T) == 2) {
      float* moments = static_cast<float*>(workspace);
      const Conv1x1BnWork<T> work{conv_inputs<T>(*conv), conv_results<T>(*conv), *norm, moments};
      const bool vectors = work.in.first.vectors && conv->outputs % kChunk == 0 &&
                           aligned16(conv->residual) && aligned16(conv->y);
      if (!vectors || conv->in2 || conv->bias || conv->relu)
        return "conv1x1_bn: takes rows of whole vectors, and neither a second pair, bias nor ReLU";
      if (const char* refusal = launch<T>(work, stream)) return refusal;
      const dim3 blocks(divide_up(conv->outputs, kMergedChannels));
      FASTHG_LAUNCH(conv1x1_bn_statistics_kernel, blocks, dim3(kMergedChannels * kLines),
                    kMergedChannels * kLines * sizeof(RowSums), stream, moments, conv->rows,
                    work.in.outputs, static_cast<float*>(mean), static_cast<float*>(var));
      return launch_status();
    }
    return "conv1x1_bn on CUDA takes float16 and bfloat16";
  });
}
