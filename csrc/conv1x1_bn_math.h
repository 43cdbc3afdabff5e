// Mean and squared deviations of a set of values from those of two parts of it.
//
//   n = n1 + n2,  delta = mean2 - mean1
//   mean = mean1 + delta n2 / n,  squares = squares1 + squares2 + delta^2 n1 n2 / n
//
// Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
// variances", 1979. Unlike sums of squares it loses no digits where the mean is much larger than
// the standard deviation.
#pragma once

#include "portable.h"

namespace fasthg {

struct Moments {
  float mean, squares;  // squares: the sum of (value - mean)^2
};

// What of the formula depends on the counts alone: n2 / n and n1 n2 / n, 0 where n2 is.
struct MomentShares {
  float of_second, between;

  FASTHG_HD MomentShares(float first, float second)
      : of_second(second > 0 ? second / (first + second) : 0), between(first * of_second) {}
};

FASTHG_HD Moments merge_moments(const Moments& first, const Moments& second,
                                const MomentShares& shares) {
  const float delta = second.mean - first.mean;
  return {first.mean + delta * shares.of_second,
          first.squares + second.squares + delta * delta * shares.between};
}

}  // namespace fasthg
