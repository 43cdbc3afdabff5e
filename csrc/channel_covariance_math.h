// Mean and covariance of channels from sums over rows.
#pragma once

#include <cmath>

#include "portable.h"

namespace fasthg {

// products: the sum of a * b over the rows; mean_a and mean_b: the means of a and b.
FASTHG_HD double covariance_of(double products, double mean_a, double mean_b, int64_t rows) {
  return products / static_cast<double>(rows) - mean_a * mean_b;
}

// Of a channel with itself: rounding must not turn a variance near 0 negative. NaN passes.
FASTHG_HD double variance_of(double products, double mean, int64_t rows) {
  const double result = covariance_of(products, mean, mean, rows);
  return result < 0 ? 0 : result;
}

}  // namespace fasthg
