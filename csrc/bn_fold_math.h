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

// of_weight = scale * (product - total * mean - of_covariance * (weight covariance)), and an
// input's gradient has input * -(weight^T mix weight), which follows through the variance.
template <typename T>
struct FoldSlope {
  T of_covariance, mix;
};

// total: the sum of the incoming gradient; product: that of gradient times convolution.
template <typename T>
FASTHG_HD FoldSlope<T> fold_slope(T scale, T product, T total, T mean, int64_t rows) {
  const T of_covariance = scale * scale * (product - mean * total);
  return {of_covariance, rows ? scale / static_cast<T>(rows) * of_covariance : T(0)};
}

}  // namespace fasthg
