// The largest of two by two values, counted row by row, and what it sends back.
#pragma once

#include "portable.h"

namespace fasthg {

// Whether a value replaces the largest of those before it. As in torch the first of equal values
// stays, and of several NaN the last wins.
template <typename T>
FASTHG_HD bool replaces(T value, T largest) {
  return static_cast<int>(value > largest) | static_cast<int>(value != value);
}

// The gradient of the value at `place`, where that at `index` was the largest.
template <typename T, typename Index>
FASTHG_HD T pooled_backward(T grad_y, Index index, Index place) {
  return index == place ? grad_y : T{};
}

}  // namespace fasthg
