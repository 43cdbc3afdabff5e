// Batch norm of one value, its statistics from sums, and its derivative.
#pragma once

#include <cmath>

#include "portable.h"

namespace fasthg {

template <typename T>
FASTHG_HD T reciprocal_deviation(T var, double eps) {
  return 1 / std::sqrt(var + static_cast<T>(eps));
}

// The mean comes off first: where it is much larger than the deviation, x * scale would lose what
// the offset takes away again.
template <typename T>
FASTHG_HD T normalised(T x, T mean, T scale, T beta) {
  return (x - mean) * scale + beta;
}

// NaN passes, as in torch.
template <typename T>
FASTHG_HD T rectified(T value) {
  return value < 0 ? T(0) : value;
}

template <typename T>
FASTHG_HD T rectified_backward(T value, T grad_output) {
  return value <= 0 ? T(0) : grad_output;
}

struct Moments {
  double mean, var;
};

// Sums are taken of x - origin, where origin is any value of the channel: a mean of many deviations
// then costs no digits of the variance. No rows give 0.
FASTHG_HD Moments moments(double sum, double squares, double origin, int64_t rows) {
  if (!rows) return {0, 0};
  const double mean = sum / rows, var = squares / rows - mean * mean;
  return {origin + mean, var < 0 ? 0 : var};
}

// grad_x = grad_y * grad_scale + (x - mean) * centred_scale + constant, with grad_y behind the
// ReLU.
template <typename T>
struct Slope {
  T grad_scale, centred_scale, constant;
};

// With frozen statistics x moves y alone; else it moves mean and variance as well.
template <typename T>
FASTHG_HD Slope<T> slope(T scale, T deviation, T grad_beta, T grad_gamma, int64_t rows,
                         bool frozen) {
  if (frozen) return {scale, 0, 0};
  const T share = scale / rows;
  return {scale, -share * deviation * grad_gamma, -share * grad_beta};
}

}  // namespace fasthg
