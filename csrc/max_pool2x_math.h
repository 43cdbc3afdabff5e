// The largest of 2 x 2 values, and the gradient:
//   y = max of x[2i, 2j], x[2i, 2j + 1], x[2i + 1, 2j], x[2i + 1, 2j + 1]  (positions 0, 1, 2, 3)
//   grad_x at position p = grad_y where p is the position of the largest, else 0,
//                          plus the gradient that another reader of x sends there, if there is one
#pragma once

#include "portable.h"

namespace fasthg {

// Whether a value replaces the largest of those before it. As in torch the first of equal values
// stays, and of several NaN the last wins.
template <typename T>
FASTHG_HD bool replaces(T value, T largest) {
  return static_cast<int>(value > largest) | static_cast<int>(value != value);
}

// The gradient of the value at `position`, where the value at `index` was the largest.
template <typename T, typename Index>
FASTHG_HD T max_pool_backward(T grad_y, Index index, Index position) {
  return index == position ? grad_y : T{};
}

}  // namespace fasthg
