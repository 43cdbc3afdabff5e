// What batch norm behind a 1 x 1 convolution does to one of its outputs, by the statistics of that
// output alone.
#pragma once

#include <cmath>

#include "portable.h"

namespace fasthg {

// Rounding must not turn a variance near 0 negative. NaN passes.
template <typename T>
FASTHG_HD T quadratic_form(T value) {
  return value < 0 ? T(0) : value;
}

template <typename T>
FASTHG_HD T fold_scale(T var, double eps) {
  return 1 / std::sqrt(var + static_cast<T>(eps));
}

// grad_weight = scale * (product - total * mean - grad_covariance * (weight covariance)), and an
// input's gradient has input * -(weight^T mix weight), which follows through the variance.
template <typename T>
struct FoldSlope {
  T grad_covariance, mix;
};

// total: the sum of the incoming gradient; product: that of gradient times convolution.
template <typename T>
FASTHG_HD FoldSlope<T> fold_slope(T scale, T product, T total, T mean, int64_t rows) {
  const T grad_covariance = scale * scale * (product - mean * total);
  return {grad_covariance, rows ? scale / static_cast<T>(rows) * grad_covariance : T(0)};
}

}  // namespace fasthg
