// The gradient of the weight of a 1x1 convolution between two batch norms.
//
//   grad_W = g^T a over the rows,  g: (rows, outputs), of grad and z by the norm of z (see
//   conv1x1_norms.cuh),  a = relu?((x - mean) / sqrt(var + eps) * gamma + beta), or a = x
//
// Fused: g and a are made in shared memory and rounded as bn_act rounds them, so the products are
// those of a norm's backward, a norm and a convolution's gradient. Neither is ever written.
//
// The rows are cut into parts, and a block has one part and one tile of the products, up to 256 x
// 128 outputs and inputs or 128 x 256, in float32 registers. Both factors lie with rows down, as
// columns of the product: ldmatrix transposes them. Steps of 32 rows come through three stages in
// shared memory, which cp.async fills in turn. A second kernel adds the parts in double, in 8 lines
// and a tree. The number of parts is the caller's, of rows alone (fasthg/ops/conv1x1_bn_grad.py),
// and the sum over a part's rows runs in products of 16: results repeat, on every GPU. No atomics.
//
// Memory traffic: 2 outputs + inputs values a row, read, which is the floor where one tile has all
// outputs and inputs, and 8 bytes for each weight and part, written and read: with 128 parts of
// 1024 rows, outputs 256 and inputs 128, a fifth more. Apart, g and a are written and read: 5
// outputs + 3 inputs.
//
// Trade-off: few rows have few parts, of 256 rows at least, and leave multiprocessors idle; shorter
// ones would write more sums than they read of maps. The gradient of the input makes the same g
// again: one kernel for both would read grad and z once, but its products need twice the registers.
//
// Not yet run on a GPU.
#include "conv1x1_norms.cuh"
#include "mma.cuh"
#include "ops.h"

namespace fasthg {
namespace {

constexpr int kStageRows = 32;
constexpr int kStages = 3;
constexpr int kSumLines = 8;   // of threads that share the parts
constexpr int kSumVector = 4;  // weights of a thread
constexpr int kSumThreads = kSumLines * kWarp;

template <typename T>
struct WeightWork {
  NormGradient<T> of_z;
  const T* grad;   // (rows, outputs), as z
  BatchNorm norm;  // of x; mean is null where there is none
  const T* x;      // (rows, inputs)
  float* sums;     // (parts, outputs, inputs)
  int64_t rows;
  int outputs, inputs, parts;
};

// The products that a block computes, and its warps' parts of `down` x 2 `across` of 16 x 8.
template <int outputs_, int inputs_, int warps_down_>
struct WeightTile {
  static constexpr int outputs = outputs_, inputs = inputs_, warps_down = warps_down_;
  static constexpr int warps_across = kConvThreads / kWarp / warps_down;
  static constexpr int down = outputs / warps_down / 16, across = inputs / warps_across / 16;
  // Distances of two rows in a stage: odd multiples of 16 bytes, so that the eight rows that an
  // ldmatrix reads lie in different banks.
  static constexpr int of_g = outputs + kChunk, of_a = inputs + kChunk;
  // A stage: grad, which becomes g, then z, then x, which becomes a.
  static constexpr int z = kStageRows * of_g, x = 2 * z, stage = x + kStageRows * of_a;
  static constexpr size_t bytes = 2 * size_t{kStages} * stage;

  static size_t all_bytes() {
    return bytes + SharedNormGradient::bytes(outputs) + SharedNorm::bytes(inputs);
  }
};

// Calls use(line, column) for each vector that a thread has of kStageRows rows of `width` channels.
template <int width, typename Use>
__device__ void each_vector(const Use& use) {
  constexpr int across = width / kChunk;
#pragma unroll
  for (int first = 0; first < kStageRows; first += kConvThreads / across)
    use(first + static_cast<int>(threadIdx.x) / across,
        static_cast<int>(threadIdx.x) % across * kChunk);
}

// Starts to copy channels [first, first + width) of rows [row, row + kStageRows) to a stage; zeros
// from row `end` and beyond the channels.
template <int width, typename T>
__device__ void copy_rows(const T* map, int channels, int64_t row, int64_t end, int first, T* to) {
  each_vector<width>([&](int line, int column) {
    const bool valid = row + line < end && first + column < channels;
    const T* from = map + (row + line) * channels + first + column;
    copy_async(to + line * (width + kChunk) + column, valid ? from : map, valid ? 16 : 0);
  });
}

// Makes g and a of the rows before `end` where this thread copied them to.
template <typename Tile, typename T>
__device__ void change_rows(const WeightWork<T>& work, const SharedNormGradient& of_z,
                            const SharedNorm& of_x, int64_t rows_left, T* stage) {
  using Values = Vector<T, kChunk>;
  {
    const VectorNormGradient norm(of_z, threadIdx.x % (Tile::outputs / kChunk) * kChunk);
    each_vector<Tile::outputs>([&](int line, int column) {
      if (line >= rows_left) return;  // zeros are right
      T* at = stage + line * Tile::of_g + column;
      const Values grad = load_whole(reinterpret_cast<const Values*>(at));
      const Values z = load_whole(reinterpret_cast<const Values*>(at + Tile::z));
      keep_whole(norm.gradient(grad, z, work.of_z.norm.relu), reinterpret_cast<Values*>(at));
    });
  }
  if (!work.norm.mean) return;
  const VectorNorm norm(of_x, threadIdx.x % (Tile::inputs / kChunk) * kChunk);
  each_vector<Tile::inputs>([&](int line, int column) {
    if (line >= rows_left) return;
    Values* at = reinterpret_cast<Values*>(stage + Tile::x + line * Tile::of_a + column);
    keep_whole(norm.result(load_whole(at), work.norm.relu), at);
  });
}

template <typename T, typename Tile>
__global__ void __launch_bounds__(kConvThreads, 1) conv1x1_bn_weight_kernel(WeightWork<T> work) {
  FASTHG_SHARED(memory);
  T* stages = reinterpret_cast<T*>(memory);
  const SharedNormGradient of_z(memory + Tile::bytes, Tile::outputs);
  const SharedNorm of_x(reinterpret_cast<unsigned char*>(of_z.constant + Tile::outputs),
                        Tile::inputs);
  const int across = (work.inputs + Tile::inputs - 1) / Tile::inputs;
  const int first_output = static_cast<int>(blockIdx.y) / across * Tile::outputs;
  const int first_input = static_cast<int>(blockIdx.y) % across * Tile::inputs;
  const int64_t end = work.rows * (blockIdx.x + int64_t{1}) / work.parts;
  int64_t row = work.rows * blockIdx.x / work.parts, row_ahead = row;
  // Beyond the last row nothing is copied, but a group is committed all the same, because
  // wait_for_copies counts groups.
  const auto copy_ahead = [&](T* stage) {
    if (row_ahead < end) {
      copy_rows<Tile::outputs>(work.grad, work.outputs, row_ahead, end, first_output, stage);
      copy_rows<Tile::outputs>(work.of_z.z, work.outputs, row_ahead, end, first_output,
                               stage + Tile::z);
      copy_rows<Tile::inputs>(work.x, work.inputs, row_ahead, end, first_input, stage + Tile::x);
    }
    commit_copies();
    row_ahead += kStageRows;
  };
#pragma unroll 1
  for (int stage = 0; stage < kStages - 1; ++stage) copy_ahead(stages + stage * Tile::stage);
  of_z.load(work.of_z, work.rows, first_output, work.outputs, Tile::outputs);
  if (work.norm.mean) of_x.load(work.norm, first_input, work.inputs, Tile::inputs);
  __syncthreads();  // every thread takes channels that others loaded

  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int warp_output = warp / Tile::warps_across * Tile::down * 16;
  const int warp_input = warp % Tile::warps_across * Tile::across * 16;
  // What this lane gives to ldmatrix.
  const int in_g = (lane / 16 * 8 + lane % 8) * Tile::of_g + warp_output + lane / 8 % 2 * 8;
  const int in_a = (lane / 8 % 2 * 8 + lane % 8) * Tile::of_a + warp_input + lane / 16 * 8;
  float sums[Tile::down][2 * Tile::across][4] = {};
  for (int stage = 0; row < end; row += kStageRows, stage = (stage + 1) % kStages) {
    T* here = stages + stage * Tile::stage;
    wait_for_copies<kStages - 2>();  // what this thread copied for the step has arrived
    change_rows<Tile>(work, of_z, of_x, end - row, here);
    __syncthreads();  // everyone's rows are changed, and nobody reads the stage that is filled next
    copy_ahead(stages + (stage + kStages - 1) % kStages * Tile::stage);
    const T *g = here + in_g, *a = here + Tile::x + in_a;
#pragma unroll
    for (int k = 0; k < kStageRows; k += kDepth) {
      uint32_t left[Tile::down][4];
#pragma unroll
      for (int i = 0; i < Tile::down; ++i)
        load_matrices<true>(g + k * Tile::of_g + i * 16, left[i]);
#pragma unroll
      for (int j = 0; j < Tile::across; ++j) {
        uint32_t right[4];
        load_matrices<true>(a + k * Tile::of_a + j * 16, right);
        const uint32_t first[2] = {right[0], right[1]}, second[2] = {right[2], right[3]};
#pragma unroll
        for (int i = 0; i < Tile::down; ++i) {
          mma_16x8x16<T>(left[i], first, sums[i][2 * j]);
          mma_16x8x16<T>(left[i], second, sums[i][2 * j + 1]);
        }
      }
    }
  }
  float* out = work.sums + static_cast<int64_t>(blockIdx.x) * work.outputs * work.inputs;
#pragma unroll
  for (int i = 0; i < Tile::down; ++i)
#pragma unroll
    for (int j = 0; j < 2 * Tile::across; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int output = first_output + warp_output + i * 16 + half * 8 + lane / 4;
        const int input = first_input + warp_input + j * 8 + lane % 4 * 2;
        if (output < work.outputs && input < work.inputs)
          *reinterpret_cast<Vector<float, 2>*>(out + output * work.inputs + input) = {
              sums[i][j][2 * half], sums[i][j][2 * half + 1]};
      }
}

// Adds the parts of kSumVector neighbouring weights a thread: each line every kSumLines-th part.
template <typename W>
__global__ void __launch_bounds__(kSumThreads)
    conv1x1_bn_weight_sum_kernel(const float* sums, int count, int parts, W* grad_weight) {
  using Sums = Vector<double, kSumVector>;
  FASTHG_SHARED(memory);
  Sums* lines = reinterpret_cast<Sums*>(memory);  // (kSumLines, kWarp)
  const int line = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int first = (static_cast<int>(blockIdx.x) * kWarp + lane) * kSumVector;
  Sums sum{};
  if (first < count) {
#pragma unroll 4
    for (int part = line; part < parts; part += kSumLines) {
      const auto next = *reinterpret_cast<const Vector<float, kSumVector>*>(
          sums + static_cast<int64_t>(part) * count + first);
#pragma unroll
      for (int k = 0; k < kSumVector; ++k) sum.value[k] += next.value[k];
    }
  }
  lines[threadIdx.x] = sum;
  for (int half = kSumLines / 2; half; half /= 2) {
    __syncthreads();  // the sums that are added next come from other warps
    if (line >= half) continue;
#pragma unroll
    for (int k = 0; k < kSumVector; ++k)
      lines[threadIdx.x].value[k] += lines[threadIdx.x + half * kWarp].value[k];
  }
  if (line > 0 || first >= count) return;
  Vector<W, kSumVector> result;
#pragma unroll
  for (int k = 0; k < kSumVector; ++k)
    result.value[k] = static_cast<W>(static_cast<float>(lines[lane].value[k]));
  *reinterpret_cast<Vector<W, kSumVector>*>(grad_weight + first) = result;
}

template <typename T, typename Tile>
const char* run(const WeightWork<T>& work, void* stream) {
  auto* kernel = conv1x1_bn_weight_kernel<T, Tile>;
  if (const char* refusal = allow_shared(kernel, Tile::all_bytes())) return refusal;
  const int64_t tiles =
      divide_up(work.outputs, Tile::outputs) * divide_up(work.inputs, Tile::inputs);
  FASTHG_LAUNCH((conv1x1_bn_weight_kernel<T, Tile>), dim3(work.parts, tiles), dim3(kConvThreads),
                Tile::all_bytes(), stream, work);
  return launch_status();
}

template <typename W>
const char* add_parts(const float* sums, int count, int parts, void* grad_weight, void* stream) {
  FASTHG_LAUNCH(conv1x1_bn_weight_sum_kernel<W>, dim3(divide_up(count, kWarp * kSumVector)),
                dim3(kSumThreads), kSumThreads * sizeof(Vector<double, kSumVector>), stream, sums,
                count, parts, static_cast<W*>(grad_weight));
  return launch_status();
}

// The largest tile reads the least.
template <typename T>
const char* launch(const WeightWork<T>& work, void* stream) {
  using Tall = WeightTile<256, 128, 4>;
  using Broad = WeightTile<128, 256, 2>;
  using Square = WeightTile<128, 128, 4>;
  using Small = WeightTile<64, 64, 4>;
  const size_t most = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  if (work.outputs > Square::outputs && Tall::all_bytes() <= most)
    return run<T, Tall>(work, stream);
  if (work.inputs > Square::inputs && Broad::all_bytes() <= most)
    return run<T, Broad>(work, stream);
  if ((work.outputs > Small::outputs || work.inputs > Small::inputs) && Square::all_bytes() <= most)
    return run<T, Square>(work, stream);
  return run<T, Small>(work, stream);
}

}  // namespace
}  // namespace fasthg

const char* fasthg_conv1x1_bn_weight_cuda(int dtype, const void* grad,
                                          const fasthg::BatchNorm* norm, const void* z,
                                          const void* grad_beta, const void* grad_gamma,
                                          const fasthg::BatchNorm* norm_of_x, const void* x,
                                          int64_t parts, void* workspace, bool wide,
                                          void* grad_weight, int device, void* stream) {
  using namespace fasthg;
  const DeviceGuard guard(device);
  return dispatch(dtype, [&](auto zero) -> const char* {
    using T = decltype(zero);
    if constexpr (sizeof(T) == 2) {
      WeightWork<T> work{};
      work.of_z = {*norm, static_cast<const T*>(z), static_cast<const float*>(grad_beta),
                   static_cast<const float*>(grad_gamma)};
      work.grad = static_cast<const T*>(grad);
      work.norm = *norm_of_x;
      work.x = static_cast<const T*>(x);
      work.sums = static_cast<float*>(workspace);
      work.rows = norm->rows;
      work.outputs = static_cast<int>(norm->channels);
      work.inputs = static_cast<int>(norm_of_x->channels);
      work.parts = static_cast<int>(parts);
      if (work.outputs % kChunk || work.inputs % kChunk || !aligned16(grad) || !aligned16(z) ||
          !aligned16(x) || !aligned16(workspace) || !aligned16(grad_weight))
        return "conv1x1_bn_weight: takes rows of whole vectors";
      if (const char* refusal = launch<T>(work, stream)) return refusal;
      const int count = work.outputs * work.inputs;
      return wide ? add_parts<float>(work.sums, count, work.parts, grad_weight, stream)
                  : add_parts<T>(work.sums, count, work.parts, grad_weight, stream);
    }
    return "conv1x1_bn_weight on CUDA takes float16 and bfloat16";
  });
}
