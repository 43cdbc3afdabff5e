// Half the squared distance of one prediction to its target, and the derivative.
#pragma once

#include "portable.h"

namespace fasthg {

// Twice the loss: the half is taken once, after the sum.
template <typename T>
FASTHG_HD T squared_error(T prediction, T target) {
  const T difference = prediction - target;
  return difference * difference;
}

// d loss / d prediction, times the derivative with respect to the loss.
template <typename T>
FASTHG_HD T squared_error_backward(T prediction, T target, T grad_loss) {
  return (prediction - target) * grad_loss;
}

}  // namespace fasthg
