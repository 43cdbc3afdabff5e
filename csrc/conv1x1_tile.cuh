// A block's tile of 1x1 convolutions: who computes what of it, and its weights in shared memory.
// conv1x1_product.cuh says how blocks walk over tiles.
//
// Outputs are permuted in shared memory. Of a product of 16 x 8, a lane gets two neighbouring
// columns of a row. The rows of W lie such that the columns of four products that a lane gets are
// eight neighbouring outputs: it reads and writes maps in vectors of 16 bytes, without an exchange.
#pragma once

#include "cuda_utils.cuh"

namespace fasthg {

constexpr int kConvThreads = 256;
constexpr int kDepth = 16;  // inputs of a product of tensor cores
constexpr int kStep = 64;   // inputs that a stage holds
constexpr int kChunk = 8;   // half values in 16 bytes
// Distance of two rows in a stage. Like that of two rows of weights it is an odd multiple of 16
// bytes: the eight rows that an ldmatrix reads then lie in different banks.
constexpr int kPitch = kStep + kChunk;

// One pair of operands.
template <typename T>
struct Operands {
  const T* x;          // (rows, in)
  const T* beside;     // (rows, in), where a tile has two maps
  const void* weight;  // (outputs, in); rows or, transposed, columns are `pitch` values apart
  int64_t pitch;
  int in;
  int depth;  // in, rounded up to whole products
  bool transposed;
  bool wide;            // weights are float32, and rounded to T when they are loaded
  bool vectors;         // rows of x are whole vectors of 16 bytes
  bool weight_vectors;  // and so are the rows, or columns, of the weights
};

// What a kernel multiplies, and how its blocks share the work.
template <typename T>
struct ConvInputs {
  Operands<T> first, second;
  int64_t rows;
  int outputs;
  int steps_of_first, steps;
  int columns;     // tiles next to each other; blocks that share rows are neighbours in the grid
  int64_t stride;  // rows from a tile of a block to its next
};

// What is added to the sums, and where they go.
template <typename T>
struct ConvResults {
  const float* bias;  // (outputs,) or null
  const T* residual;  // (rows, outputs) or null
  T* y;               // (rows, outputs)
  bool relu;
};

// The rectangle of results that a block computes at a time, and its warps' parts. `blocks`: of a
// multiprocessor, for which the registers suffice. `maps`: of the first pair, in a stage after each
// other: x and, if two, the map beside it.
template <int down_, int across_, int warps_down, int blocks_, bool resident_ = true, int maps_ = 1>
struct Tile {
  static constexpr int down = down_, across = across_, blocks = blocks_, maps = maps_;
  static constexpr bool resident = resident_;
  static constexpr bool whole_vectors = across > 64;  // no code for results one by one
  static constexpr int warps_across = kConvThreads / kWarp / warps_down;
  // A warp's products of 16 x 8.
  static constexpr int products_down = down / warps_down / 16;
  static constexpr int products_across = across / warps_across / 8;
  // Neighbouring outputs that a lane gets, of the products of a group.
  static constexpr int vector = products_across % 4 ? 4 : 8;
  static constexpr int group = 4 * vector;
  static constexpr int groups = products_across * 8 / group;
  static constexpr int map = down * kPitch, stage = maps * map;
  static constexpr int stages = maps == 1 ? 4 : 3;  // two of the latter hold more than three

  // The row of shared memory where an output's weights lie.
  static FASTHG_HD int position(int output) {
    const int lane = output % group / vector, i = output % vector;
    return output / group * group + i / 2 * 8 + lane * 2 + i % 2;
  }
  // The distance of two rows of weights, in values; depth: inputs of both pairs in whole products.
  static FASTHG_HD int weight_pitch(int depth) { return (resident ? depth : kStep) + kChunk; }
  // Bytes of shared memory for weights and stages.
  static FASTHG_HD size_t bytes(int depth) {
    return 2 * (size_t{across} * weight_pitch(depth) + size_t{stages} * stage);
  }
};

template <typename Tile>
using ConvSums = float[Tile::products_down][Tile::products_across][4];

// Where a lane's results lie: of the products in row i and group q, `vector` values each in the
// rows `row + 16 i` and `row + 16 i + 8` of the tile, from output `output + group q` on.
template <typename Tile>
struct LanePlace {
  int warp_row, warp_output, row, output;

  __device__ LanePlace() {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    warp_row = warp / Tile::warps_across * Tile::products_down * 16;
    warp_output = warp % Tile::warps_across * Tile::products_across * 8;
    row = warp_row + lane / 4;
    output = warp_output + lane % 4 * Tile::vector;
  }
};

// The value k of a lane's results, row `half` of products in row i and group q.
template <typename Tile, typename Sums>
__device__ auto& lane_sum(Sums& sums, int i, int half, int q, int k) {
  return sums[i][q * (Tile::vector / 2) + k / 2][half * 2 + k % 2];
}

// Eight neighbouring weights.
template <typename W, typename T>
__device__ Vector<T, kChunk> load_rounded(const W* from) {
  constexpr int part = kVectorLength<W>;
  Vector<T, kChunk> result;
#pragma unroll
  for (int i = 0; i < kChunk; i += part) {
    const Vector<W, part> read = *reinterpret_cast<const Vector<W, part>*>(from + i);
#pragma unroll
    for (int j = 0; j < part; ++j) result.value[i + j] = static_cast<T>(read.value[j]);
  }
  return result;
}

// Writes the weights of a tile's outputs for a pair's inputs [k, k + width) to shared memory, zeros
// beyond the edges. W: the type that they are stored in.
template <typename W, typename Tile, typename T>
__device__ void load_weights_of(const Operands<T>& pair, int outputs, int output, int k, int width,
                                T* to, int pitch) {
  const W* weight = static_cast<const W*>(pair.weight);
  const bool transposed = pair.transposed;
  // Neighbours in memory are `along`, for a line each; the threads follow them.
  const int lines = transposed ? pair.in : outputs, length = transposed ? outputs : pair.in;
  const int first_line = transposed ? k : output, first = transposed ? output : k;
  if (pair.weight_vectors) {
    // A thread loads eight lines of eight values before it writes any of them.
    const int across = (transposed ? Tile::across : width) / kChunk;
    for (int i = threadIdx.x; i < Tile::across * width / (kChunk * kChunk); i += kConvThreads) {
      const int along = i % across * kChunk, line = i / across * kChunk;
      const bool inside = first + along < length;
      Vector<T, kChunk> read[kChunk];
#pragma unroll
      for (int n = 0; n < kChunk; ++n) {
        const int here = min(first_line + line + n, lines - 1);
        read[n] = load_rounded<W, T>(weight + (inside ? here * pair.pitch + first + along : 0));
      }
#pragma unroll
      for (int n = 0; n < kChunk; ++n) {
        if (inside && first_line + line + n < lines) continue;
#pragma unroll
        for (int m = 0; m < kChunk; ++m) read[n].value[m] = static_cast<T>(0.0f);
      }
      const int row = transposed ? along : line, column = transposed ? line : along;
#pragma unroll
      for (int n = 0; n < kChunk; ++n) {
        Vector<T, kChunk> values;
#pragma unroll
        for (int m = 0; m < kChunk; ++m)
          values.value[m] = transposed ? read[m].value[n] : read[n].value[m];
        keep_whole(values, reinterpret_cast<Vector<T, kChunk>*>(
                               to + Tile::position(row + n) * pitch + column));
      }
    }
  } else {
    constexpr int batch = 8;
    const int across = transposed ? Tile::across : width, count = Tile::across * width;
    for (int start = threadIdx.x; start < count; start += batch * kConvThreads) {
      T read[batch];
#pragma unroll
      for (int n = 0; n < batch; ++n) {
        const int i = start + n * kConvThreads, along = first + i % across;
        const int line = first_line + i / across;
        const bool inside = along < length && line < lines;
        read[n] = inside ? static_cast<T>(weight[line * pair.pitch + along]) : static_cast<T>(0.0f);
      }
#pragma unroll
      for (int n = 0; n < batch; ++n) {
        const int i = start + n * kConvThreads, along = i % across, line = i / across;
        const int row = transposed ? along : line, column = transposed ? line : along;
        if (i < count) to[Tile::position(row) * pitch + column] = read[n];
      }
    }
  }
}

template <typename Tile, typename T>
__device__ void load_weights(const Operands<T>& pair, int outputs, int output, int k, int width,
                             T* to, int pitch) {
  if (pair.wide)
    load_weights_of<float, Tile>(pair, outputs, output, k, width, to, pitch);
  else
    load_weights_of<T, Tile>(pair, outputs, output, k, width, to, pitch);
}

// Adds bias and residual to a lane's sums, applies the ReLU, and writes the results in vectors.
// bias: of the tile's outputs, in shared memory, or null. The sums become the results as rounded.
// most: vectors of the residual that a thread loads before it stores the first result; the compiler
// cannot reorder them itself, as y might alias the residual.
template <typename Tile, int most, typename T>
__device__ void write_results(const ConvInputs<T>& in, const ConvResults<T>& out, int64_t first_row,
                              int first_output, const float* bias, ConvSums<Tile>& sums) {
  constexpr int vector = Tile::vector, pieces = 2 * Tile::products_down * Tile::groups;
  using Values = Vector<T, vector>;
  constexpr int ahead = pieces < most ? pieces : most;
  const LanePlace<Tile> place;
  const int outputs = in.outputs;
  const int64_t offset = (first_row + place.row) * outputs + first_output + place.output;
  const T* residual = out.residual + offset;
  T* y = out.y + offset;
  const int64_t rows_left = in.rows - first_row - place.row;
  const int outputs_left = outputs - first_output - place.output;
#pragma unroll
  for (int first = 0; first < pieces; first += ahead) {
    Values added[ahead];
#pragma unroll
    for (int a = 0; a < ahead; ++a) {
      const int line = (first + a) / Tile::groups * 8;
      const int column = (first + a) % Tile::groups * Tile::group;
      if (out.residual && line < rows_left && column < outputs_left)
        added[a] = *reinterpret_cast<const Values*>(residual + line * outputs + column);
    }
#pragma unroll
    for (int a = 0; a < ahead; ++a) {
      const int piece = first + a, line = piece / Tile::groups * 8, q = piece % Tile::groups;
      if (line >= rows_left || q * Tile::group >= outputs_left) continue;
      const Vector<float, 4>* biases =
          reinterpret_cast<const Vector<float, 4>*>(bias + place.output + q * Tile::group);
      Values result;
#pragma unroll
      for (int k = 0; k < vector; ++k) {
        float& sum = lane_sum<Tile>(sums, line / 16, line / 8 % 2, q, k);
        float value = sum;
        if (bias) value += biases[k / 4].value[k % 4];
        if (out.residual) value += static_cast<float>(added[a].value[k]);
        if (out.relu && value < 0) value = 0;  // NaN passes, as in torch
        result.value[k] = static_cast<T>(value);
        sum = static_cast<float>(result.value[k]);
      }
      store_whole(result, y + line * outputs + q * Tile::group);
    }
  }
}

}  // namespace fasthg
