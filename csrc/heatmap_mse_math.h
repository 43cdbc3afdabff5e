// Half the squared distance of one prediction to its target, and the derivative.
#pragma once

#include "portable.h"

namespace fasthg {

template <typename T>
struct SquaredError {
  T twice_loss;  // (prediction - target)^2: the half is taken once, after the sum
  T gradient;    // d loss / d prediction
};

template <typename T>
FASTHG_HD SquaredError<T> squared_error(T prediction, T target) {
  const T difference = prediction - target;
  return {difference * difference, difference};
}

}  // namespace fasthg
