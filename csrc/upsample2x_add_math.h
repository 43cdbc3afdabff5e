// Nearest-neighbour upsampling by 2, added to a map of the large size:
//   y[i, j] = high[i, j] + low[i / 2, j / 2]
//   grad_high = grad_y,  grad_low[i, j] = sum of grad_y over its 2 x 2 copies
#pragma once

#include "portable.h"

namespace fasthg {

template <typename T>
FASTHG_HD T upsample_add(T high, T low) {
  return high + low;
}

template <typename T>
FASTHG_HD T upsample_backward(T first, T right, T below, T both) {
  return (first + right) + (below + both);
}

}  // namespace fasthg
