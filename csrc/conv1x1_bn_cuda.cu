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
// Statistics: a lane finds mean and squared deviations of its four values of a channel in 32 rows;
// conv1x1_bn_math.h merges them, in the order that conv1x1_norms.cuh describes.
//
// Trade-offs: what conv1x1_act says of its blocks; rows and outputs must be whole vectors, and all
// tiles have 128 rows, so maps of few rows keep few multiprocessors at work. The second launch
// could be left out if the norm that follows merged the moments itself.
//
// Not yet run on a GPU.
#include "conv1x1_bn_math.h"
#include "conv1x1_norms.cuh"
#include "ops.h"

namespace fasthg {
namespace {

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
  SharedNorm norm;  // of x
  Moments* parts;   // (kParts, across)

  static size_t bytes(int depth) {
    return SharedNorm::bytes(depth) + kParts * Tile::across * sizeof(Moments);
  }
  __device__ BnShared(unsigned char* memory, int depth)
      : norm(memory, depth), parts(reinterpret_cast<Moments*>(norm.beta + depth)) {}
};

// Writes the moments of the results of each 32 rows of a warp to shared memory.
template <typename Tile>
__device__ void find_moments(const ConvSums<Tile>& results, int64_t rows_left, Moments* parts) {
  constexpr int count = Tile::groups * Tile::vector;
  const LanePlace<Tile> place;
  const int eighth = threadIdx.x % kWarp / 4;  // of the rows
#pragma unroll
  for (int part = 0; part < Tile::products_down / 2; ++part) {
    const int64_t from_here = rows_left - place.row - part * kPartRows;
    const int valid = from_here <= 0               ? 0
                      : from_here > 8 * kPartLines ? kPartLines
                                                   : static_cast<int>(from_here + 7) / 8;
    const float inverse = valid ? 1.0f / valid : 0;
    Moments channels[count];
#pragma unroll
    for (int i = 0; i < count; ++i) {
      float values[kPartLines], sum = 0, squares = 0;
#pragma unroll
      for (int line = 0; line < kPartLines; ++line) {
        values[line] = lane_sum<Tile>(results, part * 2 + line / 2, line % 2, i / Tile::vector,
                                      i % Tile::vector);
        if (line < valid) sum += values[line];
      }
      const float mean = sum * inverse;
#pragma unroll
      for (int line = 0; line < kPartLines; ++line)
        if (line < valid) squares += (values[line] - mean) * (values[line] - mean);
      channels[i] = {mean, squares};
    }
    float rows = valid;
    const auto merge_lanes = [&](auto half, int bit) {
      const bool upper = eighth & bit;
      const float others = shuffle_xor(rows, 4 * bit);
      const MomentShares shares(upper ? others : rows, upper ? rows : others);
      exchange<half>(channels, upper, 4 * bit, [&](const Moments& first, const Moments& second) {
        return merge_moments(first, second, shares);
      });
      rows += others;
    };
    merge_lanes(std::integral_constant<int, count / 2>{}, 4);
    merge_lanes(std::integral_constant<int, count / 4>{}, 2);
    merge_lanes(std::integral_constant<int, count / 8>{}, 1);
    keep_part<Tile>(place, channels, parts + (place.warp_row / kPartRows + part) * Tile::across);
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
    shared.norm.load(work.norm, 0, work.in.first.in, depth);
    __syncthreads();  // every thread takes channels that others loaded
  }
  walk_tiles<Tile>(
      work.in, memory,
      [&](const StepInputs<T>& part, T* stage) {
        if (!work.norm.mean) return;
        change_step<Tile>(part, stage, [&](int first) {
          const VectorNorm norm(shared.norm, first);
          return [norm, &work](const Vector<T, kChunk>* x) {
            return norm.result(load_whole(x), work.norm.relu);
          };
        });
      },
      [&](int64_t row, ConvSums<Tile>& sums) {
        // Few vectors ahead: all results stay in registers for their moments.
        write_results<Tile, 4>(work.in, work.out, row, output, nullptr, sums);
        const int64_t rows_left = work.in.rows - row;
        find_moments<Tile>(sums, rows_left, shared.parts);
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

// Mean and variance of each channel from the moments of all tiles; added up is what rows differ
// from the mean of the first tile.
__global__ void __launch_bounds__(kMergedChannels* kLines)
    conv1x1_bn_statistics_kernel(const float* moments, int64_t rows, int outputs, float* mean,
                                 float* var) {
  FASTHG_SHARED(memory);
  int channel;
  RowSums total;
  const auto of_tile = [&](int64_t tile, int channel) {
    const float* from = moments + tile * 2 * outputs + channel;
    const int64_t left = rows - tile * kTileRows;
    const double count = static_cast<double>(left < kTileRows ? left : kTileRows);
    const double delta = from[0] - static_cast<double>(moments[channel]);
    return RowSums{count * delta, from[outputs] + count * delta * delta};
  };
  if (!add_tiles(rows, outputs, of_tile, reinterpret_cast<RowSums*>(memory), channel, total))
    return;
  const MeanVar result = mean_var_from_sums(total.first, total.second, moments[channel], rows);
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
  const ConvDevice device;
  const auto fits = [&](auto tile) {
    using Tile = decltype(tile);
    return device.fits<Tile>(work.in, BnShared<Tile>::bytes(work.in.first.depth));
  };
  return run_largest_tile<1, void>(work.in, device, fits, [&](auto tile) {
    return run<T, decltype(tile)>(work, device, stream);
  });
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
