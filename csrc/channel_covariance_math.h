// Mean and biased covariance of channels from sums over rows:
//   cov(a, b) = sum (a - mean_a) (b - mean_b) / n = sum (a b) / n - mean_a mean_b
// The second form needs one pass over the rows. It cancels where the means are large against the
// standard deviations; the CPU kernel therefore measures channels from the first row.
#pragma once

#include <cmath>

#include "portable.h"

namespace fasthg {

// products: the sum of a * b over the rows.
FASTHG_HD double covariance_of(double products, double mean_a, double mean_b, int64_t rows) {
  return products / static_cast<double>(rows) - mean_a * mean_b;
}

// A channel with itself: rounding must not turn a variance near 0 negative. NaN stays NaN.
FASTHG_HD double variance_of(double products, double mean, int64_t rows) {
  const double result = covariance_of(products, mean, mean, rows);
  return result < 0 ? 0 : result;
}

}  // namespace fasthg
