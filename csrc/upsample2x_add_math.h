// Nearest-neighbour upsampling onto a map: one value, and what its four copies send back.
#pragma once

#include "portable.h"

namespace fasthg {

template <typename T>
FASTHG_HD T upsampled(T high, T low) {
  return high + low;
}

template <typename T>
FASTHG_HD T upsampled_backward(T first, T right, T below, T both) {
  return (first + right) + (below + both);
}

}  // namespace fasthg
