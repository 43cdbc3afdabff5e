// Batch norm after a 1x1 convolution, computed from the moments of the convolution's input: the
// derivation, and what concerns one output channel.
//
// Let a (n rows, inputs) be the input with mean m and biased covariance C, W (outputs, inputs) the
// weights, z = a W^T the convolution's result. z is linear in a, so for output o with weights w
//   mean_out = w m,  var_out = w C w^T,  s = 1 / sqrt(var_out + eps)
//   y = (z - mean_out) s + beta = a (s w)^T + (beta - s w m)
// and neither z nor a pass over z is needed: the norm becomes part of the weights.
//
// Backward, with d = dL/dy (n, outputs), product = d^T a and total = sum of d over the rows. Batch
// norm gives (bn_act_math.h, gamma = 1, zhat = (z - mean_out) s)
//   dL/dz = s (d - m1 - zhat m2),  m1 = total / n,  m2 = mean of d zhat
//   n m2 = s (sum d z - mean_out total) = s (product . w - mean_out total)
// as z = a w^T. With sum a = n m and sum (z - mean_out) a = n w C over the rows:
//   grad_w = sum of dL/dz a = s (product - total m - s n m2 (w C))
//   grad_a = dL/dz W = d back^T + a mix^T + constant, where
//   back = (s W)^T,  mix = -W^T diag(s^2 m2) W,  constant = -back m1 - mix m
//
// A variance too large for the type is infinite, so that s = 0 and y = beta, as where the variance
// of z itself overflows. C holds infinities then, and products of them with W may be NaN.
#pragma once

#include <cmath>

#include "portable.h"

namespace fasthg {

// A variance from w C w^T, which rounding must not turn negative, and from its diagonal terms, the
// sum of w_i^2 C_ii: they are NaN where data are, and infinite or finite where numbers overflowed.
template <typename T>
FASTHG_HD T quadratic_form(T value, T diagonal) {
  if (std::isfinite(value)) return value < 0 ? T(0) : value;
  return std::isnan(diagonal) ? diagonal : static_cast<T>(INFINITY);
}

template <typename T>
FASTHG_HD T fold_scale(T var, double eps) {
  return 1 / std::sqrt(var + static_cast<T>(eps));
}

// covariance = s n m2 multiplies w C in grad_w; mix = s^2 m2 stands between the weights in mix.
template <typename T>
struct BnFoldCoefficients {
  T covariance, mix;
};

// product: the sum of d z over the rows; total: the sum of d; mean: mean_out.
template <typename T>
FASTHG_HD BnFoldCoefficients<T> bn_fold_coefficients(T scale, T product, T total, T mean,
                                                     int64_t rows) {
  if (scale == 0) return {0, 0};
  const T covariance = scale * scale * (product - mean * total);
  return {covariance, rows ? scale / static_cast<T>(rows) * covariance : T(0)};
}

}  // namespace fasthg
