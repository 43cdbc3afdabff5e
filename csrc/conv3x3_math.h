// Winograd's F(4, 3): four neighbouring results of a filter of three taps from six inputs, with six
// products in place of twelve. Two dimensions are one after the other: F(4x4, 3x3) has 36 products
// for 16 results, 2.25 each in place of 9.
//
// Where the transforms come from. A product s(t) = d(t) w(t) of polynomials with 4 and 3
// coefficients has degree 5, so its values at 6 points determine it. Evaluate both factors at the
// points, multiply the values, interpolate: s = C ((A d) * (G w)), 6 products. A filter
//   y_k = sum_j w_j x_(k + j),  k = 0..3, j = 0..2
// is the transpose of that product in d and s (with w fixed, y = M^T x where s = M d), so
//   y = A^T ((G w) * (B^T x)),  B^T = C^T.
// With points p in {0, a, -a, b, -b, infinity} and f(p) the product of p - q over the other finite
// points q:
//   row p of A:    1, p, p^2, p^3                     (infinity: 0, 0, 0, 1)
//   row p of G:    (1, p, p^2) / f(p)                 (infinity: 0, 0, 1)
//   row p of B^T:  coefficients of the product of t - q over the other finite points q
// The points a and -a share their even and odd parts, which saves half of the additions.
//
// Gradients are transposes again: grad_w = G^T ((A grad_y) * (B^T x)), summed over all tiles;
// grad_x is a convolution of grad_y with the filter rotated by 180 degrees.
//
// Why a = 5/8 and b = 3/2: they halve the rounding error of the usual 1 and 2 (measured), and all
// constants but those of G are exact in binary.
//
// Each transform takes kFrom values, numbers or vectors of them, to kTo.
#pragma once

#include "portable.h"

namespace fasthg {

constexpr int kTile = 4;   // results a side
constexpr int kTaps = 3;   // of the filter, a side
constexpr int kReach = 6;  // inputs, and points, a side
constexpr int kPoints = kReach * kReach;

constexpr float kA = 0.625f, kB = 1.5f;
constexpr float kA2 = kA * kA, kB2 = kB * kB;
// 1 / f(p), see above.
constexpr float kAt0 = 1 / (kA2 * kB2);
constexpr float kAtA = 1 / (2 * kA2 * (kA2 - kB2)), kAtB = 1 / (2 * kB2 * (kB2 - kA2));

// B^T x: patch of the input, points
struct InputTransform {
  static constexpr int kFrom = kReach, kTo = kReach;
  template <typename V>
  static FASTHG_HD void apply(const V* x, V* out) {
    const V even_a = x[4] - kB2 * x[2], odd_a = kA * (x[3] - kB2 * x[1]);
    const V even_b = x[4] - kA2 * x[2], odd_b = kB * (x[3] - kA2 * x[1]);
    out[0] = kA2 * kB2 * x[0] + (x[4] - (kA2 + kB2) * x[2]);
    out[1] = even_a + odd_a;
    out[2] = even_a - odd_a;
    out[3] = even_b + odd_b;
    out[4] = even_b - odd_b;
    out[5] = kA2 * kB2 * x[1] + (x[5] - (kA2 + kB2) * x[3]);
  }
};

// A^T m: products, results
struct OutputTransform {
  static constexpr int kFrom = kReach, kTo = kTile;
  template <typename V>
  static FASTHG_HD void apply(const V* m, V* out) {
    const V even_a = m[1] + m[2], odd_a = m[1] - m[2];
    const V even_b = m[3] + m[4], odd_b = m[3] - m[4];
    out[0] = m[0] + (even_a + even_b);
    out[1] = kA * odd_a + kB * odd_b;
    out[2] = kA2 * even_a + kB2 * even_b;
    out[3] = kA2 * kA * odd_a + (kB2 * kB * odd_b + m[5]);
  }
};

// A grad_y: gradients of a tile, points
struct GradOutputTransform {
  static constexpr int kFrom = kTile, kTo = kReach;
  template <typename V>
  static FASTHG_HD void apply(const V* grad_y, V* out) {
    const V even_a = grad_y[0] + kA2 * grad_y[2], odd_a = kA * (grad_y[1] + kA2 * grad_y[3]);
    const V even_b = grad_y[0] + kB2 * grad_y[2], odd_b = kB * (grad_y[1] + kB2 * grad_y[3]);
    out[0] = grad_y[0];
    out[1] = even_a + odd_a;
    out[2] = even_a - odd_a;
    out[3] = even_b + odd_b;
    out[4] = even_b - odd_b;
    out[5] = grad_y[3];
  }
};

// G w: taps, points
struct WeightTransform {
  static constexpr int kFrom = kTaps, kTo = kReach;
  template <typename V>
  static FASTHG_HD void apply(const V* w, V* out) {
    const V even_a = kAtA * (w[0] + kA2 * w[2]), odd_a = kAtA * kA * w[1];
    const V even_b = kAtB * (w[0] + kB2 * w[2]), odd_b = kAtB * kB * w[1];
    out[0] = kAt0 * w[0];
    out[1] = even_a + odd_a;
    out[2] = even_a - odd_a;
    out[3] = even_b + odd_b;
    out[4] = even_b - odd_b;
    out[5] = w[2];
  }
};

// G^T u: sums at the points, gradients of the taps
struct GradWeightTransform {
  static constexpr int kFrom = kReach, kTo = kTaps;
  template <typename V>
  static FASTHG_HD void apply(const V* u, V* out) {
    const V even_a = kAtA * (u[1] + u[2]), odd_a = kAtA * kA * (u[1] - u[2]);
    const V even_b = kAtB * (u[3] + u[4]), odd_b = kAtB * kB * (u[3] - u[4]);
    out[0] = kAt0 * u[0] + (even_a + even_b);
    out[1] = odd_a + odd_b;
    out[2] = kA2 * even_a + (kB2 * even_b + u[5]);
  }
};

}  // namespace fasthg
