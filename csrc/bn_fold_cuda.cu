// Batch norm folded into the 1x1 convolution before it, and the gradients of both. Formulas and
// derivation: bn_fold_math.h.
//
//   folded = s W,  offset = beta - folded m,  s = 1 / sqrt(diag(W C W^T) + eps)
//
// Fused: the forward is one kernel (product W C, statistics, scale, rounding, offset); the backward
// is three: grad_weight, then back and mix, then the constant, which needs the rounded back and
// mix. In plain torch the forward alone is about ten launches on small matrices.
//
// Memory traffic: weight (outputs x inputs) and covariance (inputs x inputs) are read and folded is
// written; the backward reads product, weight and covariance and writes grad_weight, back and mix.
// All of it fits into the L2 cache. From there every block of 4 rows reads a whole matrix: the
// covariance is read outputs / 4 times in either direction, and for mix the weights inputs / 4
// times.
//
// A block multiplies 4 rows with a matrix, 64 columns at a time. Each warp takes every eighth term
// of the inner product, and the warps' sums are added in order: results repeat. Larger tiles would
// read less from L2, but give fewer blocks, and the work is small enough that the number of busy
// multiprocessors decides. Products are float32 (or float64) multiply-adds: tensor cores would
// round the factors to TF32 or a half type, and the operator's error of 1e-5 needs float32.
#include "bn_fold_math.h"
#include "cuda_utils.cuh"
#include "ops.h"

namespace fasthg {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 2;  // at once on a multiprocessor: no register is spilled then
constexpr int kWarps = kThreads / kWarp;
constexpr int kRows = 4;
constexpr int kWidth = kThreads / kRows;  // columns at a time: one product a thread in the end
constexpr int kLaneColumns = kWidth / kWarp;
constexpr int kChunk = 256;  // terms of the inner product whose factors lie in shared memory

template <typename Real>
struct FoldShared {
  Vector<Real, kRows> left[kChunk];
  Real products[kWarps][kRows * kWidth];
  Real sums[4][kWarps];
};

// Multiplies kRows rows, whose values are left(k, row), with `matrix` (inner, columns). Returns the
// product at this thread's row and column first + threadIdx.x % kWidth. Each value of left is asked
// for once.
template <typename Real, typename Left>
__device__ Real multiply_rows(const Real* __restrict__ matrix, int inner, int columns, int first,
                              FoldShared<Real>* shared, const Left& left) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  Real sum[kRows][kLaneColumns] = {};
  // Lanes beyond the last column repeat it; their products are not used.
  int column[kLaneColumns];
#pragma unroll
  for (int c = 0; c < kLaneColumns; ++c) column[c] = min(first + c * kWarp + lane, columns - 1);
  for (int chunk = 0; chunk < inner; chunk += kChunk) {
    const int length = min(kChunk, inner - chunk);
    if (chunk) __syncthreads();  // the chunk before is no longer read
    for (int i = threadIdx.x; i < length * kRows; i += kThreads)
      shared->left[i / kRows].value[i % kRows] = left(chunk + i / kRows, i % kRows);
    __syncthreads();  // all terms of the chunk must be there
#pragma unroll 8
    for (int k = warp; k < length; k += kWarps) {
      const Vector<Real, kRows> factors = shared->left[k];
      const Real* row = matrix + static_cast<int64_t>(chunk + k) * columns;
#pragma unroll
      for (int c = 0; c < kLaneColumns; ++c) {
        const Real value = row[column[c]];
#pragma unroll
        for (int r = 0; r < kRows; ++r) sum[r][c] += factors.value[r] * value;
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int c = 0; c < kLaneColumns; ++c)
      shared->products[warp][r * kWidth + c * kWarp + lane] = sum[r][c];
  __syncthreads();  // a product is added up from what all warps wrote
  Real product = 0;
#pragma unroll
  for (int other = 0; other < kWarps; ++other) product += shared->products[other][threadIdx.x];
  return product;
}

// The sum over the threads of a row, given to all of them; each use has its own scratch.
template <typename Real>
__device__ Real row_sum(Real value, Real* scratch) {
  constexpr int warps = kWidth / kWarp;
  for (int mask = kWarp / 2; mask; mask /= 2) value += shuffle_xor(value, mask);
  const int warp = threadIdx.x / kWarp;
  if (threadIdx.x % kWarp == 0) scratch[warp] = value;
  __syncthreads();  // the warps of a row read each other's sums
  Real sum = 0;
  for (int i = 0; i < warps; ++i) sum += scratch[warp / warps * warps + i];
  return sum;
}

template <typename Out>
__device__ typename Accumulate<Out>::type wide(Out value) {
  return static_cast<typename Accumulate<Out>::type>(value);
}

// Reads a row of the weights, or zeros below the last.
template <typename Real>
struct WeightRows {
  const Real* weight;
  int first, outputs, inputs;
  __device__ Real operator()(int k, int row) const {
    const int output = first + row;
    return output < outputs ? weight[static_cast<int64_t>(output) * inputs + k] : Real(0);
  }
};

template <typename Real, typename Out>
__global__ void __launch_bounds__(kThreads, kBlocks)
    bn_fold_kernel(BnFold fold, const Real* beta, Out* folded, Real* offset) {
  FASTHG_SHARED(memory);
  auto* shared = reinterpret_cast<FoldShared<Real>*>(memory);
  const auto* weight = static_cast<const Real*>(fold.weight);
  const auto* covariance = static_cast<const Real*>(fold.covariance);
  const int outputs = static_cast<int>(fold.outputs), inputs = static_cast<int>(fold.inputs);
  const int first_output = static_cast<int>(blockIdx.x) * kRows;
  const int output = first_output + static_cast<int>(threadIdx.x) / kWidth;
  const int lane = static_cast<int>(threadIdx.x) % kWidth;
  const int64_t row = static_cast<int64_t>(output) * inputs;
  Real mean = 0, var = 0, diagonal = 0;
  for (int first = 0; first < inputs; first += kWidth) {
    const Real product = multiply_rows(covariance, inputs, inputs, first, shared,
                                       WeightRows<Real>{weight, first_output, outputs, inputs});
    const int column = first + lane;
    if (output < outputs && column < inputs) {
      mean += weight[row + column] * static_cast<const Real*>(fold.mean)[column];
      var += weight[row + column] * product;
      diagonal += weight[row + column] * weight[row + column] *
                  covariance[static_cast<int64_t>(column) * (inputs + 1)];
    }
  }
  mean = row_sum(mean, shared->sums[0]);
  var = row_sum(var, shared->sums[1]);
  var = quadratic_form(var, row_sum(diagonal, shared->sums[3]));
  const Real scale = fold_scale(var, fold.eps);
  // From the rounded weights, so that rounding does not shift the mean of y.
  Real shift = 0;
  if (output < outputs)
    for (int column = lane; column < inputs; column += kWidth) {
      const Out value = static_cast<Out>(scale * weight[row + column]);
      folded[row + column] = value;
      shift += wide(value) * static_cast<const Real*>(fold.mean)[column];
    }
  shift = row_sum(shift, shared->sums[2]);
  if (output >= outputs) return;
  if (lane) return;
  offset[output] = beta[output] - shift;
  static_cast<Real*>(fold.mean_out)[output] = mean;
  static_cast<Real*>(fold.var_out)[output] = var;
}

template <typename Real>
struct OutputGradSums {
  const Real *product, *total;  // d^T a (outputs, inputs), and sums of d (outputs,)
  int64_t rows;
  Real* workspace;  // (2, outputs): scale and mix coefficient of each
};

// grad_weight of four outputs at kWidth inputs. Blocks of the same outputs compute the coefficients
// again.
template <typename Real>
__global__ void __launch_bounds__(kThreads, kBlocks)
    bn_fold_grad_weight_kernel(BnFold fold, OutputGradSums<Real> in, Real* grad_weight) {
  FASTHG_SHARED(memory);
  auto* shared = reinterpret_cast<FoldShared<Real>*>(memory);
  const auto* weight = static_cast<const Real*>(fold.weight);
  const int outputs = static_cast<int>(fold.outputs), inputs = static_cast<int>(fold.inputs);
  const int first_output = static_cast<int>(blockIdx.x) * kRows;
  const int output = first_output + static_cast<int>(threadIdx.x) / kWidth;
  const int lane = static_cast<int>(threadIdx.x) % kWidth;
  const int64_t row = static_cast<int64_t>(output) * inputs;
  Real product = 0;
  if (output < outputs)
    for (int column = lane; column < inputs; column += kWidth)
      product += in.product[row + column] * weight[row + column];
  product = row_sum(product, shared->sums[0]);
  const int first = static_cast<int>(blockIdx.y) * kWidth, column = first + lane;
  const Real weight_covariance =
      multiply_rows(static_cast<const Real*>(fold.covariance), inputs, inputs, first, shared,
                    WeightRows<Real>{weight, first_output, outputs, inputs});
  if (output >= outputs) return;
  const Real total = in.total[output];
  const Real scale = fold_scale(static_cast<const Real*>(fold.var_out)[output], fold.eps);
  const BnFoldCoefficients<Real> coefficients = bn_fold_coefficients(
      scale, product, total, static_cast<const Real*>(fold.mean_out)[output], in.rows);
  if (column < inputs)
    grad_weight[row + column] = scale == 0
                                    ? Real(0)
                                    : scale * (in.product[row + column] -
                                               total * static_cast<const Real*>(fold.mean)[column] -
                                               coefficients.covariance * weight_covariance);
  if (column) return;
  in.workspace[output] = scale;
  in.workspace[outputs + output] = coefficients.mix;
}

// Four rows of mix at kWidth columns; the first column of blocks writes back as well.
template <typename Real, typename Out>
__global__ void __launch_bounds__(kThreads, kBlocks)
    bn_fold_mix_kernel(BnFold fold, const Real* workspace, Out* back, Out* mix) {
  FASTHG_SHARED(memory);
  const auto* weight = static_cast<const Real*>(fold.weight);
  const int outputs = static_cast<int>(fold.outputs), inputs = static_cast<int>(fold.inputs);
  const int first_row = static_cast<int>(blockIdx.x) * kRows;
  const int first = static_cast<int>(blockIdx.y) * kWidth;
  // Every column of blocks reads all weights once: the first one also writes their transpose.
  const auto left = [&](int output, int offset) -> Real {
    const int row = first_row + offset;
    if (row >= inputs) return Real(0);
    const Real value = weight[static_cast<int64_t>(output) * inputs + row];
    if (first == 0)
      back[static_cast<int64_t>(row) * outputs + output] =
          static_cast<Out>(workspace[output] * value);
    return -workspace[outputs + output] * value;
  };
  const Real product = multiply_rows(weight, outputs, inputs, first,
                                     reinterpret_cast<FoldShared<Real>*>(memory), left);
  const int row = first_row + static_cast<int>(threadIdx.x) / kWidth;
  const int column = first + static_cast<int>(threadIdx.x) % kWidth;
  if (column < inputs && row < inputs)
    mix[static_cast<int64_t>(row) * inputs + column] = static_cast<Out>(product);
}

// constant = -mix m - back m1 of the rounded mix and back, one input a warp.
template <typename Real, typename Out>
__global__ void __launch_bounds__(kThreads)
    bn_fold_constant_kernel(BnFold fold, OutputGradSums<Real> in, const Out* back, const Out* mix,
                            Real* constant) {
  const int outputs = static_cast<int>(fold.outputs), inputs = static_cast<int>(fold.inputs);
  const int row = static_cast<int>(blockIdx.x * kWarps + threadIdx.x / kWarp);
  const int lane = threadIdx.x % kWarp;
  if (row >= inputs) return;
  Real through_mix = 0, through_back = 0;
  for (int i = lane; i < inputs; i += kWarp)
    through_mix +=
        wide(mix[static_cast<int64_t>(row) * inputs + i]) * static_cast<const Real*>(fold.mean)[i];
  for (int i = lane; i < outputs; i += kWarp)
    through_back += wide(back[static_cast<int64_t>(row) * outputs + i]) * in.total[i];
  for (int mask = kWarp / 2; mask; mask /= 2) {
    through_mix += shuffle_xor(through_mix, mask);
    through_back += shuffle_xor(through_back, mask);
  }
  if (lane) return;
  constant[row] = -through_mix - (in.rows ? through_back / static_cast<Real>(in.rows) : Real(0));
}

// Calls body(Real{}, Out{}) with the types of the statistics and of the folded matrices.
template <typename Body>
const char* dispatch_both(int dtype, int folded_dtype, const Body& body) {
  if (dtype == kFloat32)
    return dispatch(folded_dtype, [&](auto out) { return body(float{}, out); });
  if (dtype == kFloat64)
    return dispatch(folded_dtype, [&](auto out) { return body(double{}, out); });
  return "bn_fold takes float32 and float64";
}

}  // namespace
}  // namespace fasthg

const char* fasthg_bn_fold_cuda(int dtype, const fasthg::BnFold* fold, const void* beta,
                                void* folded, void* offset, int device, void* stream) {
  using namespace fasthg;
  const DeviceGuard guard(device);
  return dispatch_both(dtype, fold->folded_dtype, [&](auto real, auto out) {
    using Real = decltype(real);
    using Out = decltype(out);
    FASTHG_LAUNCH((bn_fold_kernel<Real, Out>), dim3(divide_up(fold->outputs, kRows)),
                  dim3(kThreads), sizeof(FoldShared<Real>), stream, *fold,
                  static_cast<const Real*>(beta), static_cast<Out*>(folded),
                  static_cast<Real*>(offset));
    return launch_status();
  });
}

const char* fasthg_bn_fold_backward_cuda(int dtype, const fasthg::BnFold* fold, const void* product,
                                         const void* total, int64_t rows, void* workspace,
                                         void* grad_weight, void* back, void* mix, void* constant,
                                         int device, void* stream) {
  using namespace fasthg;
  const DeviceGuard guard(device);
  return dispatch_both(dtype, fold->folded_dtype, [&](auto real, auto out) {
    using Real = decltype(real);
    using Out = decltype(out);
    const auto columns = static_cast<unsigned>(divide_up(fold->inputs, kWidth));
    const OutputGradSums<Real> in{static_cast<const Real*>(product),
                                  static_cast<const Real*>(total), rows,
                                  static_cast<Real*>(workspace)};
    FASTHG_LAUNCH(bn_fold_grad_weight_kernel<Real>, dim3(divide_up(fold->outputs, kRows), columns),
                  dim3(kThreads), sizeof(FoldShared<Real>), stream, *fold, in,
                  static_cast<Real*>(grad_weight));
    if (const char* refusal = launch_status()) return refusal;
    FASTHG_LAUNCH((bn_fold_mix_kernel<Real, Out>), dim3(divide_up(fold->inputs, kRows), columns),
                  dim3(kThreads), sizeof(FoldShared<Real>), stream, *fold, in.workspace,
                  static_cast<Out*>(back), static_cast<Out*>(mix));
    if (const char* refusal = launch_status()) return refusal;
    FASTHG_LAUNCH((bn_fold_constant_kernel<Real, Out>), dim3(divide_up(fold->inputs, kWarps)),
                  dim3(kThreads), 0, stream, *fold, in, static_cast<const Out*>(back),
                  static_cast<const Out*>(mix), static_cast<Real*>(constant));
    return launch_status();
  });
}
