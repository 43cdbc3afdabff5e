// Half the squared distance of one prediction to its target, and the derivative:
//   loss = sum (prediction - target)^2 / 2,  dloss/dprediction = prediction - target
#pragma once

#include "portable.h"

namespace fasthg {

// Twice the loss: the half is taken once, after the sum.
template <typename T>
FASTHG_HD T squared_error(T prediction, T target) {
  const T difference = prediction - target;
  return difference * difference;
}

// The gradient of one prediction; grad_loss: the gradient of its loss.
template <typename T>
FASTHG_HD T squared_error_backward(T prediction, T target, T grad_loss) {
  return (prediction - target) * grad_loss;
}

}  // namespace fasthg
