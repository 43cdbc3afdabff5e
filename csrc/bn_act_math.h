// Batch norm of one value, the statistics from sums, and the coefficients of the gradient.
//
// Of one channel with n rows (batch x height x width):
//   mean = sum x / n,  var = sum (x - mean)^2 / n,  inv_std = 1 / sqrt(var + eps)
//   xhat = (x - mean) inv_std,  y = gamma xhat + beta
//
// Backward, with g = dL/dy (after the ReLU mask, where there is a ReLU):
//   grad_beta = sum g,  grad_gamma = sum g xhat = inv_std sum g (x - mean)
// x_i reaches L in three ways: through its own y_i, through the variance and through the mean.
//   through y_i:  gamma inv_std g_i
//   dL/dvar = sum_j gamma g_j (x_j - mean) (-1/2) inv_std^3 = -1/2 gamma inv_std^2 grad_gamma
//             and dvar/dx_i = 2 (x_i - mean) / n
//   dL/dmean = -gamma inv_std grad_beta, as sum (x_j - mean) = 0 leaves nothing through the
//             variance, and dmean/dx_i = 1 / n
// With scale = gamma inv_std the sum of the three is
//   grad_x_i = scale g_i - (scale / n) inv_std grad_gamma (x_i - mean) - (scale / n) grad_beta
// So a channel needs two sums over its rows first; then every row is computed from the three
// coefficients of `BnGradCoefficients`. Where mean and var are constants (`frozen`), only the first
// term remains. The same derivation stands in Ioffe and Szegedy, "Batch Normalization", ICML 2015.
#pragma once

#include <cmath>

#include "portable.h"

namespace fasthg {

template <typename T>
FASTHG_HD T inv_std_of_var(T var, double eps) {
  return 1 / std::sqrt(var + static_cast<T>(eps));
}

// The mean is subtracted first. Folding it into an offset (x * scale + offset) would save one
// subtraction, but cancels digits where the mean is much larger than the standard deviation.
template <typename T>
FASTHG_HD T normalise(T x, T mean, T scale, T beta) {
  return (x - mean) * scale + beta;
}

// max(value, 0); NaN stays NaN, as in torch.
template <typename T>
FASTHG_HD T apply_relu(T value) {
  return value < 0 ? T(0) : value;
}

// The gradient of apply_relu. value: before or after the ReLU; either is <= 0 if the other is.
template <typename T>
FASTHG_HD T relu_backward(T value, T grad_output) {
  return value <= 0 ? T(0) : grad_output;
}

struct MeanVar {
  double mean, var;
};

// Mean and biased variance of a channel. sum, squares: of (x - origin) and (x - origin)^2, where
// origin is any value of the channel, here that of row 0. E[x^2] - E[x]^2 of the plain values loses
// all digits where the mean is much larger than the standard deviation; shifted values do not.
// Without rows both are 0.
FASTHG_HD MeanVar mean_var_from_sums(double sum, double squares, double origin, int64_t rows) {
  if (!rows) return {0, 0};
  const double mean = sum / rows, var = squares / rows - mean * mean;
  return {origin + mean, var < 0 ? 0 : var};
}

// grad_x = grad_y * coefficients.grad_y + (x - mean) * coefficients.x_centred
//          + coefficients.constant, with grad_y after the ReLU mask: see the head of this file.
template <typename T>
struct BnGradCoefficients {
  T grad_y, x_centred, constant;
};

template <typename T>
FASTHG_HD BnGradCoefficients<T> bn_grad_coefficients(T scale, T inv_std, T grad_beta, T grad_gamma,
                                                     int64_t rows, bool frozen) {
  if (frozen) return {scale, 0, 0};
  const T share = scale / rows;
  return {scale, -share * inv_std * grad_gamma, -share * grad_beta};
}

}  // namespace fasthg
