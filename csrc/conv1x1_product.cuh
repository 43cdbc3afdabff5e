// The matrix product of 1x1 convolutions by persistent blocks, for all kernels that contain one.
//
//   sums = x W^T + x2 W2^T,  x: (rows, in), W: (outputs, in), half types; sums in float32 registers
//
// A block of 8 warps owns a tile of outputs. It copies their weights to shared memory once, then
// walks over tiles of rows, a stride of the grid apart. x, and a map of its shape beside it that a
// kernel may want, come in steps of 64 inputs through four stages in shared memory (three for two
// maps), which cp.async fills in turn. Steps go on over the border between two
// tiles of rows: while a block computes a tile and does with its sums what the kernel wants, the
// first inputs of the next tile are on their way. Where the weights of all inputs do not fit
// (`resident` false), those of a step are loaded before its products, in each tile of rows anew.
//
// The sum over inputs runs in products of 16, those of the first pair first, and is never split
// between blocks. So its order is the same in all tiles and grids, and results repeat.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "conv1x1_tile.cuh"
#include "mma.cuh"

namespace fasthg {

// Inputs [k, k + width) of a pair, which a stage holds; `column`: of their weights.
template <typename T>
struct StepInputs {
  Operands<T> pair;
  int k, width, column;

  __device__ StepInputs(const ConvInputs<T>& in, int step)
      : pair(step < in.steps_of_first ? in.first : in.second) {
    const bool second = step >= in.steps_of_first;
    k = (second ? step - in.steps_of_first : step) * kStep;
    width = min(kStep, pair.depth - k);
    column = (second ? in.first.depth : 0) + k;
  }
};

// How many values an address lies behind a multiple of 16 bytes.
template <typename T>
__device__ int values_off(const T* address) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(address) / sizeof(T) % kChunk);
}

// Starts to copy a step of the rows from `row` on. Rows in vectors have zeros beyond the edges. Of
// others those vectors come which hold a part of the row, so that it starts up to 7 values late in
// its line; at either end they reach beyond it, but never beyond the vectors where x begins and
// ends.
template <typename Tile, typename T>
__device__ void copy_step(const ConvInputs<T>& in, int64_t row, int step, T* stage) {
  const StepInputs<T> part(in, step);
  const Operands<T>& pair = part.pair;
  if (pair.vectors) {
    constexpr int across = kStep / kChunk;
    const int column = threadIdx.x % across * kChunk;
    if (column >= part.width) return;
#pragma unroll
    for (int first = 0; first < Tile::down; first += kConvThreads / across) {
      const int line = first + threadIdx.x / across;
      const bool valid = row + line < in.rows && part.k + column < pair.in;
      const T* from = pair.x + (row + line) * pair.in + part.k + column;
      T* to = stage + line * kPitch + column;
      copy_async(to, valid ? from : pair.x, valid ? 16 : 0);
      if constexpr (Tile::maps == 2)
        copy_async(to + Tile::map, valid ? pair.beside + (from - pair.x) : pair.x, valid ? 16 : 0);
    }
  } else {
    constexpr int across = kPitch / kChunk;
    const T* end = pair.x + in.rows * pair.in;
    const int count = min(part.width, pair.in - part.k);
    for (int i = threadIdx.x; i < Tile::down * across; i += kConvThreads) {
      const int line = i / across, column = i % across * kChunk;
      if (row + line >= in.rows) return;
      const T* begin = pair.x + (row + line) * pair.in + part.k;
      if (column >= values_off(begin) + count) continue;
      const T* from = begin - values_off(begin) + column;
      const int64_t left = end - from;
      copy_async(stage + line * kPitch + column, from,
                 left < kChunk ? static_cast<int>(left * sizeof(T)) : 16);
    }
  }
}

// Adds a product of 16 inputs to a warp's sums. load_rows(i, a): the fragment of x in row i.
template <typename Tile, typename T, typename LoadRows>
__device__ void add_product(const LoadRows& load_rows, const T* weight, int pitch,
                            ConvSums<Tile>& sums) {
  uint32_t a[Tile::products_down][4];
#pragma unroll
  for (int i = 0; i < Tile::products_down; ++i) load_rows(i, a[i]);
#pragma unroll
  for (int j = 0; j < Tile::products_across; j += 2) {
    uint32_t b[4];
    load_matrices<false>(weight + j * 8 * pitch, b);
    const uint32_t left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
#pragma unroll
    for (int i = 0; i < Tile::products_down; ++i) {
      mma_16x8x16<T>(a[i], left, sums[i][j]);
      mma_16x8x16<T>(a[i], right, sums[i][j + 1]);
    }
  }
}

// Adds a step's products. weights: those of the step's first input.
template <typename Tile, typename T>
__device__ void add_step(const ConvInputs<T>& in, const StepInputs<T>& part, int64_t row,
                         const T* stage, const T* weights, int pitch, ConvSums<Tile>& sums) {
  const LanePlace<Tile> place;
  const int lane = threadIdx.x % kWarp;
  // The rows that this lane gives to ldmatrix.
  const T* x = stage + (place.warp_row + lane % 16) * kPitch + lane / 16 * 8;
  const T* weight =
      weights + (place.warp_output + lane / 16 * 8 + lane % 8) * pitch + lane / 8 % 2 * 8;
  if (part.pair.vectors) {
    const auto product = [&](int k) {
      add_product<Tile>(
          [&](int i, uint32_t (&a)[4]) { load_matrices<false>(x + i * 16 * kPitch + k, a); },
          weight + k, pitch, sums);
    };
#pragma unroll 2
    for (int k = 0; k < part.width; k += kDepth) product(k);
  } else {
    // Rows start anywhere in their lines, and end with values of others: pairs are put together one
    // by one. Of eight rows from a lane's to its next, the lengths add up to whole vectors.
    const int off = values_off(part.pair.x + (row + place.row) * part.pair.in + part.k);
    const T* begin = stage + place.row * kPitch + off;
    const int count = part.pair.in - part.k;
#pragma unroll 1
    for (int k = 0; k < part.width; k += kDepth) {
      add_product<Tile>(
          [&](int i, uint32_t (&a)[4]) {
#pragma unroll
            for (int piece = 0; piece < 4; ++piece) {
              const int line = i * 16 + piece % 2 * 8, from = k + lane % 4 * 2 + piece / 2 * 8;
              const T* at = begin + line * kPitch + from;
              Vector<T, 2> pair;
              pair.value[0] = from < count ? at[0] : static_cast<T>(0.0f);
              pair.value[1] = from + 1 < count ? at[1] : static_cast<T>(0.0f);
              std::memcpy(&a[piece], &pair, sizeof pair);
            }
          },
          weight + k, pitch, sums);
    }
  }
}

// Runs a block: calls finish(row, sums) for each of its tiles, with the sums of this thread. The
// block is at no barrier then, and stages are being filled. Before that, prepare(part, stage) for
// each step: a thread may change there what it copied itself. memory: Tile::bytes(...) of it.
template <typename Tile, typename T, typename Prepare, typename Finish>
__device__ void walk_tiles(const ConvInputs<T>& in, unsigned char* memory, const Prepare& prepare,
                           const Finish& finish) {
  const int pitch = Tile::weight_pitch(in.first.depth + in.second.depth);
  T* weights = reinterpret_cast<T*>(memory);
  T* stages = weights + Tile::across * pitch;
  const int output = static_cast<int>(blockIdx.x) % in.columns * Tile::across;
  const int64_t start = static_cast<int64_t>(blockIdx.x) / in.columns * Tile::down;
  // What is copied next. Beyond the last tile there is nothing, but a group is committed all the
  // same, because wait_for_copies counts groups.
  int64_t row_ahead = start;
  int step_ahead = 0;
  const auto copy_ahead = [&](int stage) {
    if (row_ahead < in.rows)
      copy_step<Tile>(in, row_ahead, step_ahead, stages + stage * Tile::stage);
    commit_copies();
    if (++step_ahead == in.steps) {
      step_ahead = 0;
      row_ahead += in.stride;
    }
  };
#pragma unroll 1
  for (int stage = 0; stage < Tile::stages - 1; ++stage) copy_ahead(stage);
  if (Tile::resident) {
    load_weights<Tile>(in.first, in.outputs, output, 0, in.first.depth, weights, pitch);
    if (in.second.in)
      load_weights<Tile>(in.second, in.outputs, output, 0, in.second.depth,
                         weights + in.first.depth, pitch);
  }
  int stage = 0;
  for (int64_t row = start; row < in.rows; row += in.stride) {
    ConvSums<Tile> sums = {};
    for (int step = 0; step < in.steps; ++step) {
      const StepInputs<T> part(in, step);
      wait_for_copies<Tile::stages - 2>();  // what this thread copied for the step has arrived
      prepare(part, stages + stage * Tile::stage);
      __syncthreads();  // everyone's copies have, and nobody reads the stage that is filled next
      copy_ahead((stage + Tile::stages - 1) % Tile::stages);
      if (!Tile::resident) {
        load_weights<Tile>(part.pair, in.outputs, output, part.k, part.width, weights, pitch);
        __syncthreads();  // every thread's weights of the step must lie there
      }
      add_step<Tile>(in, part, row, stages + stage * Tile::stage,
                     weights + (Tile::resident ? part.column : 0), pitch, sums);
      stage = (stage + 1) % Tile::stages;
    }
    finish(row, sums);
  }
}

// What a call of `Conv1x1` multiplies; share_tiles sets the rest.
template <typename T>
ConvInputs<T> conv_inputs(const Conv1x1& conv) {
  const auto pair = [&](const void* x, const void* weight, int64_t in, int64_t pitch,
                        bool transposed, bool wide) {
    const int64_t neighbours = transposed ? conv.outputs : in;
    Operands<T> result{};
    result.x = static_cast<const T*>(x);
    result.weight = weight;
    result.pitch = pitch;
    result.in = static_cast<int>(in);
    result.depth = static_cast<int>(divide_up(in, kDepth)) * kDepth;
    result.transposed = transposed;
    result.wide = wide;
    result.vectors = in % kChunk == 0 && aligned16(x);
    result.weight_vectors = neighbours % kChunk == 0 && pitch % kChunk == 0 && aligned16(weight);
    return result;
  };
  ConvInputs<T> in{};
  in.first = pair(conv.x, conv.weight, conv.in, conv.pitch, conv.transposed, conv.wide);
  in.second = pair(conv.x2, conv.weight2, conv.in2, conv.pitch2, conv.transposed2, conv.wide2);
  in.rows = conv.rows;
  in.outputs = static_cast<int>(conv.outputs);
  in.steps_of_first = static_cast<int>(divide_up(conv.in, kStep));
  in.steps = in.steps_of_first + static_cast<int>(divide_up(conv.in2, kStep));
  return in;
}

template <typename T>
ConvResults<T> conv_results(const Conv1x1& conv) {
  return {static_cast<const float*>(conv.bias), static_cast<const T*>(conv.residual),
          static_cast<T*>(conv.y), conv.relu};
}

// What of a device decides how a persistent kernel is launched.
struct ConvDevice {
  int multiprocessors = device_attribute(cudaDevAttrMultiProcessorCount);
  size_t shared = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);

  // Whether a block with so much more shared memory fits.
  template <typename Tile, typename T>
  bool fits(const ConvInputs<T>& in, size_t more) const {
    return Tile::bytes(in.first.depth + in.second.depth) + more <= shared;
  }
  // Whether there are tiles for most multiprocessors.
  template <typename Tile, typename T>
  bool filled_by(const ConvInputs<T>& in) const {
    const int64_t tiles = divide_up(in.rows, Tile::down) * divide_up(in.outputs, Tile::across);
    return tiles * 4 >= int64_t{multiprocessors} * 3;
  }
};

// Sets how the blocks share the tiles and returns their number: what runs at the same time, or
// fewer. bytes: of shared memory, which the kernel may use.
template <typename Tile, typename T, typename Kernel>
int share_tiles(ConvInputs<T>& in, const ConvDevice& device, Kernel* kernel, size_t bytes) {
  int blocks = 0;
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kConvThreads, bytes);
  in.columns = static_cast<int>(divide_up(in.outputs, Tile::across));
  const int64_t down = divide_up(in.rows, Tile::down);
  const int64_t room = std::max(1, blocks * device.multiprocessors / in.columns);
  const int64_t walkers = std::min(down, room);
  in.stride = walkers * Tile::down;
  return static_cast<int>(walkers) * in.columns;
}

// Returns run(Tile{}) for the largest tile of 128 rows for which fits(Tile{}) and which fills the
// device: it reads the least. Few outputs or rows take smaller ones; Smaller has fewer rows, or is
// void: then no other tile keeps more multiprocessors at work.
template <int maps, typename Smaller, typename T, typename Fits, typename Run>
const char* run_largest_tile(const ConvInputs<T>& in, const ConvDevice& device, const Fits& fits,
                             const Run& run) {
  using Wide = Tile<128, 256, 2, 1, true, maps>;
  using Large = Tile<128, 128, 4, 1, true, maps>;
  using Narrow = Tile<128, 64, 4, maps == 1 ? 2 : 1, true, maps>;
  using InSteps = Tile<128, 64, 4, 1, false, maps>;
  const auto suits = [&](auto tile) { return fits(tile) && device.filled_by<decltype(tile)>(in); };
  if (in.outputs > Large::across && suits(Wide{})) return run(Wide{});
  if (in.outputs > Narrow::across && suits(Large{})) return run(Large{});
  if constexpr (std::is_void_v<Smaller>) {
    if (fits(Narrow{})) return run(Narrow{});
  } else {
    if (suits(Narrow{})) return run(Narrow{});
    if (fits(Smaller{})) return run(Smaller{});
  }
  return run(InSteps{});
}

}  // namespace fasthg
