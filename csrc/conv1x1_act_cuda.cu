// 1x1 convolutions with bias, residual and ReLU: one matrix product on tensor cores.
//
//   y = relu?(x W^T + x2 W2^T + bias + residual),  x: (rows, in), W: (outputs, in), half types
//
// Fused: two pairs of operands are one longer sum over in + in2 inputs, kept in float32 in
// registers; bias, residual, ReLU and the rounding to y's type follow before anything is written.
// With separate operators each of them would read and write y once more, and the sum of two
// convolutions would be rounded in between.
//
// Memory traffic: in + in2 + 2 outputs values a row (x, x2 and residual read, y written), which is
// the floor. Above 128 outputs x is read again by the next block, from the L2 cache: blocks that
// share rows are neighbours in the grid. Weights are read by every block, from L2.
//
// A block of 8 warps computes a tile of 128 x 128 results (128 x 64 or 64 x 64 where there would be
// fewer blocks than an H100 has multiprocessors). The sum runs in steps of 32 inputs; cp.async
// fills three stages in shared memory in turn, so copies of the next two steps run during the
// products of the current one. At the end the sums go through shared memory once, so that each row
// of y is written in vectors of 16 bytes.
//
// Trade-offs: the sum over inputs is never split between blocks. Splitting would occupy more
// multiprocessors where rows are few, and needs a second pass or atomics; as it is, the order of
// the sum is the same for all tile shapes, and results repeat. mma.sync runs on all GPUs from
// compute capability 8.0 on; Hopper's wgmma would need a kernel of its own and is not used.
#include "cuda_utils.cuh"
#include "mma.cuh"
#include "ops.h"

namespace fasthg {
namespace {

constexpr int kThreads = 256;
constexpr int kWarpsDown = 2, kWarpsAcross = 4;
constexpr int kStep = 32;  // inputs that one stage holds
constexpr int kChunk = 8;  // halves in 16 bytes
// Distance of two rows of a tile, in halves: the eight rows that one ldmatrix reads then start in
// different banks.
constexpr int kPitch = kStep + kChunk;
constexpr int kStages = 3;
constexpr int64_t kMinimumBlocks = 132;  // an H100's multiprocessors: fewer blocks leave some idle

// One pair of operands; `chunks`: rows can be read 16 bytes at a time.
template <typename T>
struct Operands {
  const T *x, *weight;
  int64_t in;
  bool chunks;
};

template <typename T>
struct Conv1x1Work {
  Operands<T> first, second;
  int64_t steps_of_first, steps;
  const float* bias;
  const T* residual;
  T* y;
  int64_t rows;
  int outputs;
  bool relu, chunks;  // chunks: rows of residual and y can be accessed 16 bytes at a time
};

// The rectangle of results that a block computes.
template <int down_, int across_>
struct Tile {
  static constexpr int down = down_, across = across_;
  static constexpr int stage = (down + across) * kPitch;  // halves
  // Distance of two rows of sums: the pairs that half a warp writes then lie in different banks.
  static constexpr int pitch = across + 8;
  static constexpr size_t stages_bytes = size_t{kStages} * stage * 2;
  static constexpr size_t sums_bytes = size_t{down} * pitch * sizeof(float);
  static constexpr size_t bytes = stages_bytes > sums_bytes ? stages_bytes : sums_bytes;
};

// Starts to copy `count` rows of a (rows, in) matrix, inputs k to k + kStep; zeros beyond edges.
template <int count, typename T>
__device__ void load_tile(const T* matrix, int64_t row, int64_t rows, int64_t k, int64_t in,
                          bool chunks, T* tile) {
  constexpr int across = kStep / kChunk;
  const int64_t input = k + threadIdx.x % across * kChunk;
#pragma unroll
  for (int line = 0; line < count; line += kThreads / across) {
    const int here = line + threadIdx.x / across;
    T* to = tile + here * kPitch + threadIdx.x % across * kChunk;
    const T* from = matrix + (row + here) * in + input;
    const bool inside = row + here < rows;
    if (chunks) {
      const bool valid = inside && input < in;
      copy_async(to, valid ? from : matrix, valid);
    } else {
#pragma unroll 1
      for (int i = 0; i < kChunk; ++i)
        to[i] = inside && input + i < in ? from[i] : static_cast<T>(0.0f);
    }
  }
}

// Starts the copies of a step. Beyond the last step it commits an empty group, because
// wait_for_copies counts groups.
template <typename Tile, typename T>
__device__ void load_stage(const Conv1x1Work<T>& work, int64_t step, int64_t row, int output,
                           T* tiles) {
  if (step < work.steps) {
    const bool second = step >= work.steps_of_first;
    const Operands<T> pair = second ? work.second : work.first;
    const int64_t k = (second ? step - work.steps_of_first : step) * kStep;
    T* x = tiles + step % kStages * Tile::stage;
    load_tile<Tile::down>(pair.x, row, work.rows, k, pair.in, pair.chunks, x);
    load_tile<Tile::across>(pair.weight, output, work.outputs, k, pair.in, pair.chunks,
                            x + Tile::down * kPitch);
  }
  commit_copies();
}

// Adds bias and residual to the sums of the block, applies the ReLU, and writes the result,
// `vector` neighbouring outputs a thread.
template <typename Tile, int vector, typename T>
__device__ void finish(const Conv1x1Work<T>& work, int64_t row, int output, const float* sums) {
  constexpr int across = Tile::across / vector;
  constexpr int part = vector < 4 ? vector : 4;  // 16 bytes of floats
  using Values = Vector<T, vector>;
  using SumVector = Vector<float, part>;
  const int column = threadIdx.x % across * vector;
  if (output + column >= work.outputs) return;
  float bias[vector];
#pragma unroll
  for (int i = 0; i < vector; ++i) bias[i] = work.bias ? work.bias[output + column + i] : 0;
  // The residuals of a few rows are loaded before the first result is stored. The compiler cannot
  // reorder them itself: y might alias the residual.
  constexpr int lines = kThreads / across;
  constexpr int ahead = Tile::down / lines < 4 ? Tile::down / lines : 4;
  for (int first = threadIdx.x / across; first < Tile::down; first += ahead * lines) {
    Values added[ahead];
#pragma unroll
    for (int a = 0; a < ahead; ++a) {
      const int64_t here = row + first + a * lines;
      if (work.residual && here < work.rows)
        added[a] =
            *reinterpret_cast<const Values*>(work.residual + here * work.outputs + output + column);
    }
#pragma unroll
    for (int a = 0; a < ahead; ++a) {
      const int line = first + a * lines;
      if (row + line >= work.rows) return;
      Values result;
#pragma unroll
      for (int i = 0; i < vector; i += part) {
        const SumVector sum =
            *reinterpret_cast<const SumVector*>(sums + line * Tile::pitch + column + i);
#pragma unroll
        for (int j = 0; j < part; ++j) {
          float value = sum.value[j] + bias[i + j];
          if (work.residual) value += static_cast<float>(added[a].value[i + j]);
          if (work.relu && value < 0) value = 0;  // NaN passes, as in torch
          result.value[i + j] = static_cast<T>(value);
        }
      }
      T* to = work.y + (row + line) * work.outputs + output + column;
      *reinterpret_cast<Values*>(to) = result;
    }
  }
}

template <typename T, typename Tile>
__global__ void __launch_bounds__(kThreads, 2) conv1x1_act_kernel(Conv1x1Work<T> work) {
  constexpr int kDown = Tile::down / kWarpsDown / 16, kAcross = Tile::across / kWarpsAcross / 16;
  FASTHG_SHARED(shared);
  T* tiles = reinterpret_cast<T*>(shared);
  const int blocks_across = (work.outputs + Tile::across - 1) / Tile::across;
  // Neighbouring blocks share rows of x, which the second then finds in the second-level cache.
  const int64_t row = static_cast<int64_t>(blockIdx.x / blocks_across) * Tile::down;
  const int output = static_cast<int>(blockIdx.x % blocks_across) * Tile::across;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int warp_row = warp / kWarpsAcross * kDown * 16;
  const int warp_output = warp % kWarpsAcross * kAcross * 16;
  // Where the rows that this lane gives to ldmatrix start, in halves from the start of a tile.
  const int in_x = (warp_row + lane % 16) * kPitch + lane / 16 * 8;
  const int in_weight = (warp_output + lane / 16 * 8 + lane % 8) * kPitch + lane / 8 % 2 * 8;

  float sums[kDown][kAcross][2][4] = {};
#pragma unroll
  for (int step = 0; step < kStages - 1; ++step) load_stage<Tile>(work, step, row, output, tiles);
  for (int64_t step = 0; step < work.steps; ++step) {
    wait_for_copies<kStages - 2>();  // what this thread copied for the step has arrived
    __syncthreads();  // everyone's copies have, and nobody reads the stage that is filled next
    load_stage<Tile>(work, step + kStages - 1, row, output, tiles);
    const T* x = tiles + step % kStages * Tile::stage;
    const T* weight = x + Tile::down * kPitch;
#pragma unroll
    for (int k = 0; k < kStep; k += 16) {
      uint32_t a[kDown][4];
#pragma unroll
      for (int i = 0; i < kDown; ++i) load_matrices<false>(x + in_x + i * 16 * kPitch + k, a[i]);
#pragma unroll
      for (int j = 0; j < kAcross; ++j) {
        uint32_t b[4];
        load_matrices<false>(weight + in_weight + j * 16 * kPitch + k, b);
        const uint32_t left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
#pragma unroll
        for (int i = 0; i < kDown; ++i) {
          mma_16x8x16<T>(a[i], left, sums[i][j][0]);
          mma_16x8x16<T>(a[i], right, sums[i][j][1]);
        }
      }
    }
  }

  __syncthreads();  // nobody reads tiles any more: the sums take their place
  float* all = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int i = 0; i < kDown; ++i)
#pragma unroll
    for (int j = 0; j < kAcross * 2; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int line = warp_row + i * 16 + half * 8 + lane / 4;
        const int column = warp_output + j * 8 + lane % 4 * 2;
        const float* pair = sums[i][j / 2][j % 2] + half * 2;
        float* to = all + line * Tile::pitch + column;
        *reinterpret_cast<Vector<float, 2>*>(to) = {pair[0], pair[1]};
      }
  __syncthreads();  // a row of the result takes the sums of several warps
  if (work.chunks)
    finish<Tile, kChunk>(work, row, output, all);
  else
    finish<Tile, 1>(work, row, output, all);
}

int64_t divide_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

template <typename Tile>
int64_t count_blocks(const Conv1x1& conv) {
  return divide_up(conv.rows, Tile::down) * divide_up(conv.outputs, Tile::across);
}

template <typename T, typename Tile>
const char* run(const Conv1x1Work<T>& work, int64_t blocks, void* stream) {
  if (blocks > INT32_MAX) return "conv1x1_act: more than 2^31 blocks: use smaller batches";
  if (const char* refusal = allow_shared(conv1x1_act_kernel<T, Tile>, Tile::bytes)) return refusal;
  FASTHG_LAUNCH((conv1x1_act_kernel<T, Tile>), dim3(blocks), dim3(kThreads), Tile::bytes, stream,
                work);
  return launch_status();
}

template <typename T>
const char* launch(const Conv1x1& conv, void* stream) {
  const auto pair = [](const void* x, const void* weight, int64_t in) {
    return Operands<T>{static_cast<const T*>(x), static_cast<const T*>(weight), in,
                       in % kChunk == 0 && aligned16(x) && aligned16(weight)};
  };
  const int64_t steps = divide_up(conv.in, kStep);
  const Conv1x1Work<T> work{
      pair(conv.x, conv.weight, conv.in),
      pair(conv.x2, conv.weight2, conv.in2),
      steps,
      steps + divide_up(conv.in2, kStep),
      static_cast<const float*>(conv.bias),
      static_cast<const T*>(conv.residual),
      static_cast<T*>(conv.y),
      conv.rows,
      static_cast<int>(conv.outputs),
      conv.relu,
      conv.outputs % kChunk == 0 && aligned16(conv.residual) && aligned16(conv.y)};
  // The largest tile reads the least; few rows or outputs take smaller ones.
  using Large = Tile<128, 128>;
  using Narrow = Tile<128, 64>;
  using Small = Tile<64, 64>;
  if (conv.outputs > Narrow::across && count_blocks<Large>(conv) >= kMinimumBlocks)
    return run<T, Large>(work, count_blocks<Large>(conv), stream);
  if (count_blocks<Narrow>(conv) >= kMinimumBlocks)
    return run<T, Narrow>(work, count_blocks<Narrow>(conv), stream);
  return run<T, Small>(work, count_blocks<Small>(conv), stream);
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
