// A step of a moving average towards a corrected value:
//   running += weight (correction batch - running)
// correction is 1 for a mean and n / (n - 1) for a variance of n values, which makes it unbiased.
#pragma once

#include "portable.h"

namespace fasthg {

template <typename T>
FASTHG_HD T update_statistic(T running, T batch, T correction, T weight) {
  return running + weight * (correction * batch - running);
}

}  // namespace fasthg
