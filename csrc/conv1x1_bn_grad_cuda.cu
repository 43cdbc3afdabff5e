// The gradient of a 1x1 convolution's input, between the backward of the norm of its result and
// that of the norm of its input.
//
//   out = g W + addend,  g: the gradient of z, of (rows, in), by its norm (conv1x1_norms.cuh) from
//                        the gradient of the norm's result and that norm's two sums over all rows
//   or, with the norm below, u = norm(x) = relu?((x - mean) / sqrt(var + eps) * gamma + beta):
//   out = (g W where u passed the ReLU, else 0), and over the rows
//   grad_beta = sum out,  grad_gamma = sum out (x - mean) / sqrt(var + eps)
//
// Fused: g is made in shared memory, from each value of grad and z once, and rounded as bn_act's
// backward rounds it, so g W has the bits of that backward and then conv1x1_act. It is never
// written. The sums that the norm below needs are taken from results before they leave registers;
// the mask follows from x, of which a thread reads what lies where its results do.
//
// Memory traffic: 2 in + outputs values a row, and outputs more with an addend or a norm below,
// which is the floor, and 16 bytes a channel for each 128 rows, of sums. Apart, norm, convolution
// and the next norm's sums move 5 in + 3 outputs: grad and z read twice, g written and read; the
// result written and read, x read (with an addend 5 in + 2 outputs).
//
// Sums: a lane adds up its four values of a channel in 32 rows; conv1x1_norms.cuh has the order of
// the rest.
//
// Trade-offs: those of conv1x1_bn_cuda.cu. A stage in shared memory holds both grad and z, so there
// are three stages instead of four. The alternative, z in registers a step ahead, would leave room
// for 256 outputs of more than 192 inputs on an H200, but costs 16 registers beside 128 of sums,
// and has z on its way for one step only. An A100 has room for 64 outputs of 256 inputs, so
// that blocks read grad and z again from the L2 cache.
//
// Not yet run on a GPU.
#include "conv1x1_norms.cuh"
#include "ops.h"

namespace fasthg {
namespace {

// The norm below: of x, (rows, outputs).
template <typename T>
struct NormBelow {
  BatchNorm norm;
  const T* x;
  float* sums;  // (tiles of rows, 2, outputs): of out and of out (x - mean)
};

template <typename T>
struct GradWork {
  ConvInputs<T> in;  // with z beside grad
  ConvResults<T> out;
  NormGradient<T> of_z;
  NormBelow<T> below;
};

struct SumPair {
  float first, second;
};

// What a block keeps in shared memory after weights and stages.
template <typename Tile, bool with_below>
struct GradShared {
  SharedNormGradient of_z;
  SharedNorm below;  // (across,), like `parts` only with a norm below
  SumPair* parts;    // (kParts, across)

  static size_t bytes(int depth) {
    return SharedNormGradient::bytes(depth) +
           with_below * (SharedNorm::bytes(Tile::across) + kParts * Tile::across * sizeof(SumPair));
  }
  __device__ GradShared(unsigned char* memory, int depth)
      : of_z(memory, depth),
        below(reinterpret_cast<unsigned char*>(of_z.constant + depth), Tile::across),
        parts(reinterpret_cast<SumPair*>(below.beta + Tile::across)) {}
};

// Masks a lane's results by the ReLU of the norm below, writes them, and writes the sums over each
// 32 rows of a warp to shared memory.
template <typename Tile, typename T>
__device__ void write_masked(const GradWork<T>& work, int64_t first_row, int first_output,
                             const SharedNorm& below, const ConvSums<Tile>& sums, SumPair* parts) {
  constexpr int vector = Tile::vector, count = Tile::groups * vector;
  using Values = Vector<T, vector>;
  const LanePlace<Tile> place;
  const int outputs = work.in.outputs, eighth = threadIdx.x % kWarp / 4;
  const int64_t offset = (first_row + place.row) * outputs + first_output + place.output;
  const int64_t rows_left = work.in.rows - first_row - place.row;
  const int outputs_left = outputs - first_output - place.output;
#pragma unroll
  for (int part = 0; part < Tile::products_down / 2; ++part) {
    SumPair channels[count];
#pragma unroll
    for (int q = 0; q < Tile::groups; ++q) {
      const int column = q * Tile::group;
      // All loads of a group before its first store: out might alias x to the compiler.
      Values x[kPartLines];
#pragma unroll
      for (int i = 0; i < kPartLines; ++i) {
        const int line = part * kPartRows + i * 8;
        if (line < rows_left && column < outputs_left)
          x[i] = *reinterpret_cast<const Values*>(work.below.x + offset + line * outputs + column);
      }
#pragma unroll
      for (int k = 0; k < vector; ++k) channels[q * vector + k] = {0, 0};
#pragma unroll
      for (int i = 0; i < kPartLines; ++i) {
        const int line = part * kPartRows + i * 8;
        if (line >= rows_left || column >= outputs_left) continue;
        Values result;
#pragma unroll
        for (int k = 0; k < vector; ++k) {
          const int channel = place.output + column + k;
          const float input = static_cast<float>(x[i].value[k]), mean = below.mean[channel];
          result.value[k] = static_cast<T>(lane_sum<Tile>(sums, part * 2 + i / 2, i % 2, q, k));
          float value = static_cast<float>(result.value[k]);
          if (work.below.norm.relu)
            value = relu_backward(normalise(input, mean, below.scale[channel], below.beta[channel]),
                                  value);
          result.value[k] = static_cast<T>(value);  // as it was, or 0: no rounding
          channels[q * vector + k].first += value;
          channels[q * vector + k].second += value * (input - mean);
        }
        store_whole(result, work.out.y + offset + line * outputs + column);
      }
    }
    const auto add = [](const SumPair& a, const SumPair& b) {
      return SumPair{a.first + b.first, a.second + b.second};
    };
    exchange<count / 2>(channels, eighth & 4, 16, add);
    exchange<count / 4>(channels, eighth & 2, 8, add);
    exchange<count / 8>(channels, eighth & 1, 4, add);
    keep_part<Tile>(place, channels, parts + (place.warp_row / kPartRows + part) * Tile::across);
  }
}

template <typename T, typename Tile, bool with_below>
__global__ void __launch_bounds__(kConvThreads, Tile::blocks)
    conv1x1_bn_grad_kernel(GradWork<T> work) {
  static_assert(Tile::down == kTileRows && Tile::products_down % 2 == 0, "parts of 32 rows");
  FASTHG_SHARED(memory);
  const int depth = work.in.first.depth;
  const int output = static_cast<int>(blockIdx.x) % work.in.columns * Tile::across;
  const GradShared<Tile, with_below> shared(memory + Tile::bytes(depth), depth);
  shared.of_z.load(work.of_z, work.in.rows, 0, work.in.first.in, depth);
  // Read after the barriers of the first step.
  if constexpr (with_below)
    shared.below.load(work.below.norm, output, work.in.outputs, Tile::across);
  __syncthreads();  // every thread takes channels of z that others loaded
  walk_tiles<Tile>(
      work.in, memory,
      [&](const StepInputs<T>& part, T* stage) {
        change_step<Tile>(part, stage, [&](int first) {
          const VectorNormGradient norm(shared.of_z, first);
          return [norm, &work](const Vector<T, kChunk>* grad) {
            const auto* z = reinterpret_cast<const Vector<T, kChunk>*>(
                reinterpret_cast<const T*>(grad) + Tile::map);
            return norm.gradient(load_whole(grad), load_whole(z), work.of_z.norm.relu);
          };
        });
      },
      [&](int64_t row, ConvSums<Tile>& sums) {
        if constexpr (with_below) {
          write_masked<Tile>(work, row, output, shared.below, sums, shared.parts);
          __syncthreads();  // a channel's parts come from several warps
          const int own = static_cast<int>(threadIdx.x);
          if (own >= Tile::across || output + own >= work.in.outputs) return;
          SumPair all = shared.parts[own];
#pragma unroll
          for (int part = 1; part < kParts; ++part) {
            all.first += shared.parts[part * Tile::across + own].first;
            all.second += shared.parts[part * Tile::across + own].second;
          }
          float* to = work.below.sums + row / kTileRows * 2 * work.in.outputs + output + own;
          to[0] = all.first;
          to[work.in.outputs] = all.second;
        } else {
          // With 8 vectors of the addend ahead, 256 outputs would need more registers than there
          // are.
          write_results<Tile, 4>(work.in, work.out, row, output, nullptr, sums);
        }
      });
}

// Both sums of each channel from those of all tiles.
__global__ void __launch_bounds__(kMergedChannels* kLines)
    conv1x1_bn_grad_sums_kernel(const float* sums, int64_t rows, int outputs, BatchNorm norm,
                                float* grad_beta, float* grad_gamma) {
  FASTHG_SHARED(memory);
  int channel;
  RowSums total;
  const auto of_tile = [&](int64_t tile, int channel) {
    const float* from = sums + tile * 2 * outputs + channel;
    return RowSums{from[0], from[outputs]};
  };
  if (!add_tiles(rows, outputs, of_tile, reinterpret_cast<RowSums*>(memory), channel, total))
    return;
  const float inv_std = inv_std_of_var(static_cast<const float*>(norm.var)[channel], norm.eps);
  grad_beta[channel] = static_cast<float>(total.first);
  grad_gamma[channel] = static_cast<float>(total.second * inv_std);
}

template <typename T, typename Tile, bool with_below>
const char* run(GradWork<T> work, const ConvDevice& device, void* stream) {
  const int depth = work.in.first.depth;
  const size_t bytes = Tile::bytes(depth) + GradShared<Tile, with_below>::bytes(depth);
  auto* kernel = conv1x1_bn_grad_kernel<T, Tile, with_below>;
  if (const char* refusal = allow_shared(kernel, bytes)) return refusal;
  const int blocks = share_tiles<Tile>(work.in, device, kernel, bytes);
  FASTHG_LAUNCH((conv1x1_bn_grad_kernel<T, Tile, with_below>), dim3(blocks), dim3(kConvThreads),
                bytes, stream, work);
  return launch_status();
}

template <bool with_below, typename T>
const char* launch(const GradWork<T>& work, void* stream) {
  const ConvDevice device;
  const auto fits = [&](auto tile) {
    using Tile = decltype(tile);
    const int depth = work.in.first.depth;
    return device.fits<Tile>(work.in, GradShared<Tile, with_below>::bytes(depth));
  };
  return run_largest_tile<2, void>(work.in, device, fits, [&](auto tile) {
    return run<T, decltype(tile), with_below>(work, device, stream);
  });
}

}  // namespace
}  // namespace fasthg

const char* fasthg_conv1x1_bn_grad_cuda(int dtype, const fasthg::Conv1x1* conv,
                                        const fasthg::BatchNorm* norm, const void* z,
                                        const void* grad_beta, const void* grad_gamma,
                                        const fasthg::BatchNorm* below, const void* x,
                                        void* workspace, void* below_grad_beta,
                                        void* below_grad_gamma, int device, void* stream) {
  using namespace fasthg;
  const DeviceGuard guard(device);
  return dispatch(dtype, [&](auto zero) -> const char* {
    using T = decltype(zero);
    if constexpr (sizeof(T) == 2) {
      GradWork<T> work{conv_inputs<T>(*conv), conv_results<T>(*conv)};
      work.in.first.beside = static_cast<const T*>(z);
      work.of_z = {*norm, work.in.first.beside, static_cast<const float*>(grad_beta),
                   static_cast<const float*>(grad_gamma)};
      work.below = {*below, static_cast<const T*>(x), static_cast<float*>(workspace)};
      const bool vectors = work.in.first.vectors && conv->outputs % kChunk == 0 && aligned16(z) &&
                           aligned16(x) && aligned16(conv->residual) && aligned16(conv->y);
      if (!vectors || conv->in2 || conv->bias || conv->relu || (x && conv->residual))
        return "conv1x1_bn_grad: takes rows of whole vectors, an addend or a norm below, and "
               "neither a second pair, bias nor ReLU";
      if (!x) return launch<false>(work, stream);
      if (const char* refusal = launch<true>(work, stream)) return refusal;
      const dim3 blocks(divide_up(conv->outputs, kMergedChannels));
      FASTHG_LAUNCH(conv1x1_bn_grad_sums_kernel, blocks, dim3(kMergedChannels * kLines),
                    kMergedChannels * kLines * sizeof(RowSums), stream, work.below.sums, conv->rows,
                    work.in.outputs, *below, static_cast<float*>(below_grad_beta),
                    static_cast<float*>(below_grad_gamma));
      return launch_status();
    }
    return "conv1x1_bn_grad on CUDA takes float16 and bfloat16";
  });
}
