// Mean and covariance of the channels of half types, on tensor cores.
//
//   mean = sum x / n,  covariance = x^T x / n - mean mean^T,  x: (n rows, channels)
//
// One kernel computes products and sums of each part of the rows, a second adds the parts in order,
// in double. A block has one part and one square tile of the products (64 x 64 channels up to 64
// channels, else 128 x 128). The result is symmetric: only tiles at and below the diagonal are
// computed, and those on the diagonal sum the channels as well, so x^T x and sum x cost one pass.
//
// Memory traffic: up to 128 channels x is read once; above, each tile reads its two strips of
// channels, twice x in all at 256. The first kernel writes channels (channels + 1) floats a part,
// the second reads the lower half of them. With 128 channels and parts of 256 rows (the least) that
// is 1.5 times x; with more rows it shrinks, as there are at most 128 parts: about one for each
// multiprocessor (_PARTS in fasthg/ops/channel_covariance.py).
//
// Loads of the next 64 rows go to registers while the tensor cores work on the current ones, and
// two stages in shared memory alternate, so a step has one barrier. Parts go through memory because
// atomic additions would come in any order and results would not repeat.
//
// Trade-off: half values go to the tensor cores as they are, so channels cannot be centred first as
// on the CPU: the error grows with m_i m_j, m = |mean| / standard deviation. Centring would round
// again to a half type or need another pass.
#include "channel_covariance_math.h"
#include "cuda_utils.cuh"
#include "mma.cuh"
#include "ops.h"

namespace fasthg {
namespace {

constexpr int kThreads = 256;
constexpr int kWarpsDown = 2, kWarpsAcross = 4;
constexpr int kStageRows = 64;
constexpr int kVector = 8;  // half values in 16 bytes
// A row in shared memory is 16 bytes longer than its values: the eight rows that one ldmatrix reads
// then start in different banks.
constexpr int kPadding = kVector;

constexpr int kFinishLines = 4;   // rows of the covariance that a block finishes
constexpr int kFinishGroups = 8;  // of parts, one a warp
constexpr int kFinishThreads = kFinishGroups * kWarp;

template <typename T>
struct CovarianceInput {
  const T* x;        // (rows, channels)
  float* workspace;  // (parts, channels + 1, channels): products, then sums
  int64_t rows;
  int channels, parts;
};

// A stage: kStageRows rows of a tile's channels.
template <int tile>
constexpr int kStride = tile + kPadding;
template <int tile>
constexpr int kStage = kStageRows * kStride<tile>;
// Vectors of a row, and rows that the block's threads cover at once.
template <int tile>
constexpr int kColumns = tile / kVector;
template <int tile>
constexpr int kLines = kThreads / kColumns<tile>;
template <int tile>
constexpr int kLoads = kStageRows / kLines<tile>;

// What one thread loads of a stage: rows line, line + kLines, ... of eight neighbouring channels.
template <typename T, int tile>
struct StageLoad {
  Vector<T, kVector> values[kLoads<tile>];

  // Rows and channels beyond the part's become zeros.
  template <bool vectors>
  __device__ void load(const CovarianceInput<T>& in, int64_t row, int64_t end, int first) {
    const int channel = first + static_cast<int>(threadIdx.x) % kColumns<tile> * kVector;
    row += threadIdx.x / kColumns<tile>;
#pragma unroll
    for (int i = 0; i < kLoads<tile>; ++i, row += kLines<tile>) {
      const T* from = in.x + row * in.channels + channel;
      if (vectors && row < end && channel < in.channels) {
        values[i] = *reinterpret_cast<const Vector<T, kVector>*>(from);
      } else {
#pragma unroll
        for (int k = 0; k < kVector; ++k)
          values[i].value[k] =
              !vectors && row < end && channel + k < in.channels ? from[k] : static_cast<T>(0.0f);
      }
    }
  }

  __device__ void store(T* stage) const {
    const int line = threadIdx.x / kColumns<tile>, column = threadIdx.x % kColumns<tile>;
    T* to = stage + line * kStride<tile> + column * kVector;
#pragma unroll
    for (int i = 0; i < kLoads<tile>; ++i, to += kLines<tile> * kStride<tile>)
      *reinterpret_cast<Vector<T, kVector>*>(to) = values[i];
  }

  __device__ void add_to(float (&sums)[kVector]) const {
#pragma unroll
    for (int i = 0; i < kLoads<tile>; ++i)
#pragma unroll
      for (int k = 0; k < kVector; ++k) sums[k] += static_cast<float>(values[i].value[k]);
  }
};

// The part of a tile that a warp computes: `down` x `across` products of 16 x 16 channels.
template <typename T, int tile>
struct WarpTile {
  static constexpr int down = tile / kWarpsDown / 16, across = tile / kWarpsAcross / 16;
  float sums[down][2 * across][4] = {};

  // The product is over rows and channels are columns of both stages: both operands are transposed.
  __device__ void add(const T* left, const T* right) {
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    const int in_piece = lane % 8, piece = lane / 8;
    const T* from_left = left + (piece / 2 * 8 + in_piece) * kStride<tile> +
                         warp / kWarpsAcross * down * 16 + piece % 2 * 8;
    const T* from_right = right + (piece % 2 * 8 + in_piece) * kStride<tile> +
                          warp % kWarpsAcross * across * 16 + piece / 2 * 8;
#pragma unroll
    for (int row = 0; row < kStageRows; row += 16) {
      uint32_t a[down][4], b[across][4];
#pragma unroll
      for (int i = 0; i < down; ++i)
        load_matrices<true>(from_left + row * kStride<tile> + i * 16, a[i]);
#pragma unroll
      for (int j = 0; j < across; ++j)
        load_matrices<true>(from_right + row * kStride<tile> + j * 16, b[j]);
#pragma unroll
      for (int i = 0; i < down; ++i)
#pragma unroll
        for (int j = 0; j < 2 * across; ++j) {
          const uint32_t pair[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
          mma_16x8x16<T>(a[i], pair, sums[i][j]);
        }
    }
  }

  template <bool vectors>
  __device__ void write(const CovarianceInput<T>& in, float* out, int first_row,
                        int first_column) const {
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    first_row += warp / kWarpsAcross * down * 16 + lane / 4;
    first_column += warp % kWarpsAcross * across * 16 + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < down; ++i)
#pragma unroll
      for (int j = 0; j < 2 * across; ++j)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int row = first_row + i * 16 + half * 8, column = first_column + j * 8;
          if (row >= in.channels || column >= in.channels) continue;
          float* to = out + static_cast<int64_t>(row) * in.channels + column;
          const float* pair = sums[i][j] + 2 * half;
          if (vectors) {
            *reinterpret_cast<Vector<float, 2>*>(to) = {pair[0], pair[1]};
          } else {
            to[0] = pair[0];
            if (column + 1 < in.channels) to[1] = pair[1];
          }
        }
  }
};

// blockIdx.y counts the tiles at and below the diagonal, row by row.
template <typename T, int tile, bool vectors>
__global__ void __launch_bounds__(kThreads) covariance_parts_kernel(CovarianceInput<T> in) {
  FASTHG_SHARED(shared);
  T* stages = reinterpret_cast<T*>(shared);
  int tile_row = 0;
  while ((tile_row + 1) * (tile_row + 2) / 2 <= static_cast<int>(blockIdx.y)) ++tile_row;
  const int tile_column = static_cast<int>(blockIdx.y) - tile_row * (tile_row + 1) / 2;
  const bool diagonal = tile_row == tile_column;
  const int first_row = tile_row * tile, first_column = tile_column * tile;

  const int64_t part = blockIdx.x, begin = in.rows * part / in.parts;
  const int64_t end = in.rows * (part + 1) / in.parts;
  StageLoad<T, tile> left, right;
  WarpTile<T, tile> products;
  float sums[kVector] = {};
  left.template load<vectors>(in, begin, end, first_row);
  if (!diagonal) right.template load<vectors>(in, begin, end, first_column);
  int buffer = 0;
  for (int64_t row = begin; row < end; row += kStageRows, buffer ^= 1) {
    T* stage = stages + buffer * 2 * kStage<tile>;
    T* other = diagonal ? stage : stage + kStage<tile>;
    left.store(stage);
    if (diagonal)
      left.add_to(sums);
    else
      right.store(other);
    // Two stages alternate: after this barrier no thread reads the other stage any more.
    __syncthreads();  // the products read what all threads stored
    // The next rows are loaded while the tensor cores work on these.
    if (row + kStageRows < end) {
      left.template load<vectors>(in, row + kStageRows, end, first_row);
      if (!diagonal) right.template load<vectors>(in, row + kStageRows, end, first_column);
    }
    products.add(stage, other);
  }
  float* out = in.workspace + part * (in.channels + 1) * in.channels;
  products.template write<vectors>(in, out, first_row, first_column);
  if (!diagonal) return;

  // After the stages in shared memory, which other warps may still read.
  auto* scratch = reinterpret_cast<float*>(stages + 4 * kStage<tile>);
  const int line = threadIdx.x / kColumns<tile>, column = threadIdx.x % kColumns<tile> * kVector;
#pragma unroll
  for (int k = 0; k < kVector; ++k) scratch[line * tile + column + k] = sums[k];
  __syncthreads();  // every line's sums must lie in scratch before threads add them up
  const int channel = first_row + static_cast<int>(threadIdx.x);
  if (static_cast<int>(threadIdx.x) >= tile || channel >= in.channels) return;
  float sum = 0;
  for (int i = 0; i < kLines<tile>; ++i) sum += scratch[i * tile + threadIdx.x];
  out[static_cast<int64_t>(in.channels) * in.channels + channel] = sum;
}

// A block finishes kFinishLines rows and kWarp columns of the covariance. Each warp adds every
// kFinishGroups-th part; then one warp a row adds the warps' sums. The sums of the channels are two
// more lines: those of the columns, and those of the rows in the first lanes.
template <typename Real>
__global__ void __launch_bounds__(kFinishThreads)
    covariance_finish_kernel(const Real* workspace, int64_t rows, int channels, int parts,
                             Real* mean, Real* covariance) {
  constexpr int lines = kFinishLines + 2;
  FASTHG_SHARED(shared);
  auto* scratch = reinterpret_cast<double*>(shared);  // (groups, lines, kWarp)
  const int group = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int first_column = static_cast<int>(blockIdx.x) * kWarp;
  const int first_row = static_cast<int>(blockIdx.y) * kFinishLines;
  if (first_column >= first_row + kFinishLines) return;  // above the diagonal
  const int64_t square = static_cast<int64_t>(channels) * channels;
  const int column = first_column + lane;
  int64_t at[lines];
#pragma unroll
  for (int line = 0; line < lines; ++line) {
    const int row = first_row + (line < kFinishLines ? line : lane);
    if (line < kFinishLines)
      at[line] = row < channels && column <= row ? int64_t{row} * channels + column : -1;
    else if (line == kFinishLines)
      at[line] = column < channels ? square + column : -1;
    else
      at[line] = lane < kFinishLines && row < channels ? square + row : -1;
  }
  double sum[lines] = {};
#pragma unroll 4
  for (int part = group; part < parts; part += kFinishGroups) {
    const Real* in = workspace + part * (square + channels);
#pragma unroll
    for (int line = 0; line < lines; ++line)
      if (at[line] >= 0) sum[line] += static_cast<double>(in[at[line]]);
  }
#pragma unroll
  for (int line = 0; line < lines; ++line)
    scratch[(group * lines + line) * kWarp + lane] = sum[line];
  __syncthreads();  // the first warps read what all warps wrote
  if (group >= kFinishLines) return;
  double products = 0, column_sum = 0, row_sum = 0;
  for (int other = 0; other < kFinishGroups; ++other) {
    const double* from = scratch + other * lines * kWarp;
    products += from[group * kWarp + lane];
    column_sum += from[kFinishLines * kWarp + lane];
    row_sum += from[(kFinishLines + 1) * kWarp + group];
  }
  const int row = first_row + group;
  if (row >= channels || column > row) return;
  const double mean_row = row_sum / static_cast<double>(rows);
  const double mean_column = column_sum / static_cast<double>(rows);
  if (column == 0) mean[row] = static_cast<Real>(mean_row);
  const auto value =
      static_cast<Real>(row == column ? variance_of(products, mean_row, rows)
                                      : covariance_of(products, mean_row, mean_column, rows));
  covariance[int64_t{row} * channels + column] = value;
  covariance[int64_t{column} * channels + row] = value;
}

template <typename T, int tile, bool vectors>
const char* launch_parts(const CovarianceInput<T>& in, void* stream) {
  constexpr size_t stages = sizeof(T) * 4 * kStage<tile>;
  constexpr size_t bytes = stages + sizeof(float) * kLines<tile> * tile;
  auto* kernel = covariance_parts_kernel<T, tile, vectors>;
  if (const char* refusal = allow_shared(kernel, bytes)) return refusal;
  const unsigned tiles = (in.channels + tile - 1) / tile;
  FASTHG_LAUNCH((covariance_parts_kernel<T, tile, vectors>),
                dim3(in.parts, tiles * (tiles + 1) / 2), dim3(kThreads), bytes, stream, in);
  return launch_status();
}

template <typename T, int tile>
const char* launch_parts(const CovarianceInput<T>& in, void* stream) {
  const bool vectors = in.channels % kVector == 0 && aligned16(in.x) && aligned16(in.workspace);
  return vectors ? launch_parts<T, tile, true>(in, stream)
                 : launch_parts<T, tile, false>(in, stream);
}

template <typename T>
const char* launch(const void* x, int64_t rows, int64_t channels, int64_t parts, void* workspace,
                   void* mean, void* covariance, void* stream) {
  const CovarianceInput<T> in{static_cast<const T*>(x), static_cast<float*>(workspace), rows,
                              static_cast<int>(channels), static_cast<int>(parts)};
  const char* refusal =
      channels <= 64 ? launch_parts<T, 64>(in, stream) : launch_parts<T, 128>(in, stream);
  if (refusal) return refusal;
  constexpr size_t bytes = sizeof(double) * kFinishGroups * (kFinishLines + 2) * kWarp;
  const dim3 blocks((in.channels + kWarp - 1) / kWarp,
                    (in.channels + kFinishLines - 1) / kFinishLines);
  FASTHG_LAUNCH(covariance_finish_kernel<float>, blocks, dim3(kFinishThreads), bytes, stream,
                in.workspace, rows, in.channels, in.parts, static_cast<float*>(mean),
                static_cast<float*>(covariance));
  return launch_status();
}

}  // namespace
}  // namespace fasthg

const char* fasthg_channel_covariance_cuda(int dtype, const void* x, int64_t rows, int64_t channels,
                                           int64_t parts, void* workspace, void* mean,
                                           void* covariance, int device, void* stream) {
  using namespace fasthg;
  const DeviceGuard guard(device);
  if (dtype == kFloat16)
    return launch<__half>(x, rows, channels, parts, workspace, mean, covariance, stream);
  if (dtype == kBFloat16)
    return launch<__nv_bfloat16>(x, rows, channels, parts, workspace, mean, covariance, stream);
  return "channel_covariance on CUDA takes float16 and bfloat16";
}
