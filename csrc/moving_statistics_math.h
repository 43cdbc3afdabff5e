// A step of a moving average towards a corrected value.
#pragma once

#include "portable.h"

namespace fasthg {

template <typename T>
FASTHG_HD T moved_statistic(T running, T batch, T correction, T weight) {
  return running + weight * (correction * batch - running);
}

}  // namespace fasthg
