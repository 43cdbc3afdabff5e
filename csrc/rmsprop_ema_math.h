// RMSProp as tf.train.RMSPropOptimizer of TensorFlow 1.15 computes it, and a step of a moving
// average as tf.train.ExponentialMovingAverage does. For each weight w with gradient g:
//   average += average_weight (w - average)          the w that the step starts from
//   g += weight_decay w                              L2, on the first `decayed` weights
//   square = decay square + (1 - decay) g^2          moving mean of the squared gradient
//   change = rate g / sqrt(square + eps)             eps inside the root, unlike torch's RMSprop
//   momentum' = momentum momentum' + change          only with momentum
//   w -= momentum' (or change)
// Dividing by the root mean square of its own gradients makes a weight's step independent of the
// gradient's scale.
#pragma once

#include <cmath>
#include <cstdint>

#include "portable.h"

namespace fasthg {

template <typename T>
struct RmspropConstants {
  T rate, average_weight, weight_decay, decay, gradient_share, momentum, eps;

  FASTHG_HD explicit RmspropConstants(const RmspropStep& step)
      : rate(*static_cast<const T*>(step.rate)),
        average_weight(step.averages ? *static_cast<const T*>(step.average_weight) : T(0)),
        weight_decay(static_cast<T>(step.weight_decay)),
        decay(static_cast<T>(step.decay)),
        gradient_share(static_cast<T>(1 - step.decay)),
        momentum(static_cast<T>(step.momentum)),
        eps(static_cast<T>(step.eps)) {}
};

template <typename T>
FASTHG_HD T update_average(T average, T value, T weight) {
  return average + weight * (value - average);
}

// Updates the mean square and returns `change`. weight_decay is 0 where there is no L2.
template <typename T>
FASTHG_HD T rmsprop_change(T weight, T gradient, T weight_decay, const RmspropConstants<T>& c,
                           T& square) {
  gradient += weight_decay * weight;
  square = c.decay * square + c.gradient_share * gradient * gradient;
  return c.rate * gradient / std::sqrt(square + c.eps);
}

}  // namespace fasthg
