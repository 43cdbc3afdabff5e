// 1x1 convolutions with bias, residual and ReLU: one matrix product on tensor cores.
//
//   y = relu?(x W^T + x2 W2^T + bias + residual),  x: (rows, in), W: (outputs, in), half types
//
// Fused: two pairs of operands are one longer sum over in + in2 inputs, kept in float32 in
// registers; bias, residual, ReLU and the rounding to y's type follow before anything is written.
// With separate operators each of them would read and write y once more, and the sum of two
// convolutions would be rounded in between. Weights may be float32 or transposed: they are rounded
// and turned on their way to shared memory, so that no operator makes a copy of them before.
//
// Memory traffic: in + in2 + 2 outputs values a row (x, x2 and residual read, y written), which is
// the floor. Blocks are persistent (conv1x1_product.cuh): each reads the weights of its outputs
// once, 128 KiB for 256 x 256, which the L2 cache gives to all. A tile has up to 256 outputs, so
// that x is read once; where the weights of 256 do not fit beside the stages (more than 288 inputs
// on an H200, 160 on an A100), it has 128, and x is read again from L2 by the next block.
//
// Rows that are no whole vectors, as of 7 heatmaps, are read in the vectors that they lie in, and
// their results are put together in shared memory and written as one span.
//
// Trade-offs: a block of 256 outputs takes most of a multiprocessor's shared memory and all of its
// registers, so nothing else runs there; few rows take smaller tiles, which keep more
// multiprocessors at work. Weights that do not fit at all (some 1500 inputs on an H200) are loaded
// again for each tile of rows, and waited for. The sum over inputs is never split between blocks:
// that would occupy more multiprocessors where rows are few, and needs a second pass or atomics.
// mma.sync runs on all GPUs from compute capability 8.0 on; Hopper's wgmma would need a kernel of
// its own and is not used.
//
// Not yet run on a GPU.
#include "conv1x1_product.cuh"
#include "ops.h"

namespace fasthg {
namespace {

template <typename T>
struct Conv1x1Work {
  ConvInputs<T> in;
  ConvResults<T> out;
  bool vectors;  // rows of residual and y can be accessed 16 bytes at a time
};

// How many bytes of shared memory the kernel takes besides weights and stages: biases, and results
// that are written as a span.
template <typename Tile>
size_t bytes_of_results(bool vectors) {
  return Tile::across * sizeof(float) + (vectors ? 0 : size_t{2} * Tile::down * Tile::across);
}

// write_results where rows are no whole vectors: the block puts its results together in shared
// memory. Those of whole rows are one span of y, written in vectors.
template <typename Tile, typename T>
__device__ void write_span(const Conv1x1Work<T>& work, int64_t first_row, int first_output,
                           const float* bias, const ConvSums<Tile>& sums, T* results) {
  const LanePlace<Tile> place;
  const int64_t rows_left = work.in.rows - first_row;
  const int lines = rows_left < Tile::down ? static_cast<int>(rows_left) : Tile::down;
  const int width = min(work.in.outputs - first_output, Tile::across);
  const int64_t offset = first_row * work.in.outputs + first_output;
#pragma unroll
  for (int line = 0; line < Tile::products_down * 16; line += 8)
#pragma unroll
    for (int q = 0; q < Tile::groups; ++q)
#pragma unroll
      for (int k = 0; k < Tile::vector; ++k) {
        const int row = place.row + line, column = place.output + q * Tile::group + k;
        if (row >= lines || column >= width) continue;
        float value = lane_sum<Tile>(sums, line / 16, line / 8 % 2, q, k) + bias[column];
        const int64_t at = offset + static_cast<int64_t>(row) * work.in.outputs + column;
        if (work.out.residual) value += static_cast<float>(work.out.residual[at]);
        if (work.out.relu && value < 0) value = 0;
        results[row * width + column] = static_cast<T>(value);
      }
  __syncthreads();  // a vector of the span has the results of several warps
  const int count = lines * width;
  const bool span = width == work.in.outputs && values_off(work.out.y + offset) == 0;
  const int in_vectors = span ? count / kChunk * kChunk : 0;
  using Values = Vector<T, kChunk>;
  for (int i = threadIdx.x * kChunk; i < in_vectors; i += kConvThreads * kChunk)
    store_whole(load_whole(reinterpret_cast<const Values*>(results + i)), work.out.y + offset + i);
  for (int i = in_vectors + threadIdx.x; i < count; i += kConvThreads)
    work.out.y[offset + static_cast<int64_t>(i / width) * work.in.outputs + i % width] = results[i];
}

template <typename T, typename Tile>
__global__ void __launch_bounds__(kConvThreads, Tile::blocks)
    conv1x1_act_kernel(Conv1x1Work<T> work) {
  FASTHG_SHARED(shared);
  const int output = static_cast<int>(blockIdx.x) % work.in.columns * Tile::across;
  float* bias =
      reinterpret_cast<float*>(shared + Tile::bytes(work.in.first.depth + work.in.second.depth));
  T* results = reinterpret_cast<T*>(bias + Tile::across);
  // Read after the barriers of the first step.
  for (int i = threadIdx.x; i < Tile::across; i += kConvThreads)
    bias[i] = work.out.bias && output + i < work.in.outputs ? work.out.bias[output + i] : 0;
  walk_tiles<Tile>(
      work.in, shared, [](const StepInputs<T>&, T*) {},
      [&](int64_t row, ConvSums<Tile>& sums) {
        if (Tile::whole_vectors || work.vectors)
          write_results<Tile, Tile::blocks == 1 ? 8 : 4>(work.in, work.out, row, output, bias,
                                                         sums);
        else
          write_span<Tile>(work, row, output, bias, sums, results);
      });
}

template <typename T, typename Tile>
const char* run(Conv1x1Work<T> work, const ConvDevice& device, void* stream) {
  const size_t bytes = Tile::bytes(work.in.first.depth + work.in.second.depth) +
                       bytes_of_results<Tile>(work.vectors);
  if (const char* refusal = allow_shared(conv1x1_act_kernel<T, Tile>, bytes)) return refusal;
  const int blocks = share_tiles<Tile>(work.in, device, conv1x1_act_kernel<T, Tile>, bytes);
  FASTHG_LAUNCH((conv1x1_act_kernel<T, Tile>), dim3(blocks), dim3(kConvThreads), bytes, stream,
                work);
  return launch_status();
}

template <typename T>
const char* launch(const Conv1x1& conv, void* stream) {
  const ConvInputs<T> in = conv_inputs<T>(conv);
  const bool vectors = conv.outputs % kChunk == 0 && aligned16(conv.residual) && aligned16(conv.y);
  const Conv1x1Work<T> work{in, conv_results<T>(conv), vectors};

  const ConvDevice device;
  const auto fits = [&](auto tile) {
    using Tile = decltype(tile);
    return (vectors || !Tile::whole_vectors) &&
           device.fits<Tile>(in, bytes_of_results<Tile>(vectors));
  };
  const auto run_tile = [&](auto tile) { return run<T, decltype(tile)>(work, device, stream); };
  using Few = Tile<128, 16, 8, 2>;
  if (conv.outputs <= Few::across && fits(Few{}) && device.filled_by<Few>(in))
    return run_tile(Few{});
  return run_largest_tile<1, Tile<64, 64, 4, 2>>(in, device, fits, run_tile);
}

}  // namespace
}  // namespace fasthg

const char* fasthg_conv1x1_act_cuda(int dtype, const fasthg::Conv1x1* conv, int device,
                                    void* stream) {
  using namespace fasthg;
  const DeviceGuard guard(device);
  return dispatch(dtype, [&](auto zero) -> const char* {
    using T = decltype(zero);
    if constexpr (sizeof(T) == 2) return launch<T>(*conv, stream);
    return "conv1x1_act on CUDA takes float16 and bfloat16";
  });
}
